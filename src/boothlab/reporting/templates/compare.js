"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const study = JSON.parse(find("study").textContent);
  const questions = study.questions;
  const STORE = `boothlab-study-${study.study}`;
  const ANSWERS = { left: "left", right: "right", undecided: "cannot tell" };
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "undecided" };
  const keyOf = (asked) => `${asked.pair} ${asked.question}`;
  const known = new Set(questions.map(keyOf));

  let state = restore();
  let position = 0; // the question on the screen; questions.length once all are answered
  let previous = ""; // the last answer given, in words
  let ready = false; // both images of the question can be seen; before that no answer counts
  let exported = true; // nothing has been answered since the last export
  let shownScreen = "";

  // ---- what is kept in this browser ----

  function fresh() {
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    const sitting = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return { rater: "", sitting, started: "", answers: {} };
  }

  function restore() {
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(STORE));
    } catch {
      return fresh(); // no storage, or not ours; save() tells the rater when it matters
    }
    const whole = kept && typeof kept.answers === "object" && kept.answers !== null &&
      [kept.rater, kept.sitting, kept.started].every((text) => typeof text === "string" && text !== "");
    if (!whole) return fresh();
    const answers = Object.entries(kept.answers).filter(([key, answer]) => known.has(key) && Object.hasOwn(ANSWERS, answer));
    return { rater: kept.rater, sitting: kept.sitting, started: kept.started, answers: Object.fromEntries(answers) };
  }

  function save() {
    try {
      localStorage.setItem(STORE, JSON.stringify(state));
    } catch {
      find("banner").textContent = "This browser does not keep answers: export them before you close the page.";
      find("banner").hidden = false;
    }
  }

  // ---- screens ----

  const answerTo = (index) => state.answers[keyOf(questions[index])];
  const answered = () => questions.filter((_, index) => answerTo(index)).length;

  function firstOpen() {
    const index = questions.findIndex((_, at) => !answerTo(at));
    return index < 0 ? questions.length : index;
  }

  function screen(name) {
    for (const id of ["start", "ask", "done"]) find(id).hidden = id !== name;
    shownScreen = name;
  }

  function show(image, element) {
    element.src = image.src;
    element.classList.toggle("small", image.small);
    return element.decode().catch(() => undefined);
  }

  function showPhotos(photos, name = "") {
    const elements = photos.map((photo, index) => {
      const element = document.createElement("img");
      element.alt = name || `Photo ${index + 1} of the subject`;
      show(photo, element);
      return element;
    });
    find("photos").replaceChildren(...elements);
  }

  async function ask(index) {
    position = index;
    if (index >= questions.length) return finish();
    ready = false;
    const asked = questions[index];
    const kind = study.kinds[asked.question];
    screen("ask");
    find("ask").dataset.ready = "";
    find("count").textContent = `Question ${index + 1} of ${questions.length}`;
    find("progress").value = answered();
    find("chip").textContent = kind.chip;
    find("chip").className = `chip ${asked.question}`;
    find("question").textContent = kind.text;
    find("hint").textContent = kind.hint;
    if (asked.source) showPhotos([study.images[asked.source]], "Source");
    find("references").hidden = kind.shows === "text";
    find("prompt").hidden = kind.shows === "photos";
    find("stimulus").className = kind.shows;
    find("prompt").textContent = asked.prompt ?? "";
    find("back").disabled = index === 0;
    find("last").textContent = previous && `Last answer: ${previous}`;
    find("live").textContent = `${previous ? `Answered: ${previous}. ` : ""}Question ${index + 1} of ${questions.length}. ` +
      `${kind.text} ${asked.prompt ?? ""}`;
    for (const answer of Object.keys(ANSWERS)) {
      const chosen = answerTo(index) === answer;
      find(answer).classList.toggle("chosen", chosen);
      find(answer).setAttribute("aria-pressed", String(chosen));
    }
    const images = { left: study.images[asked.left], right: study.images[asked.right] };
    find("choices").classList.toggle("small-pair", images.left.small && images.right.small);
    await Promise.all(["left", "right"].map((side) => show(images[side], find(`${side}-image`))));
    if (position !== index || shownScreen !== "ask") return;
    ready = true;
    find("ask").dataset.ready = String(index);
  }

  function finish() {
    screen("done");
    const count = answered();
    const all = count === questions.length;
    find("done-title").textContent = all ? "All done. Thank you!" : "Export so far";
    find("tally").textContent = `${state.rater}: ${count} of ${questions.length} questions answered.`;
    find("export").disabled = find("copy").disabled = count === 0;
    find("resume").textContent = all ? "Back to the last question" : "Go on";
    find("status").textContent = "";
    find("text").hidden = true;
    find("done-title").focus();
  }

  // ---- answering ----

  function vote(answer) {
    if (!ready) return;
    const change = answerTo(position) !== undefined;
    state.started ||= new Date().toISOString();
    state.answers[keyOf(questions[position])] = answer;
    previous = change ? `changed to ${ANSWERS[answer]}` : ANSWERS[answer];
    exported = false;
    save();
    ask(firstOpen());
  }

  function back() {
    previous = "";
    if (shownScreen === "ask" && position > 0) ask(position - 1);
    if (shownScreen === "done") ask(Math.min(firstOpen(), questions.length - 1));
  }

  // ---- handing in ----

  function votes() {
    const given = questions.filter((_, index) => answerTo(index));
    return JSON.stringify({
      kind: study.votes, format: study.format, study: study.study, rater: state.rater, sitting: state.sitting,
      started: state.started, exported: new Date().toISOString(),
      votes: given.map((asked) => ({ pair: asked.pair, question: asked.question, answer: state.answers[keyOf(asked)] })),
    }, null, 1) + "\n";
  }

  function download() {
    const name = state.rater.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._]+/, "").slice(0, 40) || "rater";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([votes()], { type: "application/json" }));
    link.download = `votes-${study.study}-${name}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    exported = true;
    find("status").textContent = `Saved as ${link.download} in your downloads.`;
  }

  async function copy() {
    const text = votes();
    try {
      await navigator.clipboard.writeText(text);
      exported = true;
      find("status").textContent = "Copied. Paste it into a message or a .json file.";
    } catch {
      find("text").value = text;
      find("text").hidden = false;
      find("text").select();
      find("status").textContent = "The browser does not allow copying: copy the text below by hand.";
    }
  }

  function another() {
    const warning = "These answers were not exported and will be lost. Start anew all the same?";
    if (!exported && answered() > 0 && !confirm(warning)) return;
    try {
      localStorage.removeItem(STORE);
    } catch {
      // nothing was kept
    }
    state = fresh();
    previous = "";
    find("rater").value = "";
    screen("start");
    find("rater").focus();
  }

  // ---- wiring ----

  for (const answer of Object.keys(ANSWERS)) {
    find(answer).addEventListener("click", (event) => {
      // A clicked button keeps the focus, and the space bar would then press it again instead of "cannot tell".
      if (event.detail > 0) event.currentTarget.blur();
      vote(answer);
    });
  }
  find("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = find("rater").value.normalize("NFC").trim().replace(/\s+/g, " ");
    if (!name) return;
    state.rater = name;
    state.started ||= new Date().toISOString();
    find("rater").blur();
    save();
    ask(firstOpen());
  });
  find("back").addEventListener("click", back);
  find("pause").addEventListener("click", finish);
  find("resume").addEventListener("click", back);
  find("export").addEventListener("click", download);
  find("copy").addEventListener("click", copy);
  find("another").addEventListener("click", another);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (shownScreen === "start" || event.target.closest("input, textarea")) return;
    const onButton = event.target.closest("button") !== null;
    const answer = shownScreen !== "ask" ? null : event.key === " " && !onButton ? "undecided" : KEYS[event.key];
    if (!answer && event.key !== "Backspace") return;
    event.preventDefault();
    if (event.repeat) return; // a key held down answers one question, not all of them
    if (answer) vote(answer);
    else back();
  });
  addEventListener("storage", (event) => { // answered in another tab of this browser: go on from there
    if (event.key !== STORE || !event.newValue) return;
    state = restore();
    previous = "";
    ask(firstOpen());
  });

  showPhotos(study.references);
  if (state.rater && state.started) {
    exported = false;
    ask(firstOpen());
  } else {
    screen("start");
    find("rater").focus();
  }
})();
