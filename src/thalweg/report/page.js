(function () {
  "use strict";
  var NARROW = 520, PAPER = 660, FLAT = 0.6, LESS = 0.85;
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var colours = JSON.parse(document.getElementById("colours").textContent);
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var linking = false;

  function axes(layout) {
    return Object.keys(layout).filter(function (key) { return /^[xy]axis\d*$/.test(key); });
  }

  function layoutFor(layout, isDark, narrow) {
    var ink = isDark ? "#e6eaf0" : "#1c2430", grid = isDark ? "#2d3643" : "#e3e8ee";
    var change = {
      "font.color": ink, "font.size": narrow ? 11 : 13,
      "hoverlabel.bgcolor": isDark ? "#1b212a" : "#ffffff", "hoverlabel.bordercolor": grid, "hoverlabel.font.color": ink,
      "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": "#8a94a3", "modebar.activecolor": ink
    };
    axes(layout).forEach(function (key) {
      change[key + ".gridcolor"] = grid;
      change[key + ".linecolor"] = grid;
    });
    return change;
  }

  // The legend's rows set the upper margin; once it wraps, its columns are as wide as its widest entry. Plotly's own
  // margin comes a moment later, which is too late for a page that is being printed.
  function topFor(data, width, narrow) {
    var names = data.filter(function (trace) { return trace.showlegend !== false; })
      .map(function (trace) { return 50 + (narrow ? 6.3 : 7.4) * trace.name.length; });
    var sum = names.reduce(function (a, b) { return a + b; }, 0), widest = Math.max.apply(null, names);
    var room = width - (narrow ? 64 : 80);
    var rows = sum <= room ? 1 : Math.ceil(names.length / Math.max(1, Math.floor(room / widest)));
    return 22 + rows * (narrow ? 17 : 20);
  }

  function inkFor(data, isDark) {
    var chosen = colours[isDark ? 1 : 0], paint = [], which = [];
    data.forEach(function (trace, i) {
      if (typeof trace.meta === "number") { paint.push(chosen[trace.meta]); which.push(i); }
    });
    return { change: { "line.color": paint, "marker.color": paint }, which: which };
  }

  function draw(div) {
    var spec = JSON.parse(document.getElementById(div.dataset.spec).textContent);
    var narrow = div.clientWidth < NARROW, change = layoutFor(spec.layout, dark.matches, narrow);
    div.dataset.height = spec.layout.height;
    spec.layout.margin.t = topFor(spec.data, div.clientWidth, narrow);
    if (narrow) { spec.layout.margin.l = 50; spec.layout.margin.r = 14; }
    axes(spec.layout).forEach(function (key) {
      // On a phone a finger on a figure scrolls the page.
      if (narrow) { spec.layout[key].fixedrange = true; }
      if (key[0] === "x" && div.dataset.axis) { spec.layout[key].unifiedhovertitle = { text: "step %{x}" }; }
    });
    var ink = inkFor(spec.data, dark.matches);
    ink.which.forEach(function (i, n) {
      ["line", "marker"].forEach(function (part) {
        if (spec.data[i][part]) { spec.data[i][part].color = ink.change["line.color"][n]; }
      });
    });
    return Plotly.newPlot(div, spec.data, spec.layout, {
      responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
      modeBarButtons: [["toImage", "resetScale2d"]]
    })
      .then(function () { return Plotly.relayout(div, change); })
      .then(function () {
        if (div.dataset.axis) { div.on("plotly_relayout", function (event) { link(div, event); }); }
        div.dataset.ready = "yes";
      });
  }

  // The figures of a run share the step axis: zooming in one of them zooms in all.
  function link(source, event) {
    if (linking) { return; }
    var moved = Object.keys(event).some(function (key) { return /^xaxis\d*\.(range|autorange)/.test(key); });
    if (!moved) { return; }
    linking = true;
    var range = source.layout.xaxis.range.slice();
    Promise.all(plots.filter(function (div) { return div !== source && div.dataset.axis; }).map(function (div) {
      var change = {};
      axes(div.layout).forEach(function (key) { if (key[0] === "x") { change[key + ".range"] = range.slice(); } });
      return Plotly.relayout(div, change);
    })).then(function () { linking = false; }, function () { linking = false; });
  }

  function all(isDark, width) {
    plots.forEach(function (div) {
      var change = layoutFor(div.layout, isDark, (width || div.clientWidth) < NARROW), ink = inkFor(div.data, isDark);
      // On paper figures are flatter, so that two or three of a run fit on a page.
      var flat = !div.dataset.axis ? LESS : div.dataset.height > 500 ? 0.75 : FLAT;
      var height = Math.round(div.dataset.height * (width ? flat : 1));
      div.style.height = height + "px";
      change.height = height;
      change["margin.t"] = topFor(div.data, width || div.clientWidth, (width || div.clientWidth) < NARROW);
      if (width) { change["font.size"] = 11; }
      change.width = width || null;
      change.autosize = !width;
      Plotly.update(div, ink.change, change, ink.which);
    });
  }

  plots.forEach(draw);
  dark.addEventListener("change", function () { all(dark.matches); });
  window.addEventListener("beforeprint", function () { all(false, PAPER); });
  window.addEventListener("afterprint", function () { all(dark.matches); });
})();
