// The cards of the controls: of the load, and of the scaling.

function createLoadCard(model, send) {
  const rate = slider("Rate", "requests/s", (value) => send("set_rate", value));
  const tokens = slider("Output tokens", "", (value) => send("set_output_tokens", value));
  const gaps = make("select", { "aria-label": "Gaps between requests", onchange: () => send("set_burstiness", JSON.parse(gaps.value)) });
  const note = make("p", { class: "wb-note" });
  let choices = "";

  function update() {
    const load = model.get("load");
    const disabled = load.disabled !== "";
    rate.update(load.rate, 0, load.max_rate, load.rate_step, disabled);
    tokens.update(load.output_tokens, 1, load.max_output_tokens, 1, disabled);
    if (choices !== JSON.stringify(load.gaps)) {
      choices = JSON.stringify(load.gaps);
      gaps.replaceChildren(...load.gaps.map(([label, value]) => make("option", { value: JSON.stringify(value) }, label)));
    }
    if (document.activeElement !== gaps) gaps.value = JSON.stringify(load.burstiness);
    gaps.disabled = disabled;
    setText(note, load.disabled || (load.manual ? "Rate set by hand: runs until Stop" : "Follows the plan until you move the rate"));
  }

  const grid = make("div", { class: "wb-fields" }, rate.element, field("Gaps", gaps), tokens.element);
  return { element: card("Load", note, grid), update };
}

/** Return a slider with a number field; both show the same value. */
function slider(label, unit, changed) {
  const name = unit ? `${label}, ${unit}` : label;
  const range = make("input", { type: "range", "aria-label": name });
  const number = make("input", { type: "number", "aria-label": `${name}, as a number` });
  const set = (source, other) => {
    other.value = source.value;
    if (source.value !== "" && source.checkValidity()) changed(Number(source.value));
    else source.reportValidity();
  };
  range.addEventListener("input", () => (number.value = range.value));
  range.addEventListener("change", () => set(range, number));
  number.addEventListener("change", () => set(number, range));
  number.addEventListener("keydown", (event) => event.key === "Enter" && number.blur());

  function update(value, min, max, step, disabled) {
    for (const input of [range, number]) {
      Object.assign(input, { min, max, step: input === number ? "any" : step, disabled });
      if (document.activeElement !== input && !range.matches(":active")) input.value = value;
    }
  }

  return { element: field(label, range, number, unit), update };
}

function field(label, ...parts) {
  const named = parts.filter(Boolean).map((part) => (typeof part === "string" ? make("span", { class: "wb-unit" }, part) : part));
  return make("div", { class: "wb-field" }, make("span", { class: "wb-label" }, label), ...named);
}

function createScalingCard(model, send) {
  const target = make("input", { type: "number", min: 0.01, step: "any", required: true, "aria-label": "target_ongoing_requests" });
  const most = make("input", { type: "number", min: 1, step: 1, required: true, "aria-label": "max_replicas" });
  const spinner = make("span", { class: "wb-spinner", hidden: true });
  const apply = make("button", { type: "submit", class: "wb-button", title: "Change the scaling of the running service; its replicas keep running" }, spinner, make("span", {}, "Apply"));
  const note = make("p", { class: "wb-note" });
  const form = make("form", { class: "wb-fields" }, field("target_ongoing_requests", target), field("max_replicas", most), apply);
  let inForce = "";

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send("rescale", Number(target.value), Number(most.value));
  });

  function update() {
    const scaling = model.get("scaling");
    element.hidden = scaling.max_replicas === undefined;
    if (element.hidden) return;
    const key = `${scaling.target_ongoing_requests} ${scaling.max_replicas}`;
    if (key !== inForce) [target.value, most.value, inForce] = [scaling.target_ongoing_requests, scaling.max_replicas, key];
    spinner.hidden = !scaling.applying;
    apply.disabled = scaling.applying;
    apply.setAttribute("aria-busy", String(scaling.applying));
    setText(apply.lastChild, scaling.applying ? "Applying" : "Apply");
    setText(note, `In force: ${scaling.target_ongoing_requests} requests per replica, ${scaling.min_replicas} to ${scaling.max_replicas} replicas`);
  }

  const element = card("Scaling", note, form);
  return { element, update };
}

function card(title, note, ...parts) {
  const head = make("div", { class: "wb-card-head" }, make("h3", {}, title), note);
  return make("section", { class: "wb-card wb-controls", "aria-label": title }, head, ...parts);
}
