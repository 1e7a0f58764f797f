"use strict";
// Draws the page's plots in the page's own colours, and again when the look changes.

const FIGURES = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

/** The colour behind a name such as --accent, as the page shows it now. */
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Plain data with the names of colours filled in. */
function coloured(value) {
  if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one)]));
  return value;
}

function drawAll() {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  for (const [id, figure] of Object.entries(FIGURES)) {
    const place = document.getElementById(id);
    if (!place) continue;
    const layout = coloured(figure.layout || {});
    const plain = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { t: 30, r: 20, b: 50, l: 60 },
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 }, hoverlabel: { font: { size: 12 } },
    };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) layout[key] = { ...axis, ...layout[key] };
    place.classList.add("drawn");
    Plotly.react(place, coloured(figure.data), { ...plain, ...layout }, { displaylogo: false, responsive: true });
  }
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  document.getElementById("theme-name").textContent = isDark() ? "Light" : "Dark";
  drawAll();
});
document.getElementById("theme-name").textContent = isDark() ? "Light" : "Dark";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
