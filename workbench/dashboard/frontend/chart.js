// The figure: lines that get more points, marks that are replaced, and the range of time.

const RANGES = [
  ["1 min", 60],
  ["5 min", 300],
  ["All", Infinity],
];
const MIN_SPAN_S = 30;
const EVENT_SPAN_S = 30;

/** Return a figure in `element` with its range buttons. */
function createChart(Plotly, model, store, root) {
  const figure = model.get("figure");
  const count = figure.lines.length;
  const plot = make("div", { class: "wb-plot" });
  const buttons = RANGES.map(([label, seconds]) =>
    make("button", { type: "button", onclick: () => follow(seconds) }, label)
  );
  const live = make("button", { type: "button", class: "wb-live", onclick: () => follow(span) }, "Live");
  let span = figure.window_s;
  let following = true;
  let pending = new Map();
  let timer = null;

  const layout = structuredClone(figure.layout);
  const titles = layout.annotations.length / 2;

  function traces() {
    const lines = figure.lines.map((style, i) => ({ ...structuredClone(style), ...copied(store.lines[i]) }));
    return [...lines, ...structuredClone(model.get("scene").marks)];
  }

  function copied(line) {
    return { x: [...line.x], y: [...line.y], text: [...line.text] };
  }

  /** Write into `layout` all that depends on the data, the theme and the size. */
  function adjust(layout, data) {
    const scene = model.get("scene");
    for (const [axis, scale] of Object.entries(scene.scales)) Object.assign(layout[axis], structuredClone(scale));
    layout.shapes = structuredClone(scene.shapes);
    if (following) layout.xaxis.range = range(scene.now_s);
    layout.xaxis.autorange = false;
    const filled = new Set(data.flatMap((trace, i) => (trace.x.length ? [figure.rows[i]] : [])));
    layout.annotations.forEach((note, i) => {
      if (i >= titles) note.visible = !filled.has(i - titles + 1);
    });
    Object.assign(layout, themed(root, layout));
  }

  function range(nowS) {
    const end = Math.max(nowS, MIN_SPAN_S);
    return [span === Infinity ? 0 : Math.max(0, end - span), end];
  }

  function show() {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(following && span === RANGES[i][1]));
    });
    live.hidden = following;
  }

  function follow(seconds) {
    [span, following] = [seconds, true];
    show();
    schedule();
  }

  function zoom(fromS, toS) {
    following = false;
    show();
    Plotly.relayout(plot, { "xaxis.range": [Math.max(0, fromS), toS] });
  }

  /** Collect changes, and draw them once. A hidden page draws when it is visible again. */
  function schedule(added = []) {
    if (added === null) pending = null;
    for (const { index, x, y, text } of (pending && added) || []) {
      const line = pending.get(index) ?? { x: [], y: [], text: [] };
      line.x.push(...x), line.y.push(...y), line.text.push(...text);
      pending.set(index, line);
    }
    if (timer === null && !document.hidden) timer = setTimeout(draw, 60);
  }

  function draw() {
    timer = null;
    if (!plot.data) return;
    if (pending === null) {
      store.lines.forEach((line, i) => Object.assign(plot.data[i], copied(line)));
    }
    model.get("scene").marks.forEach((mark, i) => Object.assign(plot.data[count + i], structuredClone(mark)));
    const lines = pending ?? new Map();
    pending = new Map();
    const shown = plot.data.map((trace, i) => (lines.has(i) ? lines.get(i) : trace));
    adjust(plot.layout, shown);
    if (lines.size) {
      const all = [...lines.values()];
      const more = Object.fromEntries(["x", "y", "text"].map((name) => [name, all.map((line) => line[name])]));
      Plotly.extendTraces(plot, more, [...lines.keys()], MAX_POINTS);
    } else {
      Plotly.redraw(plot);
    }
  }

  async function start() {
    const data = traces();
    adjust(layout, data);
    const config = { displaylogo: false, responsive: false, displayModeBar: false };
    await Plotly.newPlot(plot, data, { ...layout, width: plot.clientWidth || 800 }, config);
    plot.on("plotly_relayout", (change) => {
      if (change["xaxis.range[0]"] !== undefined) following = false;
      if (change["xaxis.autorange"]) [following, span] = [true, Infinity];
      show();
      if (change["xaxis.autorange"]) schedule();
    });
  }

  const forget = [
    listen(store, schedule),
    observe(model, "change:scene", () => schedule()),
    watchSize(plot, () => plot.data && Plotly.relayout(plot, { width: plot.clientWidth, height: layout.height })),
    watchTheme(() => schedule()),
    watchVisibility(() => schedule()),
    () => Plotly.purge(plot),
  ];
  show();
  const bar = make("div", { class: "wb-ranges", role: "group", "aria-label": "Range of time" }, live, ...buttons);
  const element = make("section", { class: "wb-card wb-chart", "aria-label": "Load, latency and replicas over time" }, bar, plot);
  const zoomTo = (timeS) => zoom(timeS - EVENT_SPAN_S / 2, timeS + EVENT_SPAN_S / 2);
  return { element, start, zoomTo, close: () => forget.forEach((end) => end()) };
}

/** Return the parts of the layout that depend on the theme. */
function themed(root, layout) {
  const style = getComputedStyle(root);
  const [text, muted, card, line] = ["--wb-text", "--wb-muted", "--wb-card", "--wb-line"].map((name) => style.getPropertyValue(name).trim());
  for (const [name, axis] of Object.entries(layout)) {
    if (/^[xy]axis/.test(name)) Object.assign(axis, { gridcolor: line, zerolinecolor: line, color: muted, linecolor: line });
  }
  layout.annotations.forEach((note, i) => (note.font.color = i < layout.annotations.length / 2 ? text : muted));
  return {
    font: { ...layout.font, color: muted, family: style.fontFamily },
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: text, size: 11 } },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
  };
}

function listen(store, listener) {
  store.listeners.add(listener);
  return () => store.listeners.delete(listener);
}

function observe(model, event, listener) {
  model.on(event, listener);
  return () => model.off(event, listener);
}

function watchSize(element, changed) {
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && now !== width) changed();
    width = now || width;
  });
  observer.observe(element);
  return () => observer.disconnect();
}

/** JupyterLab names its theme in attributes of the body. */
function watchTheme(changed) {
  const observer = new MutationObserver(() => setTimeout(changed, 300));
  observer.observe(document.body, { attributes: true });
  return () => observer.disconnect();
}

function watchVisibility(changed) {
  document.addEventListener("visibilitychange", changed);
  return () => document.removeEventListener("visibilitychange", changed);
}
