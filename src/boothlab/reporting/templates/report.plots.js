// The trade-off of likeness and prompt-following, and the scores over the checkpoints.

const WHICH = { best: "best balanced checkpoint of each run", last: "last checkpoint of each run", mean: "settings: mean over seeds, best balanced", all: "every checkpoint" };
const MOST_POINTS = 5000; // drawn as SVG: WebGL would need a policy that lets scripts make scripts

const tradeoff = { y: "clip_i", which: null, colour: null, whole: false };

/** The place of a run's checkpoint that a reading means: `best` (balanced) or `last`. */
const placeOf = (run, which) => (which === "last" ? run.steps.length - 1 : run.best);

function tradeoffPoints() {
  const at = (run, place) => ({
    run, step: run.steps[place], x: run.scores.clip_t?.[place] ?? null, y: run.scores[tradeoff.y]?.[place] ?? null,
    copying: run.copying.includes(run.steps[place]),
  });
  if (tradeoff.which === "all") return runsShown().flatMap((run) => run.steps.map((_, place) => at(run, place)));
  const points = runsShown().filter((run) => run.best >= 0).map((run) => at(run, placeOf(run, tradeoff.which)));
  if (tradeoff.which !== "mean") return points;
  return settingsShown().flatMap((setting) => {
    const mine = points.filter((point) => point.run.setting === setting.index && point.x !== null && point.y !== null);
    if (!mine.length) return [];
    const spread = (axis) => [Math.min(...mine.map((point) => point[axis])), Math.max(...mine.map((point) => point[axis]))];
    const best = mine.reduce((one, other) => (other.x + other.y > one.x + one.y ? other : one));
    return [{ ...best, x: mean(mine.map((point) => point.x)), y: mean(mine.map((point) => point.y)), copying: mine.some((point) => point.copying),
      xs: spread("x"), ys: spread("y"), seeds: mine.length }];
  });
}

/** The points that none is better than in both, from left to right. */
function paretoFront(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => b.x - a.x || b.y - a.y)) {
    if (!front.length || point.y > front.at(-1).y) front.push(point);
  }
  return front.reverse();
}

/** Lines for the floor and the ceiling; an arrow at the edge where they are outside of what is shown. */
function endLines(score, axis, range, right = false) {
  const ends = [["floor", group().floor[score]], ["ceiling", group().ceiling[score]]].filter(([, value]) => value !== null && value !== undefined);
  const shapes = [], annotations = [];
  for (const [name, value] of ends) {
    const inside = value >= range[0] && value <= range[1], above = value > range[1];
    const along = axis === "y" ? { xref: "paper", x0: 0, x1: 1, y0: value, y1: value } : { yref: "paper", y0: 0, y1: 1, x0: value, x1: value };
    if (inside) shapes.push({ type: "line", layer: "below", name, ...along, line: { color: look().floor, width: 1.2, dash: name === "floor" ? "dot" : "dash" } });
    const arrow = inside ? "" : axis === "y" ? (above ? " ↑" : " ↓") : above ? " →" : " ←";
    const where = axis === "y"
      ? { xref: "paper", x: right || inside ? 1 : 0, xanchor: right || inside ? "right" : "left", y: inside ? value : range[above ? 1 : 0], yanchor: inside || !above ? "bottom" : "top" }
      : { yref: "paper", y: 1, yanchor: "top", x: inside ? value : range[above ? 1 : 0], xanchor: inside ? "left" : above ? "right" : "left", textangle: inside ? -90 : 0 };
    const text = `${name} ${fixed(value)}${arrow}`;
    annotations.push({ text: axis === "x" && !inside ? `${SCORE[score].label} ${text}` : text, showarrow: false, font: { size: 11, color: look().faint }, ...where, ...(axis === "x" && !inside ? { y: 0, yanchor: "bottom" } : {}) });
  }
  return { shapes, annotations };
}

function rangeOf(values, more, share = 0.09) {
  const all = measured([...values, ...more]), low = Math.min(...all), high = Math.max(...all), pad = (high - low || 0.02) * share;
  return [low - pad, high + pad];
}

function drawTradeoff(target) {
  const paint = look(), colouring = colourings().find(({ id }) => id === tradeoff.colour) || colourings()[0], colours = painted(colouring);
  const points = tradeoffPoints().filter((point) => point.x !== null && point.y !== null).slice(0, MOST_POINTS);
  const front = paretoFront(points), onFront = new Set(front);
  const label = SCORE[tradeoff.y]?.label ?? "";
  if (!points.length) return nothing(target, "No run has both scores.");
  const traces = [{
    type: "scatter", mode: "lines", name: "Pareto front", x: front.map((point) => point.x), y: front.map((point) => point.y),
    line: { shape: "vh", color: paint.faint, width: 1.5, dash: "6px,4px" }, hoverinfo: "skip", legendrank: 2000,
  }];
  if (tradeoff.which === "all") traces.push(paths(points));
  for (const [value, { colour, symbol }] of colours) {
    const mine = points.filter((point) => colouring.of(point.run) === value);
    if (!mine.length) continue;
    const kept = mine.map((point) => !page.kept || page.kept.has(point.run.setting));
    traces.push({
      type: "scatter", mode: "markers", name: safe(cut(value, 40)), x: mine.map((point) => point.x), y: mine.map((point) => point.y),
      customdata: mine.map((point) => [point.run.index, point.step]), hoverinfo: "none",
      marker: {
        color: mine.map((_, index) => (kept[index] ? colour : paint.quiet)), symbol, size: mine.map((point) => (onFront.has(point) ? 13 : 10)),
        opacity: mine.map((_, index) => (kept[index] ? 0.92 : 0.35)),
        line: { width: mine.map((point) => (onFront.has(point) ? 1.8 : 0.8)), color: mine.map((point) => (onFront.has(point) ? paint.ink : paint.card)) },
      },
      ...(tradeoff.which === "mean" ? errorBars(mine, colour) : {}),
    });
  }
  const copying = points.filter((point) => point.copying);
  if (copying.length) traces.push({
    type: "scatter", mode: "markers", name: "DINO above the photos' own:<br>may be copying", x: copying.map((point) => point.x), y: copying.map((point) => point.y),
    marker: { symbol: "circle-open", size: 20, color: paint.warn, line: { width: 2 } }, hoverinfo: "skip", legendrank: 2001,
  });
  const ends = tradeoff.whole ? [group().floor, group().ceiling] : [];
  const x = rangeOf(points.map((point) => point.x), ends.map((end) => end.clip_t)), y = rangeOf(points.map((point) => point.y), ends.map((end) => end[tradeoff.y]));
  const across = endLines(tradeoff.y, "y", y), up = endLines("clip_t", "x", x);
  Plotly.react(target, traces, layout({
    xaxis: { range: x, title: { text: `prompt-following: CLIP-T${encoders()} →` } }, yaxis: { range: y, title: { text: `likeness: ${label}${encoders()} →` } },
    legend: { title: { text: safe(colouring.name) } }, shapes: [...across.shapes, ...up.shapes], annotations: [...across.annotations, ...up.annotations],
    uirevision: `${page.group} ${tradeoff.y} ${tradeoff.which} ${tradeoff.whole}`,
  }), CONFIG);
  watch(target, (point, event) => point.customdata && showCard(DATA.runs[point.customdata[0]], point.customdata[1], event), (point) => point.customdata && openRun(...point.customdata));
}

/** Thin lines from checkpoint to checkpoint of each run. */
function paths(points) {
  const x = [], y = [];
  points.forEach((point, index) => {
    if (index && points[index - 1].run !== point.run) { x.push(null); y.push(null); }
    x.push(point.x); y.push(point.y);
  });
  return { type: "scatter", mode: "lines", name: "run, by step", x, y, line: { color: look().quiet, width: 1 }, hoverinfo: "skip", legendrank: 1999 };
}

function errorBars(points, colour) {
  const bar = (axis) => ({
    type: "data", symmetric: false, color: colour, thickness: 1, width: 3,
    array: points.map((point) => point[`${axis}s`][1] - point[axis]), arrayminus: points.map((point) => point[axis] - point[`${axis}s`][0]),
  });
  return { error_x: bar("x"), error_y: bar("y") };
}

function nothing(target, text) {
  Plotly.react(target, [], layout({ xaxis: { visible: false }, yaxis: { visible: false }, annotations: [{ text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }] }), CONFIG);
}

/** Call `hover` and `click` with the first point under the pointer, `leave` after it; each plot is watched once. */
const watched = new WeakMap();
function watch(target, hover, click, leave = () => {}) {
  const first = !watched.has(target);
  watched.set(target, { hover, click, leave });
  if (!first) return;
  target.on("plotly_hover", ({ points, event }) => watched.get(target).hover(points[0], event));
  target.on("plotly_unhover", () => { hideCard(); watched.get(target).leave(); });
  target.on("plotly_click", ({ points }) => { hideCard(); watched.get(target).click(points[0]); });
  target.addEventListener("mouseleave", hideCard);
}

/** What a sweep compares is what its points are told apart by, unless the reader wishes otherwise. */
const mainColour = (colours) => (colours.find(([id]) => DATA.axes.some((axis) => id === `key:${axis}`)) || colours[0])[0];

function tradeoffControls() {
  const set = (change) => { Object.assign(tradeoff, change); draw("plot-tradeoff"); };
  const likeness = ["clip_i", "dino"].filter((score) => SCORE[score]).map((score) => [score, SCORE[score].label]);
  tradeoff.y = likeness.some(([score]) => score === tradeoff.y) ? tradeoff.y : likeness[0]?.[0];
  const colours = colourings().map(({ id, name }) => [id, name]);
  tradeoff.colour = colours.some(([id]) => id === tradeoff.colour) ? tradeoff.colour : mainColour(colours);
  const points = runsShown().reduce((sum, run) => sum + run.steps.length, 0);
  const which = Object.entries(WHICH).filter(([key]) => (key !== "all" || points <= MOST_POINTS) && (key !== "mean" || settingsShown().length < runsShown().length));
  tradeoff.which ??= runsShown().length > 3 ? "best" : "all"; // a run or two are best seen on their way
  byId("tradeoff-controls").replaceChildren(
    segments("tradeoff-y", "Likeness", likeness, tradeoff.y, (y) => set({ y })),
    choice("Points", which, tradeoff.which, (value) => set({ which: value })),
    choice("Colour", colours, tradeoff.colour, (colour) => set({ colour })),
    tick("Whole scale, from floor to ceiling", tradeoff.whole, (whole) => set({ whole })),
  );
}

// Over the checkpoints

const curves = { score: "balanced", lines: null, colour: null };
const MOST_LINES = 40;

/** Step → the measured values of some runs, step 0 being the floor. */
function valuesByStep(runs, score) {
  const found = new Map();
  const put = (step, value) => { if (value !== null && value !== undefined) found.set(step, [...(found.get(step) || []), value]); };
  for (const run of runs) {
    put(0, run.floor[score]);
    run.steps.forEach((step, place) => put(step, run.scores[score]?.[place]));
  }
  return [...found].sort((a, b) => a[0] - b[0]);
}

function drawCurves(target) {
  const paint = look(), score = curves.score, colouring = colourings().find(({ id }) => id === curves.colour) || colourings()[0], colours = painted(colouring);
  const traces = [], warned = { x: [], y: [] }, drawn = [];
  const sets = curves.lines === "settings" ? settingsShown().map((setting) => setting.runs.map((index) => DATA.runs[index]))
    : [...colours.keys()].map((value) => runsShown().filter((run) => colouring.of(run) === value));
  for (const [value, { colour, symbol }] of colours) {
    const line = { x: [], y: [], text: [], custom: [] }, band = { x: [], y: [] };
    for (const runs of sets.map((set) => set.filter((run) => colouring.of(run) === value)).filter((set) => set.length)) {
      const steps = valuesByStep(runs, score), seeds = new Set(runs.map((run) => run.seed)).size;
      const what = curves.lines === "settings" ? runs[0].label : `${colouring.name} ${value}, ${new Set(runs.map((run) => run.setting)).size} settings`;
      for (const [step, values] of steps) {
        const low = Math.min(...values), high = Math.max(...values);
        line.x.push(step); line.y.push(mean(values));
        line.text.push(`<b>${safe(what)}</b><br>step ${step}: ${fixed(mean(values))}${values.length > 1 ? `<br>${fixed(low)} to ${fixed(high)}, ${seeds} ${seeds === 1 ? "seed" : "seeds"}` : ""}`);
        line.custom.push(drawn.length);
        if (runs.some((run) => run.copying.includes(step))) { warned.x.push(step); warned.y.push(mean(values)); }
      }
      drawn.push({ x: steps.map(([step]) => step), y: steps.map(([, values]) => mean(values)), runs });
      line.x.push(null); line.y.push(null); line.text.push(""); line.custom.push(null);
      if (sets.length <= 8 && steps.some(([, values]) => values.length > 1)) {
        band.x.push(...steps.map(([step]) => step), ...steps.map(([step]) => step).reverse(), null);
        band.y.push(...steps.map(([, values]) => Math.max(...values)), ...steps.map(([, values]) => Math.min(...values)).reverse(), null);
      }
    }
    if (!line.x.length) continue;
    const fill = colour.startsWith("#") ? `${colour}24` : colour.replace("rgb", "rgba").replace(")", ",0.14)");
    if (band.x.length) traces.push({ type: "scatter", x: band.x, y: band.y, fill: "toself", fillcolor: fill, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: value });
    traces.push({
      type: "scatter", mode: "lines+markers", name: safe(cut(value, 40)), legendgroup: value, x: line.x, y: line.y, text: line.text, customdata: line.custom, hoverinfo: "text", connectgaps: false,
      line: { color: colour, width: sets.length > MOST_LINES ? 1 : 2 }, marker: { symbol, size: sets.length > MOST_LINES ? 3 : 6, color: colour }, opacity: sets.length > MOST_LINES ? 0.5 : 1,
    });
  }
  if (warned.x.length) traces.push({
    type: "scatter", mode: "markers", name: "DINO above the photos' own:<br>may be copying", x: warned.x, y: warned.y, hoverinfo: "skip",
    marker: { symbol: "circle-open", size: 15, color: paint.warn, line: { width: 2 } }, legendrank: 2001,
  });
  traces.push({ type: "scatter", mode: "lines", x: [], y: [], line: { color: paint.ink, width: 4 }, hoverinfo: "skip", showlegend: false });
  const range = rangeOf(traces.flatMap((trace) => trace.y), [group().floor[score], group().ceiling[score]], 0.06), lines = endLines(score, "y", range, true);
  const info = SCORE[score];
  Plotly.react(target, traces, layout({
    xaxis: { title: { text: "training step" }, rangemode: "tozero" }, yaxis: { range, title: { text: `${info.label}${encoders()}, ${info.higher ? "higher" : "lower"} is better` } },
    legend: { title: { text: safe(colouring.name) } }, ...lines, uirevision: `${page.group} ${score}`,
  }), CONFIG);
  watch(target, ({ customdata }) => drawn[customdata] && markLine(target, drawn[customdata].x, drawn[customdata].y),
    ({ customdata }) => drawn[customdata] && openRun(bestOf(drawn[customdata].runs).index), () => markLine(target));
  byId("curves-note").textContent = `${info.label}: ${info.about} ${curves.lines === "settings" ? "A line is a setting, the mean over its seeds" : `A line is the mean over all settings with the same ${colouring.name}`}`
    + `${traces.some((trace) => trace.fill) ? "; the band goes from the lowest to the highest" : ""}.`;
}

/** Show a line in ink: the last trace is kept for what is pointed at. */
function markLine(target, x = [], y = []) {
  Plotly.restyle(target, { x: [x], y: [y] }, [target.data.length - 1]);
}

function curvesControls() {
  const set = (change) => { Object.assign(curves, change); draw("plot-curves"); };
  const scores = scoresShown().map(({ id, label }) => [id, label]);
  curves.score = scores.some(([id]) => id === curves.score) ? curves.score : scores[0][0];
  const colours = colourings().filter(({ id }) => id !== "seed" || colourings().length === 1).map(({ id, name }) => [id, name]);
  curves.colour = colours.some(([id]) => id === curves.colour) ? curves.colour : mainColour(colours);
  curves.lines ??= settingsShown().length > MOST_LINES ? "means" : "settings";
  byId("curves-controls").replaceChildren(
    choice("Score", scores, curves.score, (score) => set({ score })),
    choice("Lines", [["settings", "one for each setting"], ["means", "one for each colour"]], curves.lines, (lines) => set({ lines })),
    choice("Colour", colours, curves.colour, (colour) => set({ colour })),
  );
}
