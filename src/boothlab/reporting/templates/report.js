"use strict";
// What every part of the page uses: the data, small makers of elements, the theme, tables, and the plots' common ground.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SCORE = Object.fromEntries(DATA.scores.map((score) => [score.id, score]));
const byId = (id) => document.getElementById(id);
const fixed = (value, digits = 4) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits));
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const measured = (values) => values.filter((value) => value !== null && value !== undefined);
const say = (text) => { byId("said").textContent = text; };

/** An element: attributes and properties by name, children as nodes or as text. Text is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A labelled <select>; `options` are [value, text] pairs. */
function choice(label, options, value, change) {
  const select = make("select", { onchange: () => change(select.value) },
    options.map(([key, text]) => make("option", { value: String(key), selected: String(key) === String(value) }, text)));
  return make("label", {}, label, select);
}

/** Radio buttons in a row, of which one is chosen. */
function segments(name, label, options, value, change) {
  return make("fieldset", { class: "segments" }, make("legend", {}, label), options.map(([key, text]) =>
    make("label", {}, make("input", { type: "radio", name, value: key, checked: key === value, onchange: () => change(key) }), make("span", {}, text))));
}

function tick(label, value, change) {
  const box = make("input", { type: "checkbox", checked: value, onchange: () => change(box.checked) });
  return make("label", { class: "tick" }, box, label);
}

// The theme and the group of scores that is shown

const page = { group: 0, kept: null };
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";

function nameTheme() {
  byId("theme-name").textContent = isDark() ? "Light" : "Dark";
}

function storage(key, value) {
  try {
    return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value);
  } catch {
    return null; // a browser may forbid it to files; the choice then lasts as long as the page
  }
}

const wished = storage("boothlab-theme");
if (wished === "dark" || wished === "light") document.documentElement.dataset.theme = wished;
nameTheme();
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  storage("boothlab-theme", document.documentElement.dataset.theme);
  nameTheme();
  redraw();
});
prefersDark.addEventListener("change", () => { nameTheme(); redraw(); });

function showGroup(index) {
  page.group = index;
  page.kept = null;
  for (const part of document.querySelectorAll(".group")) part.hidden = Number(part.dataset.group) !== index;
}
const runsShown = () => DATA.runs.filter((run) => DATA.settings[run.setting].group === page.group);
const settingsShown = () => DATA.settings.filter((setting) => setting.group === page.group);
const group = () => DATA.groups[page.group];
const encoders = () => (group().encoders ? ` (${group().encoders} encoders)` : "");
/** The varied keys that have more than one value among the runs shown, those that tell settings apart first. */
function keysShown() {
  const varied = DATA.keys.map((key, index) => ({ ...key, index }))
    .filter((key) => new Set(settingsShown().map((setting) => setting.values[key.index])).size > 1);
  const telling = varied.filter((key) => key.telling);
  return telling.length ? telling : varied;
}
const scoresShown = () => DATA.scores.filter((score) => runsShown().some((run) => run.scores[score.id]));

DATA.settings.forEach((setting, index) => { setting.index = index; });
DATA.runs.forEach((run, index) => {
  run.index = index;
  run.label = DATA.settings[run.setting].label;
});

// Colours of plots: told apart by people who see colours differently, and by their order where values have one

const LOOK = {
  light: {
    ink: "#1b1c20", faint: "#5c5f67", grid: "#e8e6df", card: "#ffffff", warn: "#b45f00", quiet: "#c9c7c0", floor: "#5c5f67",
    many: ["#1f6fc4", "#d4621c", "#2a8a4b", "#8d3fae", "#c2304f", "#0f8494", "#8c6d00", "#5b5e66"],
    scale: [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 152, 120], [80, 170, 60], [168, 175, 20]],
  },
  dark: {
    ink: "#e9e8e4", faint: "#a2a5ad", grid: "#2c2f36", card: "#1b1d21", warn: "#f5b969", quiet: "#4a4d55", floor: "#a2a5ad",
    many: ["#77b2ff", "#ffa066", "#72d68f", "#d69cf5", "#ff8fa3", "#62d2e0", "#e8ca55", "#c6c9d0"],
    scale: [[124, 92, 190], [86, 124, 200], [52, 160, 180], [60, 195, 150], [140, 215, 90], [250, 228, 60]],
  },
};
const look = () => (isDark() ? LOOK.dark : LOOK.light);
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "pentagon", "star", "hexagon"];

/** The colour at a share (0 to 1) of the ordered scale. */
function shade(share) {
  const stops = look().scale, place = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[low].map((value, channel) => Math.round(value + (stops[low + 1][channel] - value) * (place - low)));
  return `rgb(${mixed.join(",")})`;
}

/** What may colour runs: name, values in order, and the value of a run. */
function colourings() {
  const found = keysShown().map((key) => ({
    id: `key:${key.id}`, name: key.name, values: key.values, ordered: key.numeric,
    of: (run) => DATA.settings[run.setting].values[key.index],
  }));
  const seeds = [...new Set(runsShown().map((run) => run.seed))].sort((a, b) => a - b).map(String);
  if (seeds.length > 1) found.push({ id: "seed", name: "seed", values: seeds, ordered: false, of: (run) => String(run.seed) });
  return found.length ? found : [{ id: "none", name: "runs", values: ["all runs"], ordered: false, of: () => "all runs" }];
}

/** The colour and symbol of each value of a colouring. */
function painted(colouring) {
  const values = colouring.values, ordered = (colouring.ordered && values.length > 2) || values.length > LOOK.light.many.length;
  return new Map(values.map((value, index) => [value, {
    colour: ordered ? shade(index / Math.max(values.length - 1, 1)) : look().many[index % look().many.length],
    symbol: SYMBOLS[index % SYMBOLS.length],
  }]));
}

// Tables: sorting, the two readings, copying

function sortValue(cell) {
  if (!cell) return "";
  const text = cell.dataset.sort ?? cell.textContent.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** Numbers by size, then texts in natural order; what is missing stays last either way. */
function inOrder(a, b, sign) {
  const missing = (value) => value === "" || value === "–" || value === "nan";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const first = head.classList.contains("number") ? "descending" : "ascending";
  const other = first === "descending" ? "ascending" : "descending";
  const way = head.getAttribute("aria-sort") === first ? other : first;
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way);
  const rows = [...body.rows].map((row) => [row, sortValue(row.cells[column])]);
  rows.sort((a, b) => inOrder(a[1], b[1], way === "ascending" ? 1 : -1));
  body.append(...rows.map(([row]) => row));
}

const plain = (cell) => {
  const copy = cell.cloneNode(true);
  for (const part of copy.querySelectorAll(".unseen, .way")) part.remove();
  return copy.textContent.replace(/\s+/g, " ").trim();
};

/** The rows of a table as text, without the column of buttons; cells that span columns are repeated as blanks. */
function cellsOf(table) {
  return [...table.rows].map((row) => [...row.cells].filter((cell) => !cell.classList.contains("go"))
    .flatMap((cell) => [{ text: plain(cell), best: cell.classList.contains("best") }, ...Array(cell.colSpan - 1).fill({ text: "" })]));
}

function asCsv(table) {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return cellsOf(table).map((row) => row.map((cell) => quoted(cell.text)).join(",")).join("\n") + "\n";
}

function asLatex(table) {
  const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "–": "--", "→": "$\\to$", "×": "$\\times$", "…": "\\dots{}", "·": "$\\cdot$" };
  const safe = (text) => text.replace(/[\\~^±–→×…·]|[&%$#_{}]/g, (sign) => special[sign] || `\\${sign}`);
  const rows = cellsOf(table), width = rows[0].length, heads = [...table.tHead.rows[0].cells].filter((cell) => !cell.classList.contains("go"));
  const lines = rows.map((row) => row.slice(0, width).map((cell) => (cell.best ? `\\textbf{${safe(cell.text)}}` : safe(cell.text))).join(" & ") + " \\\\");
  const columns = heads.map((cell) => (cell.classList.contains("number") ? "r" : "l")).join("");
  return [`\\begin{tabular}{${columns}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = make("textarea", { style: "position:fixed;opacity:0" });
    box.value = text;
    (document.querySelector("dialog[open]") || document.body).append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  say(`${what} copied`);
}

function copyFrom(button, text, what) {
  copy(text, what);
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1200);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.closest("table.sortable thead")) sortBy(button.closest("th"));
  else if (button.dataset.copy) {
    const table = button.closest(".study").querySelector("[data-reading]:not([hidden]) table.results");
    copyFrom(button, button.dataset.copy === "csv" ? asCsv(table) : asLatex(table), "The table");
  } else if (button.dataset.run !== undefined) openRun(Number(button.dataset.run), button.dataset.step);
});

// One reading at a time, the same in all tables: two tables are compared by the same one.
document.addEventListener("change", ({ target }) => {
  if (!target.name?.startsWith("reading-")) return;
  for (const part of document.querySelectorAll("[data-reading]")) part.hidden = part.dataset.reading !== target.value;
  for (const radio of document.querySelectorAll('[name^="reading-"]')) radio.checked = radio.value === target.value;
});

// Plots: drawn when they come near, drawn again when the look or the choice changes

const plots = new Map(); // id → { draw, drawn }

function plot(id, draw) {
  plots.set(id, { draw, drawn: false });
  near.observe(byId(id));
}

let plotly = null;
function withPlotly() {
  plotly ??= new Promise((resolve) => {
    const start = () => {
      const script = make("script");
      script.textContent = byId("plotly").textContent;
      document.head.append(script);
      document.documentElement.dataset.plotly = "ready";
      resolve(window.Plotly);
    };
    // Four megabytes of script: let the page be seen and used first.
    const later = () => requestAnimationFrame(() => setTimeout(start, 0));
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", later, { once: true });
    else later();
  });
  return plotly;
}

async function draw(id) {
  const found = plots.get(id);
  await withPlotly();
  found.draw(byId(id));
  found.drawn = true;
  byId(id).classList.add("drawn");
}

function redraw() {
  for (const [id, found] of plots) if (found.drawn) draw(id);
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      near.unobserve(target);
      draw(target.id);
    }
  }
}, { rootMargin: "500px" });

const CONFIG = {
  responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  toImageButtonOptions: { format: "svg", filename: "boothlab" },
};

/** The layout that all plots share, in the colours of the theme. */
function layout(extra) {
  const paint = look(), axis = { gridcolor: paint.grid, zeroline: false, linecolor: paint.grid, tickcolor: paint.grid, automargin: true, title: { standoff: 12 } };
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: paint.ink },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    hoverlabel: { bgcolor: paint.card, bordercolor: paint.faint, font: { family: getComputedStyle(document.body).fontFamily, color: paint.ink, size: 12.5 }, align: "left" },
    margin: { l: 70, r: 24, t: 28, b: 64 },
    legend: { font: { size: 12 }, title: { font: { size: 12 } }, tracegroupgap: 4, bgcolor: "rgba(0,0,0,0)" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: paint.faint, activecolor: paint.ink },
    ...extra,
    xaxis: { ...axis, ...extra.xaxis, title: { ...axis.title, ...extra.xaxis?.title } },
    yaxis: { ...axis, ...extra.yaxis, title: { ...axis.title, ...extra.yaxis?.title } },
  };
}

/** Plotly reads a little HTML in texts; names and values from configs must show as they are. */
const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);

// Printing: paper is light, and everything is on it

let before = null;
addEventListener("beforeprint", () => {
  before = { theme: document.documentElement.dataset.theme, closed: [...document.querySelectorAll("main details:not([open])")] };
  document.documentElement.dataset.theme = "light";
  for (const part of before.closed) part.open = true;
  if (window.Plotly) for (const id of plots.keys()) draw(id);
});
addEventListener("afterprint", () => {
  if (!before) return;
  if (before.theme) document.documentElement.dataset.theme = before.theme;
  else delete document.documentElement.dataset.theme;
  for (const part of before.closed) part.open = false;
  before = null;
  redraw();
});

// Where the reader is

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const link = document.querySelector(`#nav a[href="#${target.id}"]`);
    if (isIntersecting) {
      for (const other of document.querySelectorAll("#nav a[aria-current]")) other.removeAttribute("aria-current");
      link?.setAttribute("aria-current", "true");
    }
  }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const section of document.querySelectorAll("main > section")) seen.observe(section);
