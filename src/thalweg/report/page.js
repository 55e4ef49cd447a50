(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  function colours(isDark) {
    return isDark ? { ink: "#e6eaf0", grid: "#2d3643", box: "#1b212a" } : { ink: "#1c2430", grid: "#e3e8ee", box: "#ffffff" };
  }
  function restyle(layout, isDark, narrow) {
    var c = colours(isDark), out = { "font.color": c.ink, "font.size": narrow ? 11 : 13, "hoverlabel.bgcolor": c.box, "hoverlabel.font.color": c.ink };
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) { out[key + ".gridcolor"] = c.grid; out[key + ".linecolor"] = c.grid; }
    });
    return out;
  }
  plots.forEach(function (div) {
    var spec = JSON.parse(document.getElementById(div.dataset.spec).textContent);
    var narrow = div.clientWidth < 520;
    if (narrow) { spec.layout.margin.l = 46; spec.layout.margin.r = 6; }
    Plotly.newPlot(div, spec.data, spec.layout, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" })
      .then(function () { return Plotly.relayout(div, restyle(div.layout, dark.matches, narrow)); })
      .then(function () { div.dataset.ready = "yes"; });
  });
  function all(isDark, width) {
    plots.forEach(function (div) {
      var change = restyle(div.layout, isDark, (width || div.clientWidth) < 520);
      if (width) { change.width = width; change.autosize = false; } else { change.width = null; change.autosize = true; }
      Plotly.relayout(div, change);
    });
  }
  dark.addEventListener("change", function () { all(dark.matches); });
  window.addEventListener("beforeprint", function () { all(false, 680); });
  window.addEventListener("afterprint", function () { all(dark.matches); });
})();
