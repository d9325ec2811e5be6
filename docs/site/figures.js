// Draws the figures of a page: each is an element with plotly's data as JSON in it.
(() => {
  const THUMBNAIL = { height: 230, showlegend: false, margin: { l: 36, r: 8, t: 8, b: 28 } };

  const colour = element => getComputedStyle(element).color;

  function draw(element) {
    if (element.classList.contains("drawn")) return;
    element.classList.add("drawn");
    const { data, layout, frames, config } = JSON.parse(element.querySelector("script").textContent);
    const thumbnail = element.classList.contains("thumbnail");
    const own = { autosize: true, font: { ...layout.font, color: colour(element) } };
    if (thumbnail) {
      Object.assign(own, THUMBNAIL, { title: undefined, annotations: [] });
      own.font.size = 9;
      element.style.height = `${THUMBNAIL.height}px`;
    }
    const options = { ...config, responsive: true, staticPlot: thumbnail };
    Plotly.newPlot(element, { data, layout: { ...layout, ...own }, frames, config: options });
  }

  // A slide has no width until it is shown, so that its figures wait for this.
  const visible = new IntersectionObserver(entries =>
    entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target))
  );
  const figures = document.querySelectorAll(".figure");
  figures.forEach(element => visible.observe(element));

  const recolour = () => document.querySelectorAll(".figure.drawn").forEach(element =>
    Plotly.relayout(element, { "font.color": colour(element) })
  );
  new MutationObserver(recolour).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
})();
