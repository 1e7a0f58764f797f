// The histograms of sizes and aspect ratios.

const data = JSON.parse(document.getElementById("data").textContent);
const isDark = matchMedia("(prefers-color-scheme: dark)");

function draw(id, title, found) {
  const { edges, counts } = found, ink = isDark.matches ? "#e9e8e4" : "#1b1c20", line = isDark.matches ? "#34373e" : "#dddbd4";
  const single = edges.length === 2 && edges[0] === edges[1];
  const middle = single ? [edges[0]] : counts.map((_, place) => (edges[place] + edges[place + 1]) / 2);
  const text = single ? [`${edges[0]}`] : counts.map((_, place) => `${edges[place]} to ${edges[place + 1]}`);
  const width = single ? Math.max(edges[0] * 0.1, 0.1) : edges[1] - edges[0];
  const range = single ? [edges[0] - 5 * width, edges[0] + 5 * width] : [edges[0], edges.at(-1)];
  Plotly.react(id, [{ type: "bar", x: middle, y: counts, width, text, textposition: "none", hovertemplate: "%{text}: %{y} images<extra></extra>",
    marker: { color: isDark.matches ? "#86b4ff" : "#1f5fbf" } }], {
    margin: { l: 48, r: 12, t: 12, b: 44 }, bargap: 0, paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink, size: 12 },
    xaxis: { title: { text: title }, gridcolor: line, zeroline: false, range }, yaxis: { title: { text: "images" }, gridcolor: line, rangemode: "tozero" },
  }, { responsive: true, displaylogo: false, displayModeBar: false });
}

function drawAll() {
  draw("plot-longer", "longer side, pixels", data.longer);
  draw("plot-aspect", "width / height", data.aspect);
}

drawAll();
isDark.addEventListener("change", drawAll);
