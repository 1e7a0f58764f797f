// Two pictures under one slider, and the grid of source, condition, edit and target.

// Sides: what may stand left or right

const runLabel = (run) => run.label + (DATA.settings[run.setting].runs.length > 1 ? `, run seed ${run.seed}` : "");

function sideOptions() {
  const truth = tasks().some((task) => task.truth) ? [["truth", "target, the truth"]] : [];
  return [["source", "source"], ...truth, ...runsShown().map((run) => [String(run.index), runLabel(run)])];
}

/** What stands on a side: its name, its picture, and what was made if it is a run's. */
function sideOf(value, other) {
  const task = tasks()[pick.task], drawer = DATA.runs[Number(other)]; // some methods draw the source themselves
  if (value === "source" && drawer?.own) return { label: `source, drawn by ${drawer.label}`, pic: drawer.made[pick.task].source };
  if (value === "source") return { label: "source", pic: task.source };
  if (value === "truth") return { label: "target", pic: task.truth };
  const run = DATA.runs[Number(value)], made = run.made[pick.task];
  return { label: runLabel(run), pic: made.pic, made, run };
}

/** At first the setting that is nearest to the targets, or else the first that is no end. */
function startSides() {
  const free = settingsShown().filter((setting) => !ENDS.includes(setting.method)), all = free.length ? free : settingsShown();
  const best = all.reduce((one, other) => ((other.means.psnr_truth?.[0] ?? -1) > (one.means.psnr_truth?.[0] ?? -1) ? other : one));
  Object.assign(pick, { task: 0, left: "source", right: String(best.runs[0]) });
}

function openRun(index) {
  if (DATA.settings[DATA.runs[index].setting].group !== page.group) return;
  pick.right = String(index);
  if (pick.left === pick.right) pick.left = "source";
  grid.setting = String(index);
  everything();
  byId("compare").scrollIntoView();
}

// Which picture

function findTask(change) {
  const now = { ...tasks()[pick.task], ...change }, fits = (task, keys) => keys.every((key) => task[key] === now[key]), changed = Object.keys(change);
  for (const keys of [["image", "edit", "seed"], unique([...changed, "image", "edit"]), unique([...changed, "edit"]), unique([...changed, "image"]), changed]) {
    const found = tasks().findIndex((task) => fits(task, keys));
    if (found >= 0) return found;
  }
  return pick.task;
}

function compareControls() {
  const task = tasks()[pick.task], go = (place) => { pick.task = place; everything(); }, step = (by) => go((pick.task + by + tasks().length) % tasks().length);
  const sides = sideOptions(), seeds = seedsShown();
  const edits = unique(tasks().filter((one) => one.image === task.image).map((one) => one.edit));
  byId("compare-controls").replaceChildren(
    choice("Image", imagesShown().map((image) => [image, image]), task.image, (image) => go(findTask({ image }))),
    choice("Edit", edits.map((edit) => [edit, edit]), task.edit, (edit) => go(findTask({ edit }))),
    ...(seeds.length > 1 ? [choice("Seed", seeds.map((seed) => [seed, String(seed)]), task.seed, (seed) => go(findTask({ seed: Number(seed) })))] : []),
    make("span", { class: "pair-buttons" }, make("button", { type: "button", id: "previous", onclick: () => step(-1) }, "‹ previous"), make("button", { type: "button", id: "next", onclick: () => step(1) }, "next ›")),
    choice("Left", sides, pick.left, (left) => { pick.left = left; everything(); }), choice("Right", sides, pick.right, (right) => { pick.right = right; everything(); }),
    make("button", { type: "button", id: "swap", onclick: () => { [pick.left, pick.right] = [pick.right, pick.left]; everything(); } }, "Swap"),
  );
}

// The slider

let cutAt = 50;

function showStage() {
  const stage = byId("stage"), task = tasks()[pick.task], [left, right] = [sideOf(pick.left, pick.right), sideOf(pick.right, pick.left)];
  const layer = (side, where) => {
    const found = picture(side.pic, `${side.label}: ${taskName(task)}`);
    if (found.tagName !== "IMG") return make("div", { class: `none of-${where}` }, `no picture of ${side.label}`);
    found.classList.add(where);
    found.classList.remove("pic");
    found.addEventListener("load", () => { stage.style.aspectRatio = `${found.naturalWidth} / ${found.naturalHeight}`; });
    return found;
  };
  const input = make("input", { type: "range", min: "0", max: "100", step: "1", "aria-label": `Between ${left.label} on the left and ${right.label} on the right`, oninput: () => moveBar(input) });
  input.value = String(cutAt);
  const focused = stage.contains(document.activeElement);
  stage.replaceChildren(layer(right, "right"), layer(left, "left"), make("div", { class: "bar" }), input);
  moveBar(input);
  if (focused) input.focus();
  byId("sides").replaceChildren(make("span", {}, make("b", {}, "left"), left.label), make("span", {}, make("b", {}, "right"), right.label));
}

function moveBar(input) {
  cutAt = Number(input.value);
  byId("stage").style.setProperty("--cut", `${cutAt}%`);
  input.setAttribute("aria-valuetext", `${cutAt} percent of ${sideOf(pick.left, pick.right).label}`);
}

function showFacts() {
  const task = tasks()[pick.task], sides = [sideOf(pick.left, pick.right), sideOf(pick.right, pick.left)], made = sides.filter((side) => side.made);
  const asked = [["instruction", task.instruction], ["before", task.captions[0]], ["after", task.captions[1]]].filter(([, text]) => text);
  for (const side of made) {
    const { fact, steps, notes, absent } = side.made, name = made.length > 1 ? `${side.label}: ` : "";
    if (fact) asked.push([`${name}fact`, make("span", {}, `asked for ${fact[0]}, read `, make("span", { class: fact[0] === fact[1] ? "yes" : "no" }, `${fact[1]} ${fact[0] === fact[1] ? "✓" : "✗"}`))]);
    asked.push([`${name}steps`, String(steps)]);
    if (notes) asked.push([`${name}notes`, notes.join("; ")]);
    for (const why of unique(Object.values(absent || {}))) {
      const lacking = Object.keys(absent).filter((id) => absent[id] === why).map((id) => SCORE[id].label);
      asked.push([`${name}absent`, make("span", { title: lacking.join(", ") }, `${cut(lacking.join(", "), 90)}: ${why}`)]);
    }
  }
  const ids = DATA.scores.map(({ id }) => id).filter((id) => made.some((side) => side.made.scores[id] !== undefined));
  const table = make("table", { class: "plain" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "score of this picture"), made.map((side) => make("th", { scope: "col", class: "number" }, cut(side.label, 40))))),
    make("tbody", {}, ids.map((id) => make("tr", {}, make("th", { scope: "row", title: SCORE[id].about }, SCORE[id].label, SCORE[id].higher === null ? null : make("span", { class: "way" }, SCORE[id].higher ? "↑" : "↓")), made.map((side) => make("td", { class: "number" }, precise(id, side.made.scores[id])))))));
  byId("compare-facts").replaceChildren(make("dl", { class: "asked" }, asked.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])), ...(ids.length ? [make("div", { class: "scroll" }, table)] : []));
}

// The grid

const grid = { rows: "settings", method: "", setting: null };
const GRID_SCORES = ["clip_directional", "clip_image", "psnr_truth", "happened"];

function gridControls() {
  const set = (change) => { Object.assign(grid, change); gridControls(); showGrid(); };
  const methods = unique(settingsShown().map((setting) => setting.method));
  if (grid.method && !methods.includes(grid.method)) grid.method = "";
  grid.setting ??= pick.right;
  if (!runsShown().some((run) => String(run.index) === grid.setting)) grid.setting = String(runsShown()[0].index);
  byId("grid-controls").replaceChildren(
    segments("grid-rows", "Rows", [["settings", "one image by all settings"], ["images", "all images by one setting"]], grid.rows, (rows) => set({ rows })),
    grid.rows === "settings" ? choice("Method", [["", "all methods"], ...methods.map((method) => [method, method])], grid.method, (method) => set({ method }))
      : choice("Setting", runsShown().map((run) => [String(run.index), runLabel(run)]), grid.setting, (setting) => set({ setting })),
    make("span", { class: "faint", style: "line-height:2rem" }, grid.rows === "settings" ? taskName(tasks()[pick.task]) : `edit ${tasks()[pick.task].edit}`),
  );
}

function gridRow(run, place, label, chosen, conditions) {
  const task = tasks()[place], made = run.made[place], name = `${runLabel(run)}: ${taskName(task)}`;
  const look = () => { pick.task = place; pick.right = String(run.index); if (pick.left === pick.right) pick.left = "source"; everything(); byId("compare").scrollIntoView(); };
  const cell = (...pictures) => make("td", { class: "pics" }, pictures);
  return make("tr", chosen ? { class: "chosen" } : {}, make("th", { scope: "row" }, make("button", { type: "button", class: "link", onclick: look }, label)),
    cell(picture(made.source, `source of ${name}`)), conditions ? cell(...(made.conditions || []).map(([kind, pic]) => picture(pic, `${kind} of ${name}`))) : null,
    cell(picture(made.pic, name)), cell(picture(task.truth, `target of ${name}`)),
    GRID_SCORES.filter((id) => measuredScores().some((score) => score.id === id)).map((id) => make("td", { class: "number" }, made.scores[id] === undefined ? "absent" : precise(id, made.scores[id]))));
}

function showGrid() {
  const task = tasks()[pick.task], runs = grid.rows === "settings" ? runsShown().filter((run) => !grid.method || DATA.settings[run.setting].method === grid.method) : [DATA.runs[Number(grid.setting)]];
  const conditions = runs.some((run) => run.made.some((made) => made.conditions));
  const rows = grid.rows === "settings" ? runs.map((run) => gridRow(run, pick.task, runLabel(run), String(run.index) === pick.right, conditions))
    : tasks().map((other, place) => [other, place]).filter(([other]) => other.edit === task.edit && other.seed === task.seed).map(([other, place]) => gridRow(runs[0], place, other.image, place === pick.task, conditions));
  const heads = [grid.rows === "settings" ? "setting" : "image", "source", ...(conditions ? ["condition"] : []), "edit", "target"];
  const scores = GRID_SCORES.filter((id) => measuredScores().some((score) => score.id === id));
  byId("grid-table").replaceChildren(make("table", { class: "grid plain" },
    make("thead", {}, make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)), scores.map((id) => make("th", { scope: "col", class: "number" }, SCORE[id].label)))), make("tbody", {}, rows)));
}

// The start

function everything() {
  compareControls();
  showStage();
  showFacts();
  gridControls();
  showGrid();
}

function start() {
  startSides();
  grid.setting = null;
  curveControls();
  everything();
}

document.addEventListener("change", ({ target }) => {
  if (target.dataset.everything !== undefined) target.closest("article").classList.toggle("everything", target.checked);
});
showGroup(0);
start();
byId("group")?.addEventListener("change", ({ target }) => { showGroup(Number(target.value)); start(); redraw(); });
plot("plot-curve", drawCurve);
document.documentElement.dataset.ready = "pictures";
withPlotly();
