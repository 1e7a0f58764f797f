// The plots of an inspection: their traces come with the page, their colours from its look.

/** Titles and names are texts and not HTML; the line breaks in our own hover templates stay. */
function readable(trace, index) {
  const paint = look(), colour = paint.many[index % paint.many.length], copy = { ...trace };
  if (copy.name) copy.name = safe(copy.name);
  if (copy.type === "heatmap") {
    copy.x = copy.x.map(safe);
    copy.y = copy.y.map(safe);
    copy.customdata &&= copy.customdata.map((row) => row.map(safe));
    copy.colorbar = { ...copy.colorbar, outlinewidth: 0, tickcolor: paint.faint };
  } else {
    copy.marker = { color: colour, ...copy.marker };
    copy.line = { color: colour, width: 2, ...copy.line };
    copy.customdata &&= copy.customdata.map(safe);
  }
  return copy;
}

for (const chart of DATA.charts) {
  plot(`plot-${chart.name}`, (target) => {
    const extra = { ...chart.layout, height: chart.height, barmode: "overlay", legend: { orientation: "h", y: 1.12, yanchor: "bottom" } };
    const shared = layout(extra);
    if (chart.traces.some((trace) => trace.type === "heatmap")) {
      shared.yaxis.tickfont = { size: 11.5 };
      shared.xaxis.type = shared.yaxis.type = "category";
    }
    Plotly.react(target, chart.traces.map(readable), shared, CONFIG);
  });
}
