// The header, the tiles and the event log.

function createHeader(model, send, root) {
  const badge = make("span", { class: "wb-badge" });
  const bar = make("progress", { max: 1, "aria-label": "Progress of the plan" });
  const progress = make("span", { class: "wb-progress" });
  const buttons = {
    start: headerButton("play", "Start", "Start the load, or resume it after a pause", () => send("start")),
    pause: headerButton("pause", "Pause", "Send nothing more for now", () => send("pause")),
    stop: headerButton("stop", "Stop", "End the load; the results are kept", () => send("stop")),
  };
  const screen = headerButton("expand", "Full screen", "Show the dashboard on the full screen", () =>
    document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()
  );
  const message = make("div", { class: "wb-message", role: "status" });
  const enabled = {
    start: ["waiting", "paused"],
    pause: ["running"],
    stop: ["starting", "running", "paused"],
  };

  function update() {
    const header = model.get("header");
    badge.dataset.state = header.state;
    setText(badge, header.label);
    setText(progress, header.progress);
    bar.hidden = header.share === null;
    if (header.share !== null) bar.value = header.share;
    const label = header.state === "paused" ? "Resume" : "Start";
    setText(buttons.start.querySelector("span"), label);
    for (const [name, states] of Object.entries(enabled)) buttons[name].disabled = !states.includes(header.state);
    setText(message, header.message);
    message.title = header.message;
    message.classList.toggle("wb-error", header.error);
  }

  const row = make("div", { class: "wb-header-row" }, badge, bar, progress, message, ...Object.values(buttons), screen);
  return { element: make("header", { class: "wb-card wb-header" }, row), update };
}

function headerButton(name, label, title, act) {
  const attributes = { type: "button", class: `wb-button wb-${name}`, title, onclick: act };
  return make("button", attributes, icon(ICONS[name]), make("span", {}, label));
}

const LEVELS = { good: ["✓", "within the bound"], near: ["▲", "near the bound"], bad: ["✕", "beyond the bound"], none: ["", ""] };

function createTiles(model) {
  const element = make("div", { class: "wb-tiles", role: "list", "aria-label": "Current values" });

  function update() {
    model.get("tiles").forEach((tile, i) => {
      const shown = element.children[i] ?? element.appendChild(blankTile());
      const [label, mark, value, detail] = ["label", "mark", "value", "detail"].map((name) => shown.querySelector(`.wb-tile-${name}`));
      shown.dataset.level = tile.level;
      setText(label, tile.label);
      setText(value, tile.value);
      setText(detail, tile.detail);
      detail.title = tile.detail;
      setText(mark, LEVELS[tile.level][0]);
      mark.title = LEVELS[tile.level][1];
      shown.setAttribute("aria-label", `${tile.label}: ${tile.value}, ${tile.detail} ${LEVELS[tile.level][1]}`.trim());
      shown.querySelector("polyline").setAttribute("points", sparkline(tile.recent));
    });
  }

  return { element, update };
}

function blankTile() {
  const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  spark.setAttribute("viewBox", "0 0 100 24");
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("aria-hidden", "true");
  spark.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  const head = make("div", { class: "wb-tile-head" }, make("span", { class: "wb-tile-label" }), make("span", { class: "wb-tile-mark" }));
  return make("div", { class: "wb-tile", role: "listitem" }, head, make("div", { class: "wb-tile-value" }), make("div", { class: "wb-tile-detail" }), spark);
}

/** Return the points of a line through the known values, from 0 or below to the highest. */
function sparkline(values) {
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...known), Math.max(...known, 0)];
  const scale = 20 / (high - low || 1);
  return values
    .map((value, i) => (value === null ? null : `${(100 * (i + 60 - values.length)) / 59},${(22 - (value - low) * scale).toFixed(1)}`))
    .filter(Boolean)
    .join(" ");
}

const EVENT_MARKS = { more: "▲", fewer: "▼", change: "◆", failed: "✕", shed: "⊘", slow: "!", error: "✕" };

function createEvents(model, zoomTo) {
  const list = make("ol", { class: "wb-event-list", role: "log", "aria-label": "Events, the latest first", tabindex: 0 });
  const empty = make("p", { class: "wb-empty" }, "Decisions of the autoscaler, changes, failures and shed requests appear here.");
  let shown = "";

  function update() {
    const events = model.get("events");
    empty.hidden = events.length > 0;
    const key = JSON.stringify(events);
    if (key === shown) return;
    shown = key;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    list.replaceChildren(...events.map((event) => eventItem(event, zoomTo)));
    if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  const title = make("h3", {}, "Events");
  return { element: make("aside", { class: "wb-card wb-events" }, title, empty, list), update };
}

function eventItem(event, zoomTo) {
  const time = make("span", { class: "wb-event-time" }, `${event.time_s.toFixed(0)} s`);
  const mark = make("span", { class: "wb-event-mark", "aria-hidden": "true" }, EVENT_MARKS[event.kind]);
  const text = make("span", { class: "wb-event-text" }, make("b", {}, event.title));
  if (event.detail) text.append(make("small", {}, event.detail));
  const attributes = { type: "button", title: "Zoom to this moment", "data-kind": event.kind, "data-key": `${event.time_s} ${event.title}` };
  return make("li", {}, make("button", { ...attributes, onclick: () => zoomTo(event.time_s) }, time, mark, text));
}
