// The points of the lines, and plotly.js.

const MAX_POINTS = 2400; // as in history.py

/** Return a store that follows the history of a model; its listeners get what is new. */
function openStore(model) {
  const store = { number: -1, lines: [], listeners: new Set() };
  const notify = (added) => store.listeners.forEach((listener) => listener(added));

  function replace(history) {
    store.number = history.number;
    store.lines = history.lines.map((line) => ({
      x: [...line.x],
      y: [...line.y],
      text: [...(line.text ?? line.x.map(() => null))],
    }));
    notify(null);
  }

  function extend({ number, lines }) {
    if (number <= store.number) return;
    if (number > store.number + 1) {
      model.send({ action: "resync" }); // a message was lost, for example during a reload
      return;
    }
    store.number = number;
    const added = lines.map(([index, x, y, text]) => {
      const texts = text.length ? text : x.map(() => null);
      for (const [name, values] of [["x", x], ["y", y], ["text", texts]]) {
        const points = store.lines[index][name];
        points.push(...values);
        points.splice(0, points.length - MAX_POINTS);
      }
      return { index, x, y, text: texts };
    });
    notify(added);
  }

  model.on("msg:custom", (message) => {
    if (message.type === "points") extend(message);
    if (message.type === "history") replace(message.history);
  });
  replace(model.get("history"));
  model.send({ action: "resync" }); // for messages that came before this listener
  return store;
}

/** Return plotly, which the model has in compressed form. All dashboards of a page share it. */
function loadPlotly(model) {
  globalThis.workbenchPlotly ??= unpackPlotly(model.get("plotly"));
  return globalThis.workbenchPlotly;
}

async function unpackPlotly(compressed) {
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(stream).text();
  const module = { exports: {} };
  // Neither a module loader nor a global variable of the page must see it.
  new Function("module", "exports", "define", source)(module, module.exports, undefined);
  return module.exports;
}
