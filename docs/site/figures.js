// Draws the figures of a page: each is an element with plotly's data as JSON in it.
(() => {
  const THUMBNAIL_WIDTH = 760; // the width at which a thumbnail is drawn before it is scaled

  const colour = element => getComputedStyle(element).color;

  function draw(element) {
    if (element.classList.contains("drawn")) return;
    element.classList.add("drawn");
    const { data, layout, frames, config } = JSON.parse(element.querySelector("script").textContent);
    const own = { autosize: true, font: { ...layout.font, color: colour(element) } };
    const thumbnail = element.classList.contains("thumbnail");
    const target = thumbnail ? scaled(element, layout.height) : element;
    const options = { ...config, responsive: !thumbnail, staticPlot: thumbnail };
    Plotly.newPlot(target, { data, layout: { ...layout, ...own }, frames, config: options });
  }

  function scaled(element, height) {
    const inner = element.appendChild(document.createElement("div"));
    const scale = element.clientWidth / THUMBNAIL_WIDTH;
    inner.style = `width:${THUMBNAIL_WIDTH}px;height:${height}px;transform:scale(${scale})`;
    element.style.height = `${height * scale}px`;
    return inner;
  }

  // A slide has no width until it is shown, so that its figures wait for this.
  const visible = new IntersectionObserver(entries =>
    entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target))
  );
  const figures = document.querySelectorAll(".figure");
  figures.forEach(element => visible.observe(element));

  const recolour = () => document.querySelectorAll(".figure .js-plotly-plot, .figure.js-plotly-plot")
    .forEach(plot => Plotly.relayout(plot, { "font.color": colour(plot) }));
  new MutationObserver(recolour).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
})();
