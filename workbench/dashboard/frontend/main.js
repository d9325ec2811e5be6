// The widget: one store per model, and a page per output that shows it.

export default () => {
  let store;
  let saved = false;
  return {
    initialize({ model }) {
      store = openStore(model);
    },
    render({ model, el }) {
      const close = show(model, store, el);
      if (!saved) setTimeout(() => save(el), 500);
      saved = true;
      return close;
    },
  };
};

function show(model, store, el) {
  const root = make("div", { class: "workbench-dashboard", role: "region", "aria-label": "Dashboard of the load" });
  el.append(root);
  const send = (action, ...values) => model.send({ action, values });
  let chart = null;
  const header = createHeader(model, send, root);
  const [load, scaling, tiles] = [createLoadCard(model, send), createScalingCard(model, send), createTiles(model)];
  const events = createEvents(model, (timeS) => chart?.zoomTo(timeS));
  const place = make("div", { class: "wb-place" });
  const controls = make("div", { class: "wb-cards" }, load.element, scaling.element);
  root.append(header.element, controls, tiles.element, make("div", { class: "wb-body" }, place, events.element));

  const parts = { header, load, scaling, tiles, events };
  const ends = Object.entries(parts).map(([name, part]) => {
    part.update();
    return observe(model, `change:${name}`, part.update);
  });
  const again = (message) => {
    if (message.type !== "values") return;
    document.activeElement?.blur();
    [load, scaling].forEach((part) => part.update());
  };
  model.on("msg:custom", again);
  ends.push(() => model.off("msg:custom", again));

  let closed = false;
  loadPlotly(model).then((Plotly) => {
    if (closed) return;
    chart = createChart(Plotly, model, store, root);
    place.append(chart.element);
    chart.start();
  });
  return () => {
    closed = true;
    ends.forEach((end) => end());
    chart?.close();
  };
}

/**
 * Save the notebook, as Ctrl+S does: after a reload JupyterLab restores the widgets of saved outputs
 * only, and it saves by itself every two minutes.
 */
function save(el) {
  if (!el.closest(".jp-NotebookPanel") || !el.offsetParent) return;
  const mac = /Mac/.test(navigator.platform);
  const key = { key: "s", code: "KeyS", keyCode: 83, ctrlKey: !mac, metaKey: mac };
  el.dispatchEvent(new KeyboardEvent("keydown", { ...key, bubbles: true, cancelable: true, composed: true }));
}
