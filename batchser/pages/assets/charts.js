// Every .chart is drawn from the JSON beside it, when it comes near the screen, or all at once for print.
"use strict";
(() => {
  const options = { displayModeBar: false, responsive: true };
  const draw = (element) => {
    if (element.dataset.drawn) return;
    element.dataset.drawn = "yes";
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    Plotly.newPlot(element, figure.data, figure.layout, options);
  };
  const charts = [...document.querySelectorAll(".chart[data-figure]")];
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "400px" });
  charts.forEach((element) => near.observe(element));
  addEventListener("beforeprint", () => {
    charts.forEach(draw);
    charts.forEach((element) => Plotly.relayout(element, { width: Math.min(element.clientWidth, 680) }));
  });
  addEventListener("afterprint", () => charts.forEach((element) => Plotly.relayout(element, { width: null, autosize: true })));
})();
