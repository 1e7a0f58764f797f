// Pictures: sheets and their cells, the card at the pointer, a run's own window, samples side by side, the list of runs.

const KEPT_SHEETS = 80;
const sheets = new Map(); // id → promise of an image; the least recently shown goes first

function sheetImage(id) {
  let found = sheets.get(id);
  sheets.delete(id);
  if (!found) {
    const image = new Image();
    image.src = byId(`sheet-${id}`).textContent;
    found = image.decode().then(() => image);
    if (sheets.size >= KEPT_SHEETS) sheets.delete(sheets.keys().next().value);
  }
  sheets.set(id, found);
  return found;
}

/** A run's sheet at a step. Sheets lie at the end of a long page: until it is read to its end there may be none. */
function sheetOf(run, step) {
  const sheet = run.sheets[step];
  return sheet && byId(`sheet-${sheet.id}`) ? sheet : null;
}

const shownSteps = (run) => Object.keys(run.sheets).map(Number).sort((a, b) => a - b);

/** Draw cells of a sheet onto one canvas, `size` pixels each, with gaps between them. */
function paintSheet(canvas, sheet, rows, columns, size, gap) {
  const ratio = Math.max(1, Math.min(3, devicePixelRatio || 1)), width = columns.length * (size + gap) - gap, height = rows.length * (size + gap) - gap;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.cssText = `width:${width}px;height:${height}px`;
  const ticket = (canvas.ticket = {});
  return sheetImage(sheet.id).then((image) => {
    if (canvas.ticket !== ticket) return;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = sheet.cell > 64;
    context.imageSmoothingQuality = "high";
    rows.forEach((row, down) => columns.forEach((column, across) => {
      if (sheet.gaps?.includes(row * sheet.seeds.length + column)) return;
      context.drawImage(image, column * sheet.cell, row * sheet.cell, sheet.cell, sheet.cell, across * (size + gap), down * (size + gap), size, size);
    }));
    canvas.dataset.drawn = "true";
  });
}

/** One sample as a canvas that fills its place, or a note that there is none. `prompt` is a place in DATA.prompts. */
function sample(run, step, prompt, seed) {
  const sheet = sheetOf(run, step), row = sheet ? sheet.prompts.indexOf(run.prompts.indexOf(prompt)) : -1, column = sheet ? sheet.seeds.indexOf(seed) : -1;
  if (row < 0 || column < 0 || sheet.gaps?.includes(row * sheet.seeds.length + column)) return make("div", { class: "missing" }, "no image here");
  const canvas = make("canvas", { class: sheet.cell <= 64 ? "pic pixels" : "pic", width: sheet.cell, height: sheet.cell, role: "img", "aria-label": `${DATA.prompts[prompt].text}; image seed ${seed}; ${run.label}; step ${step}` });
  sheetImage(sheet.id).then((image) => {
    canvas.getContext("2d").drawImage(image, column * sheet.cell, row * sheet.cell, sheet.cell, sheet.cell, 0, 0, sheet.cell, sheet.cell);
    canvas.dataset.drawn = "true";
  });
  return canvas;
}

/** Prompts as rows, image seeds as columns. */
function sheetView(run, step, { size, most = 99, columns = 99, only = null, label = "short" }) {
  const sheet = sheetOf(run, step);
  if (!sheet) return make("p", { class: "faint" }, shownSteps(run).length ? `The samples of step ${step} are not in this page; they are in the run's folder.` : "No samples of this run were found.");
  let rows = sheet.prompts.map((_, index) => index);
  if (only !== null) rows = rows.filter((row) => run.prompts[sheet.prompts[row]] === only);
  if (!rows.length) return make("p", { class: "faint" }, "The samples of this prompt are not in this page; they are in the run's folder.");
  const left = rows.length - most, across = sheet.seeds.map((_, index) => index).slice(0, columns);
  rows = rows.slice(0, most);
  const gap = 3, names = rows.map((row) => DATA.prompts[run.prompts[sheet.prompts[row]]]);
  const canvas = make("canvas", { role: "img", class: "sheet-canvas", "aria-label": `samples of ${run.label} at step ${step}: ${names.map((name) => name.short).join("; ")}` });
  paintSheet(canvas, sheet, rows, across, size, gap);
  const texts = make("div", { class: "rows", style: `gap:${gap}px;grid-auto-rows:${size}px` }, names.map((name) => make("span", { title: name.text }, name[label])));
  return make("div", {}, make("div", { class: "sheet" }, texts, canvas), left > 0 ? make("p", { class: "faint" }, `and ${left} more prompts`) : null);
}

function facts(run, place) {
  const parts = DATA.scores.filter(({ id }) => run.scores[id]).map(({ id, label }) => make("span", {}, `${label} `, make("b", {}, fixed(run.scores[id][place]))));
  return make("div", { class: "facts" }, parts);
}

// The card at the pointer

const card = byId("card");
function showCard(run, step, event, only = null) {
  const place = run.steps.indexOf(step), sheet = run.sheets[step], columns = Math.min(sheet?.seeds.length ?? 4, 4);
  const size = only === null ? 48 : 72;
  card.replaceChildren(
    make("strong", {}, run.label), make("span", {}, `seed ${run.seed}, step ${step}`), ...(place >= 0 ? [facts(run, place)] : []),
    ...(run.copying.includes(step) ? [make("p", { class: "warned" }, "DINO above the real photos' own: may be copying them")] : []),
    sheetView(run, step, { size, most: 8, columns, only }),
  );
  card.hidden = false;
  const { width, height } = card.getBoundingClientRect(), gap = 18;
  const x = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
  card.style.left = `${Math.max(6, Math.min(x, innerWidth - width - 6))}px`;
  card.style.top = `${Math.max(6, Math.min(event.clientY - height / 2, innerHeight - height - 6))}px`;
}
function hideCard() { card.hidden = true; }
addEventListener("scroll", hideCard, { passive: true });

// A run's own window

const dialog = byId("run");

function openRun(index, step) {
  const run = DATA.runs[index], setting = DATA.settings[run.setting];
  const steps = shownSteps(run), wanted = step === undefined || step === null ? run.steps[run.best] : Number(step);
  const start = steps.includes(wanted) ? wanted : steps.filter((one) => one <= wanted).at(-1) ?? steps[0];
  const twins = setting.runs.length > 1 ? [make("p", { class: "faint" }, "seeds of this setting: ", setting.runs.map((twin) => make("button", { type: "button", class: "link", style: "margin-right:.6em", "data-run": String(twin), disabled: twin === index }, String(DATA.runs[twin].seed))))] : [];
  dialog.replaceChildren(
    make("header", {}, make("div", {}, make("h2", { id: "run-title" }, run.label), make("p", { class: "faint" }, make("code", {}, run.name), `  seed ${run.seed}`, run.scoring ? ", a scoring" : ""), ...twins),
      make("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    make("div", { class: "body" }, runPictures(run, steps, start), make("div", {}, ...runFacts(run, setting))),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

function runPictures(run, steps, start) {
  const place = make("div", {}), many = Math.max(1, ...Object.values(run.sheets).map((sheet) => sheet.seeds.length)), native = Math.max(32, ...Object.values(run.sheets).map((sheet) => sheet.cell));
  const size = native <= 64 ? 64 : many > 4 ? 72 : 96;
  const show = (step) => place.replaceChildren(sheetView(run, step, { size, columns: 8 }));
  const controls = steps.length > 1 ? slider("Checkpoint", steps, start, show) : make("p", { class: "faint" }, steps.length ? `step ${steps[0]}` : "");
  if (start !== undefined) show(start);
  else show(-1);
  return make("div", {}, make("h3", {}, "Samples"), make("div", { class: "controls" }, controls), place);
}

function runFacts(run, setting) {
  const rows = [[0, run.floor], ...run.steps.map((step, place) => [step, Object.fromEntries(Object.keys(run.scores).map((id) => [id, run.scores[id][place]]))])].filter(([, scores]) => Object.keys(scores).length);
  const scores = DATA.scores.filter(({ id }) => run.scores[id]);
  const top = Object.fromEntries(scores.map(({ id, higher }) => [id, (higher ? Math.max : Math.min)(...measured(run.scores[id]))]));
  const table = make("table", { class: "plain" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), scores.map(({ label, higher }) => make("th", { scope: "col", class: "number" }, label, make("span", { class: "way" }, higher ? "↑" : "↓"))))),
    make("tbody", {}, rows.map(([step, values]) => make("tr", {}, make("th", { scope: "row" }, step === 0 ? "0, floor" : String(step), run.copying.includes(step) ? make("span", { class: "warned", title: "DINO above the real photos' own: may be copying them" }, " copying?") : null),
      scores.map(({ id }) => make("td", { class: step && values[id] === top[id] ? "number best" : "number" }, fixed(values[id])))))));
  const values = DATA.keys.map((key, index) => [key.id, setting.values[index]]);
  const prompt = "a photo of a {token} {class} on the moon";
  const command = run.scoring || !run.adapter ? null : `boothlab sample run=${shellWord(run.folder)} prompt='${prompt}'`;
  return [
    make("h3", {}, "Scores"), make("div", { class: "scroll" }, table),
    ...(values.length ? [make("h3", {}, "Settings that vary"), make("dl", { class: "pairs" }, values.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]))] : []),
    make("h3", {}, "Files, from this page"),
    ...(run.adapter ? [path("adapter", run.adapter)] : [make("p", { class: "faint" }, run.scoring ? "A scoring trains no adapter." : "The adapter was not found.")]),
    path("folder", run.folder), ...(command ? [make("h3", {}, "Draw with it"), path("", command)] : []),
  ];
}

const shellWord = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

function path(name, text) {
  const button = make("button", { type: "button", onclick: () => copyFrom(button, text, name || "The command") }, "Copy");
  return make("div", { class: "path" }, name ? make("span", { class: "faint" }, name) : null, make("code", {}, text), button);
}

/** A slider over steps that need not be evenly apart. */
function slider(label, steps, start, show) {
  const output = make("output", {}, `step ${start}`);
  const input = make("input", { type: "range", min: "0", max: String(steps.length - 1), step: "1", "aria-label": label, oninput: () => {
    const step = steps[Number(input.value)];
    output.textContent = `step ${step}`;
    input.setAttribute("aria-valuetext", `step ${step}`);
    show(step);
  } });
  input.value = String(Math.max(0, steps.indexOf(start)));
  input.setAttribute("aria-valuetext", `step ${start}`);
  return make("label", { class: "slide" }, make("span", { class: "title" }, label), make("span", { class: "handle" }, input, output));
}

// Samples side by side

const side = { prompt: 0, seed: "all", step: 0, runs: [] };
const MOST_COMPARED = 6;

function ranked() {
  const value = (run) => run.scores.balanced?.[run.best] ?? -1;
  return settingsShown().map(bestRunOf).sort((a, b) => value(b) - value(a));
}

/** At first: the best setting, the worst, and some between, since what is alike is not worth comparing. */
function startCompared() {
  const all = ranked().filter((run) => shownSteps(run).length), count = Math.min(4, all.length);
  side.runs = Array.from({ length: count }, (_, index) => all[count > 1 ? Math.round((index * (all.length - 1)) / (count - 1)) : 0].index);
  side.step = Math.max(0, ...side.runs.map((index) => shownSteps(DATA.runs[index]).at(-1)));
  side.prompt = DATA.runs[side.runs[0]]?.prompts[0] ?? 0;
}

/** What of a prompt and which image seeds any of the sheets shown has. */
function inSheets() {
  const prompts = new Set(), seeds = new Set();
  for (const run of runsShown()) for (const sheet of Object.values(run.sheets)) {
    for (const prompt of sheet.prompts) prompts.add(run.prompts[prompt]);
    for (const seed of sheet.seeds) seeds.add(seed);
  }
  return { prompts: [...prompts].sort((a, b) => a - b), seeds: [...seeds].sort((a, b) => a - b) };
}

function samplesControls() {
  const { prompts, seeds } = inSheets();
  if (!prompts.length) {
    byId("samples-controls").replaceChildren();
    byId("samples-grid").replaceChildren(make("p", { class: "faint", style: "grid-column:1/-1" }, "No samples were found beside these runs."));
    return;
  }
  if (!prompts.includes(side.prompt)) side.prompt = prompts[0];
  const steps = [...new Set(runsShown().flatMap(shownSteps))].sort((a, b) => a - b);
  if (!steps.includes(side.step)) side.step = steps.at(-1);
  const free = runsShown().filter((run) => shownSteps(run).length && !side.runs.includes(run.index));
  const many = new Set(runsShown().map((run) => run.seed)).size > 1;
  byId("samples-controls").replaceChildren(
    choice("Prompt", prompts.map((prompt) => [prompt, DATA.prompts[prompt].text]), side.prompt, (prompt) => { side.prompt = Number(prompt); showSamples(); }),
    choice("Image seed", [["all", "all"], ...seeds.map((seed) => [seed, String(seed)])], side.seed, (seed) => { side.seed = seed === "all" ? seed : Number(seed); showSamples(); }),
    choice("Add a run", [["", side.runs.length >= MOST_COMPARED ? `at most ${MOST_COMPARED}` : "choose …"], ...(side.runs.length >= MOST_COMPARED ? [] : free.map((run) => [run.index, many ? `${run.label}, seed ${run.seed}` : run.label]))], "", (index) => {
      if (index !== "") { side.runs.push(Number(index)); samplesControls(); }
    }),
    steps.length > 1 ? slider("Checkpoint", steps, side.step, (step) => { side.step = step; showSamples(); }) : null,
  );
  showSamples();
}

function showSamples() {
  const photos = [...new Set(side.runs.map((index) => DATA.runs[index].subject))].filter((subject) => subject >= 0).flatMap((subject) => DATA.subjects[subject].photos);
  byId("samples-photos").replaceChildren(...(photos.length ? [strip("the subject's photos", photos.map((source) => photo(source, 64)))] : []));
  const seeds = side.seed === "all" ? inSheets().seeds : [side.seed];
  byId("samples-grid").style.gridTemplateColumns = side.runs.length ? `repeat(auto-fit, minmax(min(${side.runs.length > 4 ? 10 : 13}rem, 45%), ${side.runs.length > 2 ? "1fr" : "22rem"}))` : "";
  byId("samples-grid").replaceChildren(...side.runs.map((index) => {
    const run = DATA.runs[index], known = shownSteps(run), step = known.filter((one) => one <= side.step).at(-1) ?? known[0], place = run.steps.indexOf(step);
    return make("figure", { class: "run" },
      make("header", {}, make("button", { type: "button", class: "link", "data-run": String(index), "data-step": String(step) }, run.label),
        side.runs.length > 1 ? make("button", { type: "button", class: "remove", "aria-label": `Remove ${run.label}`, onclick: () => { side.runs = side.runs.filter((other) => other !== index); samplesControls(); } }, "×") : null),
      make("div", { class: "pics", style: `--columns:${seeds.length > 1 ? 2 : 1}` }, seeds.map((seed) => sample(run, step, side.prompt, seed))),
      make("figcaption", {}, `run seed ${run.seed}, step ${step}${step === 0 ? ": the base model" : ""}`, run.copying.includes(step) ? make("span", { class: "warned" }, " copying?") : null, place >= 0 ? facts(run, place) : null));
  }));
}

/** Show a prompt's samples with a run among those compared. */
function compareAt(prompt, index) {
  side.prompt = prompt;
  if (!side.runs.includes(index)) side.runs = [index, ...side.runs].slice(0, MOST_COMPARED);
  samplesControls();
  byId("samples").scrollIntoView();
}

const photo = (source, size) => make("img", { class: "pic", src: source, alt: "a photo of the subject", width: size, height: size, style: `width:${size}px;height:${size}px;image-rendering:${source.length < 9000 ? "pixelated" : "auto"}` });
const strip = (label, pictures) => make("div", { class: "strip" }, make("span", {}, label), make("div", {}, pictures));

/** The subject's photos and a first look at the best run, under the headline. */
function showStrips() {
  for (const place of document.querySelectorAll("[data-strips]")) {
    const run = DATA.runs[Number(place.dataset.strips)], step = Number(place.dataset.step), sheet = sheetOf(run, step);
    const photos = DATA.subjects[run.subject]?.photos ?? [];
    const drawn = sheet ? sheet.prompts.slice(0, 10).map((prompt) => {
      const canvas = sample(run, step, run.prompts[prompt], sheet.seeds[0]);
      canvas.style.cssText = "width:96px;height:96px";
      canvas.title = DATA.prompts[run.prompts[prompt]].text;
      return canvas;
    }) : [];
    place.replaceChildren(...(photos.length ? [strip("the subject's photos", photos.map((source) => photo(source, 96)))] : []), ...(drawn.length ? [strip(`its best run at step ${step}, a prompt each`, drawn)] : []));
  }
}

// The list of runs

const list = { words: "", sort: null };

function runsControls() {
  const input = make("input", { type: "search", placeholder: "rank 16, seed 0 …", oninput: () => { list.words = input.value; showRuns(); } });
  input.value = list.words;
  byId("runs-controls").replaceChildren(make("label", {}, "Find", input), make("span", { id: "runs-count", class: "faint", style: "line-height:2rem" }));
  byId("runs-table").replaceChildren(runsTable());
  showRuns();
}

function runsTable() {
  const scores = scoresShown(), keys = keysShown();
  const head = (text, number, title) => make("th", { scope: "col", class: number ? "number" : "" }, make("button", { type: "button", title: title ?? text }, text));
  return make("table", { class: "sortable" },
    make("thead", {}, make("tr", {}, keys.map((key) => head(key.name, false, key.id)), head("seed", true), head("step", true, "the best balanced checkpoint"), scores.map((score) => head(score.label, true, `${score.about} At the best balanced checkpoint.`)), head("run", false))),
    make("tbody", {}, runsShown().map((run) => make("tr", {}, keys.map((key) => { const text = DATA.settings[run.setting].values[key.index]; return make("td", text.length <= 24 ? { class: "short" } : {}, text); }), make("td", { class: "number" }, String(run.seed)), make("td", { class: "number" }, String(run.steps[run.best] ?? "–")),
      scores.map(({ id }) => make("td", { class: "number" }, fixed(run.scores[id]?.[run.best]))),
      make("td", {}, make("button", { type: "button", class: "link", "data-run": String(run.index) }, run.name), run.copying.length ? make("span", { class: "warned", title: `DINO above the real photos' own at step ${run.copying.join(", ")}` }, " copying?") : null)))));
}

function showRuns() {
  const words = list.words.toLowerCase().split(",").map((part) => part.trim()).filter(Boolean), rows = [...byId("runs-table").querySelectorAll("tbody tr")];
  // Settings are searched as they are named elsewhere, so that "rank 16" finds what it says.
  const texts = new Map(runsShown().map((run) => [String(run.index), `${run.label} seed ${run.seed} ${run.name}`.toLowerCase()]));
  let count = 0;
  for (const row of rows) {
    const text = texts.get(row.querySelector("[data-run]").dataset.run);
    row.hidden = !words.every((word) => text.includes(word));
    count += row.hidden ? 0 : 1;
  }
  byId("runs-count").textContent = `${count} of ${rows.length} runs; scores at each run's best balanced checkpoint`;
}

// The start

function start() {
  byId("parallel").hidden = settingsShown().length < 2;
  for (const prepare of [tradeoffControls, curvesControls, parallelControls, heatControls, runsControls]) prepare();
}

showGroup(0);
start();
byId("group")?.addEventListener("change", ({ target }) => {
  showGroup(Number(target.value));
  curves.lines = null;
  parallel.kept.clear();
  start();
  startCompared();
  samplesControls();
  redraw();
});
plot("plot-tradeoff", drawTradeoff);
plot("plot-curves", drawCurves);
plot("plot-parallel", drawParallel);
plot("plot-heat", drawHeat);
document.documentElement.dataset.ready = "tables";
const whenRead = () => {
  showStrips();
  startCompared();
  samplesControls();
  document.documentElement.dataset.ready = "pictures";
  withPlotly();
};
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", whenRead, { once: true });
else whenRead();
