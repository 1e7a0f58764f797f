// Settings side by side: parallel coordinates that filter, and the heat map of prompts by settings.

const parallel = { which: "best", score: "balanced", kept: new Map() };
const SHADES = 12;

/** A setting's mean over seeds of a score, at each run's best balanced or last checkpoint. */
function settingMean(setting, score, which) {
  return mean(measured(setting.runs.map((index) => DATA.runs[index].scores[score]?.[placeOf(DATA.runs[index], which)])));
}

/** The axes: varied keys by the places of their values, scores by value; all from 0 to 1 on the plot. */
function axes() {
  const keys = keysShown().map((key) => {
    const values = key.values.filter((value) => settingsShown().some((setting) => setting.values[key.index] === value));
    const place = (value) => (values.length > 1 ? values.indexOf(value) / (values.length - 1) : 0.5);
    const ticks = values.length <= 12 ? values : values.filter((_, index) => index % Math.ceil(values.length / 12) === 0);
    return { name: key.name, of: (setting) => place(setting.values[key.index]), ticks: ticks.map((value) => [place(value), cut(value, 14)]) };
  });
  const scores = scoresShown().map((score) => {
    const values = new Map(settingsShown().map((setting) => [setting, settingMean(setting, score.id, parallel.which)]));
    const all = measured([...values.values()]), low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
    const place = (value) => (value === null ? null : high === low ? 0.5 : (value - low) / span);
    const ticks = high === low ? [low] : [0, 1, 2, 3, 4].map((index) => low + (span * index) / 4);
    return { name: `${score.label} ${score.higher ? "↑" : "↓"}`, score: score.id, of: (setting) => place(values.get(setting)), ticks: all.length ? ticks.map((value) => [place(value), fixed(value, 3)]) : [] };
  });
  return [...keys, ...scores];
}

function drawParallel(target) {
  const paint = look(), found = axes(), colourAxis = found.find((axis) => axis.score === parallel.score) || found.at(-1), higher = SCORE[parallel.score]?.higher ?? true;
  const passes = (setting) => [...parallel.kept].every(([index, [low, high]]) => { const place = found[index]?.of(setting); return place !== null && place >= low && place <= high; });
  const all = settingsShown(), kept = all.filter(passes), dropped = all.filter((setting) => !passes(setting));
  const lines = (settings) => {
    const x = [], y = [], custom = [];
    for (const setting of settings) {
      found.forEach((axis, index) => { x.push(index); y.push(axis.of(setting)); custom.push(setting.index); });
      x.push(null); y.push(null); custom.push(-1);
    }
    return { type: "scatter", mode: "lines+markers", x, y, customdata: custom, hoverinfo: "none", showlegend: false, connectgaps: false };
  };
  const traces = dropped.length ? [{ ...lines(dropped), line: { color: paint.quiet, width: 1 }, marker: { size: 2, color: paint.quiet }, opacity: 0.35, hoverinfo: "skip" }] : [];
  for (let bin = 0; bin < SHADES; bin += 1) {
    const mine = kept.filter((setting) => { const place = colourAxis.of(setting) ?? 0; return Math.min(SHADES - 1, Math.floor((higher ? place : 1 - place) * SHADES)) === bin; });
    const colour = shade((bin + 0.5) / SHADES);
    if (mine.length) traces.push({ ...lines(mine), line: { color: colour, width: all.length > 60 ? 1.2 : 2 }, marker: { size: all.length > 60 ? 4 : 6, color: colour }, opacity: all.length > 60 ? 0.7 : 0.9 });
  }
  traces.push({ type: "scatter", mode: "lines", x: [], y: [], line: { color: paint.ink, width: 3.5 }, hoverinfo: "skip", showlegend: false, name: "pointed at" });
  const shapes = found.map((_, index) => ({ type: "line", x0: index, x1: index, y0: 0, y1: 1, line: { color: paint.faint, width: 1 }, layer: "below" }));
  for (const [index, [low, high]] of parallel.kept) shapes.push({ type: "rect", x0: index - 0.06, x1: index + 0.06, y0: low, y1: high, fillcolor: paint.warn, opacity: 0.3, line: { width: 0 } });
  const last = found.length - 1;
  const annotations = found.flatMap((axis, index) => [
    { x: index, y: 1.06, yanchor: "bottom", text: `<b>${safe(cut(axis.name, 24))}</b>`, showarrow: false, font: { size: 12 }, hovertext: safe(axis.name), textangle: found.length > 9 ? -18 : 0 },
    ...axis.ticks.map(([place, text]) => ({ x: index, y: place, xanchor: index === last ? "left" : "right", xshift: index === last ? 8 : -8, text: safe(text), showarrow: false, font: { size: 11, color: paint.faint }, bgcolor: paint.card, borderpad: 1 })),
  ]);
  Plotly.react(target, traces, layout({
    xaxis: { range: [-0.45, last + 0.45], visible: false, fixedrange: true }, yaxis: { range: [-0.06, 1.2], visible: false, fixedrange: true },
    margin: { l: 10, r: 10, t: 10, b: 10 }, shapes, annotations, dragmode: "select", selectdirection: "any", showlegend: false,
    newselection: { line: { color: paint.warn, width: 1 } }, selections: [],
  }), { ...CONFIG, displayModeBar: false });
  watch(target, ({ customdata }, event) => pointAt(target, found, DATA.settings[customdata], event), ({ customdata }) => openRun(bestRunOf(DATA.settings[customdata]).index), () => markLine(target));
  onBrush(target);
  byId("parallel-kept").replaceChildren(...keptLine(kept, all));
}

function pointAt(target, found, setting, event) {
  if (!setting) return;
  markLine(target, found.map((_, index) => index), found.map((axis) => axis.of(setting)));
  const run = bestRunOf(setting);
  showCard(run, run.steps[placeOf(run, parallel.which)], event);
}

const bestRunOf = (setting) => bestOf(setting.runs.map((index) => DATA.runs[index]));
const bestOf = (runs) => runs
  .reduce((one, other) => ((other.scores.balanced?.[other.best] ?? -Infinity) > (one.scores.balanced?.[one.best] ?? -Infinity) ? other : one));

const brushed = new WeakSet();
function onBrush(target) {
  if (brushed.has(target)) return;
  brushed.add(target);
  target.on("plotly_selected", (event) => {
    if (!event?.range) return;
    const [x0, x1] = [...event.range.x].sort((a, b) => a - b), [y0, y1] = [...event.range.y].sort((a, b) => a - b), last = axes().length - 1;
    for (let index = Math.max(0, Math.ceil(x0 - 0.15)); index <= Math.min(last, Math.floor(x1 + 0.15)); index += 1) parallel.kept.set(index, [Math.max(0, y0), Math.min(1, y1)]);
    keep();
  });
  for (const name of ["plotly_doubleclick", "plotly_deselect"]) target.on(name, () => { if (parallel.kept.size) { parallel.kept.clear(); keep(); } });
}

/** Draw again with what is kept, here and in the trade-off. */
function keep() {
  const found = axes();
  const passing = settingsShown().filter((setting) => [...parallel.kept].every(([index, [low, high]]) => { const place = found[index].of(setting); return place !== null && place >= low && place <= high; }));
  page.kept = parallel.kept.size ? new Set(passing.map((setting) => setting.index)) : null;
  draw("plot-parallel");
  if (plots.get("plot-tradeoff").drawn) draw("plot-tradeoff");
}

function keptLine(kept, all) {
  if (!parallel.kept.size) return [`${all.length} ${all.length === 1 ? "setting" : "settings"}.`];
  const some = kept.slice(0, 12);
  return [`${kept.length} of ${all.length} settings kept`, kept.length ? ": " : ".",
    ...some.flatMap((setting, index) => [index ? ", " : "", make("button", { type: "button", class: "link", "data-run": String(bestRunOf(setting).index) }, setting.label)]), kept.length > some.length ? " …" : "",
    " ", make("button", { type: "button", onclick: () => { parallel.kept.clear(); keep(); } }, "Keep all")];
}

function parallelControls() {
  const set = (change) => { Object.assign(parallel, change); parallel.kept.clear(); keep(); };
  const scores = scoresShown().map(({ id, label }) => [id, label]);
  parallel.score = scores.some(([id]) => id === parallel.score) ? parallel.score : scores[0][0];
  byId("parallel-controls").replaceChildren(
    choice("Colour", scores, parallel.score, (score) => set({ score })),
    choice("Scores at", [["best", "best balanced checkpoints"], ["last", "last checkpoints"]], parallel.which, (which) => set({ which })),
  );
}

// Prompts by settings

const heat = { score: "clip_t", which: "best", shown: "value", hardest: true };

/** The mean over a setting's runs of a score of a prompt; less the base model's, if that is asked for. */
function promptMean(setting, prompt) {
  const values = setting.runs.map((index) => {
    const run = DATA.runs[index], place = run.prompts.indexOf(prompt), tables = run.by_prompt;
    const value = (heat.which === "last" && tables.last ? tables.last : tables.best)?.[heat.score]?.[place];
    if (heat.shown === "value") return value;
    const floor = tables.floor?.[heat.score]?.[place];
    return value === null || value === undefined || floor === null || floor === undefined ? null : value - floor;
  });
  return mean(measured(values));
}

function drawHeat(target) {
  const info = SCORE[heat.score];
  let rows = [...new Set(runsShown().flatMap((run) => run.prompts))].map((prompt) => ({ prompt, values: settingsShown().map((setting) => promptMean(setting, prompt)) }));
  rows = rows.filter((row) => measured(row.values).length);
  if (!info || !rows.length) { target.style.height = "160px"; return nothing(target, "No scores by prompt were kept."); }
  if (heat.hardest) rows.sort((a, b) => (info.higher ? 1 : -1) * (mean(measured(a.values)) - mean(measured(b.values))));
  const columns = settingsShown().map((setting, index) => ({ setting, index, mean: mean(measured(rows.map((row) => row.values[index]))) }));
  columns.sort((a, b) => (info.higher ? 1 : -1) * ((b.mean ?? -1) - (a.mean ?? -1)));
  const z = rows.map((row) => columns.map(({ index }) => row.values[index])), flat = measured(z.flat()), most = Math.max(...flat.map(Math.abs));
  const keys = keysShown(), labels = columns.map(({ setting }) => cut(keys.map((key) => setting.values[key.index]).join(" · ") || setting.label, 36)), few = columns.length <= 24;
  const slanted = Math.max(...labels.map((label) => label.length)) * 7 > (target.clientWidth * 0.7) / columns.length, tall = few && slanted ? 110 : 40;
  target.style.height = `${Math.max(220, rows.length * 30 + tall + 84)}px`;
  const change = heat.shown === "change";
  Plotly.react(target, [{
    type: "heatmap", z, x: columns.map((_, index) => index), y: rows.map((_, index) => index), xgap: few ? 2 : 0.5, ygap: 2,
    customdata: rows.map((row) => columns.map(({ setting }) => [setting.index, row.prompt])), hoverinfo: "none",
    colorscale: change ? diverging() : failing(), reversescale: !info.higher, ...(change ? { zmin: -most, zmax: most } : {}),
    texttemplate: columns.length * 48 < target.clientWidth * 0.75 ? "%{z:.3f}" : "", textfont: { size: 11 }, colorbar: { thickness: 10, outlinewidth: 0, len: 0.9, tickfont: { size: 11 } },
  }], layout({
    xaxis: { tickvals: few ? columns.map((_, index) => index) : [], ticktext: few ? labels.map(safe) : [], tickangle: slanted ? -38 : 0, showgrid: false, title: { text: `${few ? safe(keys.map((key) => key.name).join(" · ")) || "settings" : `${columns.length} settings`}, the best on the left` } },
    yaxis: { tickvals: rows.map((_, index) => index), ticktext: rows.map((row) => safe(cut(DATA.prompts[row.prompt].short, innerWidth < 900 ? 26 : 52))), autorange: "reversed", showgrid: false, ticks: "" },
    margin: { l: 20, r: 10, t: 34, b: 24 },
  }), CONFIG);
  watch(target, ({ customdata }, event) => {
    const run = bestRunOf(DATA.settings[customdata[0]]);
    showCard(run, run.steps[placeOf(run, heat.which)], event, customdata[1]);
  }, ({ customdata }) => compareAt(customdata[1], bestRunOf(DATA.settings[customdata[0]]).index));
}

/** The worse, the stronger: what fails stands out of the page, light or dark. */
function failing() {
  return isDark() ? [[0, "#ffa36c"], [0.5, "#8a4726"], [1, "#25282e"]] : [[0, "#a8380f"], [0.5, "#eda679"], [1, "#fbf6ec"]];
}

function diverging() {
  const middle = isDark() ? "#24272d" : "#f4f2ec";
  return isDark() ? [[0, "#ff8f7d"], [0.5, middle], [1, "#77b2ff"]] : [[0, "#b8402f"], [0.5, middle], [1, "#1f6fc4"]];
}

function heatControls() {
  const set = (change) => { Object.assign(heat, change); draw("plot-heat"); };
  const kept = scoresShown().filter(({ id }) => runsShown().some((run) => measured(run.by_prompt.best?.[id] || []).length)).map(({ id, label }) => [id, label]);
  heat.score = kept.some(([id]) => id === heat.score) ? heat.score : kept[0]?.[0];
  byId("heat-controls").replaceChildren(
    choice("Score", kept, heat.score, (score) => set({ score })),
    choice("Checkpoint", [["best", "best balanced of each run"], ["last", "last of each run"]], heat.which, (which) => set({ which })),
    choice("Show", [["value", "the score"], ["change", "change from the base model"]], heat.shown, (shown) => set({ shown })),
    tick("Hardest prompts first", heat.hardest, (hardest) => set({ hardest })),
  );
}
