// Editing runs: pictures by name, the card at the pointer, and the trade-off of preservation and edit strength.

const ALBUM = JSON.parse(byId("album").textContent);
const tasks = () => group().tasks;
const precise = (id, value) => fixed(value, SCORE[id].digits);
const ENDS = ["copy", "regenerate"];
const pick = { task: 0, left: "source", right: null }; // sides: source, truth, or a run's index

/** A picture, or a note that there is none. Small ones show their pixels. */
function picture(name, alt) {
  if (!name || !ALBUM[name]) return make("div", { class: "missing" }, "no picture");
  const image = make("img", { class: "pic", src: ALBUM[name], alt, draggable: false });
  const sharpen = () => image.classList.toggle("pixels", image.naturalWidth > 0 && image.naturalWidth <= 64);
  image.addEventListener("load", () => { sharpen(); image.dataset.drawn = "true"; });
  return image;
}

const taskName = (task) => `${task.image}, ${task.edit}${seedsShown().length > 1 ? `, seed ${task.seed}` : ""}`;
const unique = (values) => [...new Set(values)];
const imagesShown = () => unique(tasks().map((task) => task.image));
const seedsShown = () => unique(tasks().map((task) => task.seed));

// The card at the pointer

const card = byId("card");
const SHOWN_ON_CARD = 3;

/** The chosen picture and some others, apart from each other. */
function cardTasks() {
  const count = tasks().length, others = [1, 2].map((part) => (pick.task + Math.round((part * count) / SHOWN_ON_CARD)) % count);
  return unique([pick.task, ...others]).slice(0, Math.min(SHOWN_ON_CARD, count));
}

function showCard(setting, event, ids) {
  const run = DATA.runs[setting.runs[0]];
  const facts = ids.filter((id) => setting.means[id]).map((id) => {
    const [value, low, high] = setting.means[id];
    return make("span", {}, `${SCORE[id].label} `, make("b", {}, precise(id, value)), low === null ? "" : ` (${precise(id, low)} to ${precise(id, high)})`);
  });
  card.replaceChildren(
    make("strong", {}, setting.label), make("div", { class: "facts" }, facts),
    make("div", { class: "triple-head" }, make("span", {}, "source"), make("span", {}, "edited"), make("span", {}, "target")),
    make("div", { class: "triples" }, cardTasks().map((place) => {
      const made = run.made[place], task = tasks()[place];
      return make("div", {}, make("div", { class: "triple" }, picture(made.source, "source"), picture(made.pic, "edited"), picture(task.truth, "target")), make("p", {}, taskName(task)));
    })),
  );
  card.hidden = false;
  const { width, height } = card.getBoundingClientRect(), gap = 18;
  const x = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
  card.style.left = `${Math.max(6, Math.min(x, innerWidth - width - 6))}px`;
  card.style.top = `${Math.max(6, Math.min(event.clientY - height / 2, innerHeight - height - 6))}px`;
}
function hideCard() { card.hidden = true; }
addEventListener("scroll", hideCard, { passive: true });

// The curve

const curve = { x: "clip_directional", y: "clip_image", bars: false };
const measuredScores = () => DATA.scores.filter(({ id }) => settingsShown().filter((setting) => setting.means[id]).length > 0);

function curveControls() {
  const set = (change) => { Object.assign(curve, change); draw("plot-curve"); };
  const options = measuredScores().map(({ id, label }) => [id, label]);
  for (const [axis, wanted] of [["x", "clip_directional"], ["y", "clip_image"]]) {
    if (!options.some(([id]) => id === curve[axis])) curve[axis] = options.some(([id]) => id === wanted) ? wanted : options[0]?.[0];
  }
  byId("curve-controls").replaceChildren(
    choice("Right: edit strength", options, curve.x, (x) => set({ x })), choice("Up: preservation", options, curve.y, (y) => set({ y })),
    tick("95% intervals over images", curve.bars, (bars) => set({ bars })),
    make("button", { type: "button", onclick: () => { set({ x: "clip_directional", y: "clip_image" }); curveControls(); } }, "As in the paper"),
  );
}

const at = (index, id) => DATA.settings[index].means[id]?.[0] ?? null;
const KEY_NAMES = { image_guidance_scale: "image guidance", control_scale: "control scale", guidance_scale: "guidance" };

function drawCurve(target) {
  const paint = look(), { x, y } = curve, traces = [];
  const lines = group().lines.map((line) => ({ ...line, settings: line.settings.map((index, place) => [index, line.ticks[place]]).filter(([index]) => at(index, x) !== null && at(index, y) !== null) })).filter((line) => line.settings.length);
  lines.forEach((line, place) => {
    const end = ENDS.includes(line.method), colour = end ? paint.faint : paint.many[place % paint.many.length], indices = line.settings.map(([index]) => index);
    const bars = (axis) => ({ type: "data", visible: curve.bars, symmetric: false, color: colour, thickness: 1, width: 3,
      array: indices.map((index) => DATA.settings[index].means[axis][2] - at(index, axis)), arrayminus: indices.map((index) => at(index, axis) - DATA.settings[index].means[axis][1]) });
    traces.push({
      type: "scatter", mode: indices.length > 1 ? "lines+markers+text" : "markers+text", x: indices.map((index) => at(index, x)), y: indices.map((index) => at(index, y)), customdata: indices,
      name: safe(cut(line.label, 44)) + (line.key ? `<br><i>along ${safe(KEY_NAMES[line.key] || line.key)}</i>` : ""), hoverinfo: "none",
      text: line.settings.map(([, tick]) => safe(end ? line.method : tick)), textposition: "top center", textfont: { size: 10.5, color: paint.faint }, cliponaxis: false,
      line: { color: colour, width: 2 }, marker: { color: colour, size: end ? 13 : 9, symbol: end ? "star" : SYMBOLS[place % SYMBOLS.length] }, error_x: bars(x), error_y: bars(y),
    });
  });
  const copied = group().copied, shapes = [], annotations = [];
  if (copied[x] && copied[y] && !lines.some((line) => line.method === "copy")) traces.push({
    type: "scatter", mode: "markers+text", name: "copy", x: [copied[x][0]], y: [copied[y][0]], text: ["copy"], textposition: "top center", textfont: { size: 10.5, color: paint.faint },
    hoverinfo: "none", cliponaxis: false, marker: { color: paint.faint, size: 13, symbol: "star" },
  });
  else if (copied[y] && !lines.some((line) => line.method === "copy")) {
    shapes.push({ type: "line", layer: "below", name: "copy", xref: "paper", x0: 0, x1: 1, y0: copied[y][0], y1: copied[y][0], line: { color: paint.floor, width: 1.2, dash: "dot" } });
    annotations.push({ text: `copy ${precise(y, copied[y][0])}${copied[x] ? "" : ", which has no " + safe(SCORE[x].label)}`, showarrow: false, xref: "paper", x: 1, xanchor: "right", y: copied[y][0], yanchor: "bottom", font: { size: 11, color: paint.faint } });
  }
  if (!traces.length) annotations.push({ text: "No setting has both scores.", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 });
  const title = (id) => `${SCORE[id].label}${encoders()}${SCORE[id].higher === null ? "" : SCORE[id].higher ? ", higher is better" : ", lower is better"}`;
  Plotly.react(target, traces, layout({ xaxis: { title: { text: title(x) } }, yaxis: { title: { text: title(y) } }, shapes, annotations, showlegend: true, legend: { title: { text: "method" }, font: { size: 12 } }, uirevision: `${page.group} ${x} ${y}` }), CONFIG);
  if (target.dataset.watched) return;
  target.dataset.watched = "true";
  const settingOf = (point) => DATA.settings[point.customdata];
  target.on("plotly_hover", ({ points, event }) => settingOf(points[0]) && showCard(settingOf(points[0]), event, unique([curve.x, curve.y, "psnr_truth", "happened"]).filter((id) => SCORE[id])));
  target.on("plotly_unhover", hideCard);
  target.on("plotly_click", ({ points }) => { hideCard(); if (settingOf(points[0])) openRun(settingOf(points[0]).runs[0]); });
  target.addEventListener("mouseleave", hideCard);
}
