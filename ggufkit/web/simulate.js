"use strict";
// The block editor: one situation, drawn anew whenever a number of it changes.

/** Numbers like random ones, the same everywhere: mulberry32, and sums of twelve for a bell. */
function bell(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Array.from({ length: 12 }, next).reduce((a, b) => a + b) - 6;
}

/** 256 weights of three decimals. */
function gaussian(seed, sigma) {
  const draw = bell(seed);
  return Float32Array.from({ length: 256 }, () => Math.round(draw() * sigma * 1000) / 1000);
}

function changed(weights, places) {
  for (const [i, v] of Object.entries(places)) weights[i] = v;
  return weights;
}

const ONES = () => new Array(BLOCK).fill(1);
const PRESETS = [
  { name: "Outlier 4.85", weights: () => changed(gaussian(7, 0.12), { 19: 4.85 }), activations: ONES,
    about: "One weight of 4.85 among 31 small ones. Equal steps reach it only by rounding the others to 0, in Q4_0, too. Smaller blocks, other levels or a rotation help." },
  { name: "Gaussian", weights: () => gaussian(1, 0.3), activations: ONES, about: "What most blocks of a model look like." },
  { name: "Two outliers", weights: () => changed(gaussian(3, 0.15), { 6: 2.4, 22: -2.1 }), activations: ONES,
    about: "Two of opposite signs: a format that spends levels on both sides pays for both." },
  { name: "Hot activation", weights: () => gaussian(18, 0.3), activations: () => ONES().map((v, i) => (i === 11 ? 12 : v)),
    about: "The weights are ordinary, but one channel's activations are twelve times as large: what AWQ is for. Move its α." },
  { name: "Constant + noise", weights: () => gaussian(9, 0.04).map((v) => Math.round((v + 0.8) * 1000) / 1000), activations: ONES,
    about: "All weights near 0.8. A minimum beside the scale (Q4_1, Q4_K) is worth its bits here." },
  { name: "One hot", weights: () => changed(new Float32Array(256), { 12: 1 }), activations: ONES,
    about: "A single weight: exact nearly everywhere, but a rotation turns it into two heaps." },
];

const state = { weights: new Float32Array(256), activations: ONES(), rho: 0, alpha: 8, scale: "matched", preset: 0 };
const view = { chosen: "Q4_0", sort: "output", descending: false, step: BLOCK, limit: 1, top: 2, focused: 0 };
let results = [];

async function start() {
  const own = await readData("block");
  if (own) PRESETS.unshift({ name: own.title, foreign: true, weights: () => Float32Array.from(own.weights), activations: () => own.activations || ONES(),
    about: own.about });
  byId("tools").append(
    el("button", { type: "button", onclick: (e) => copyText(asPython(), e.target) }, "Copy as Python"),
    el("button", { type: "button", onclick: (e) => copyText(link(), e.target) }, "Copy link"),
    themeButton(),
  );
  PRESETS.forEach((preset, i) => byId("presets").append(el("button", { type: "button", onclick: () => load(i) }, visible(preset.name, 60))));
  settings();
  wire();
  if (!fromFragment()) load(0);
  window.addEventListener("hashchange", fromFragment);
  window.addEventListener("resize", soon);
}

function load(i) {
  const preset = PRESETS[i];
  Object.assign(state, { preset: i, weights: preset.weights(), activations: [...preset.activations()], alpha: 8 });
  rescale();
  update();
}

/** The pictures' limits, which stay as they are while a bar is dragged. */
function rescale() {
  view.limit = Math.max(1.12 * Math.max(...state.weights.subarray(0, BLOCK).map(Math.abs)), 1e-6);
  view.top = 1.15 * Math.max(...state.activations, 1);
}

// ---- Changes --------------------------------------------------------------------------------------------------------

function rounded(value, limit) {
  const unit = 10 ** (Math.floor(Math.log10(limit)) - 3);
  return f32(Number((Math.round(value / unit) * unit).toPrecision(6)));
}

function wire() {
  editable(byId("weights-chart"), {
    values: () => state.weights.subarray(0, BLOCK),
    range: () => ({ limit: view.limit, low: -view.limit }),
    least: () => -1000,
    step: () => view.limit / 100,
    change(i, value) {
      state.weights[i] = rounded(clamp(value, -1000, 1000), view.limit);
      view.focused = i;
      soon();
    },
    done: finish,
  });
  editable(byId("activations-chart"), {
    values: () => state.activations,
    range: () => ({ limit: view.top, low: 0 }),
    least: () => 0.01,
    step: () => 0.1,
    change(i, value) {
      state.activations[i] = clamp(Math.round(value * 100) / 100, 0.01, 1000);
      soon();
    },
    done: finish,
  });
}

function finish() {
  rescale();
  update();
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
  });
}

function settings() {
  const slider = (title, id, top, read, write, show) => {
    const shown = el("output", { for: id }, show(read()));
    const input = el("input", { type: "range", id, min: 0, max: top, step: 1, value: read() });
    input.addEventListener("input", () => {
      write(Number(input.value));
      shown.textContent = show(Number(input.value));
      soon();
    });
    document.addEventListener("state", () => {
      input.value = read();
      shown.textContent = show(read());
    });
    return el("label", {}, title, input, shown);
  };
  const select = el("select", { onchange: (e) => ((state.scale = e.target.value), soon()) },
    el("option", { value: "matched" }, "keeps the norm"), el("option", { value: "norm" }, "the paper's"));
  document.addEventListener("state", () => (select.value = state.scale));
  byId("settings").append(
    slider("Neighbours in common, ρ", "rho", 19, () => Math.round(state.rho * 20), (v) => (state.rho = v / 20), (v) => (v / 20).toFixed(2)),
    slider("AWQ's α", "alpha", 16, () => state.alpha, (v) => (state.alpha = v), (v) => (v / 16).toFixed(2)),
    el("button", { type: "button", onclick: bestAlpha }, "Best α"),
    el("label", {}, "TurboQuant's scale", select),
  );
}

/** The α of the least output error, as AWQ looks for it. */
function bestAlpha() {
  const method = METHODS.find((one) => one.name === "AWQ");
  const H = hessian(state);
  const errors = Array.from({ length: 17 }, (_, alpha) => measure(method, { ...state, alpha }, H).output);
  state.alpha = errors.indexOf(Math.min(...errors));
  view.chosen = "AWQ";
  update();
}

// ---- Drawing --------------------------------------------------------------------------------------------------------

function update() {
  const H = hessian(state);
  results = METHODS.map((method) => ({ method, ...measure(method, state, H) }));
  const chosen = results.find((one) => one.method.name === view.chosen);
  const preset = PRESETS[state.preset];
  [...byId("presets").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.preset)));
  byId("preset-about").replaceChildren(foreign(preset.about));
  document.querySelectorAll(".chosen-name").forEach((node) => (node.textContent = view.chosen));
  const weights = Array.from(state.weights.subarray(0, BLOCK));
  redraw(byId("weights-chart"), barChart(weights, { ...size("weights-chart", 300), limit: view.limit, levels: chosen.levels, rounded: chosen.values, edit: true, focused: view.focused, title: "The weights of the block" }));
  redraw(byId("activations-chart"), barChart(state.activations, { ...size("activations-chart", 74), limit: view.top, least: 0, kind: "activation", edit: true, label: "activation", title: "Magnitudes of the activations" }));
  drawTable();
  drawDetail(chosen);
  drawNumbers(chosen);
  document.dispatchEvent(new Event("state"));
}

/** A picture as wide as there is room in an element. */
function size(id, height) {
  const style = getComputedStyle(byId(id));
  return { width: Math.max(byId(id).clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight), 240), height };
}

/** Put a new picture in the place of the old one; who had the focus has it still. */
function redraw(holder, picture) {
  const active = holder.contains(document.activeElement) ? document.activeElement.dataset.index : undefined;
  holder.replaceChildren(picture);
  if (active !== undefined) holder.querySelector(`[data-index="${active}"]`).focus();
}

const COLUMNS = [
  { key: "name", title: "Method", of: (r) => r.method.name, show: (r) => r.method.name },
  { key: "bits", title: "Bits / weight", number: true, of: (r) => r.bits, show: (r) => digits(r.bits, 5) },
  { key: "rms", title: "Weight error", number: true, of: (r) => r.rms, show: (r) => digits(r.rms) },
  { key: "weighted", title: "weighted", number: true, of: (r) => r.weighted, show: (r) => digits(r.weighted) },
  { key: "largest", title: "largest", number: true, of: (r) => r.largest, show: (r) => digits(r.largest) },
  { key: "decibels", title: "dB", number: true, of: (r) => r.decibels, show: (r) => (r.decibels === Infinity ? "∞" : r.decibels.toFixed(1).replace("-", "−")) },
  { key: "output", title: "Output error", number: true, of: (r) => r.output, show: (r) => digits(r.output) },
];

function drawTable() {
  const column = COLUMNS.find((one) => one.key === view.sort);
  const sorted = [...results].sort((a, b) => (column.of(a) < column.of(b) ? -1 : column.of(a) > column.of(b) ? 1 : 0));
  if (view.descending) sorted.reverse();
  const worst = Math.max(...results.map((r) => r.output)) || 1;
  const head = COLUMNS.map((one) =>
    el("th", { scope: "col", class: one.number ? "number" : undefined, "aria-sort": one.key === view.sort ? (view.descending ? "descending" : "ascending") : undefined },
      el("button", { type: "button", onclick: () => sortBy(one.key) }, one.title)));
  const rows = sorted.map((r) =>
    el("tr", { "aria-selected": String(r.method.name === view.chosen), "data-method": r.method.name, onclick: () => choose(r.method.name) },
      COLUMNS.map((one) =>
        el("td", { class: one.number ? "number" : undefined },
          one.key === "name" ? el("button", { type: "button" }, r.method.name) : one.key === "output" ? [meter(r.output / worst), one.show(r)] : one.show(r)))));
  const focused = document.activeElement && document.activeElement.closest("tr[data-method]");
  byId("table").replaceChildren(el("caption", { class: "visually-hidden" }, "Methods and their errors"), el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
  if (focused) byId("table").querySelector(`tr[data-method="${focused.dataset.method}"] button`).focus();
}

function meter(part) {
  return el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: { width: `${100 * part}%` } }));
}

function sortBy(key) {
  view.descending = view.sort === key ? !view.descending : false;
  view.sort = key;
  drawTable();
}

function choose(name) {
  view.chosen = name;
  view.step = BLOCK;
  update();
}

function fact(title, text) {
  return el("div", {}, el("dt", {}, title), el("dd", {}, text));
}

function drawDetail(r) {
  const wide = r.method.weights;
  byId("detail").replaceChildren(
    el("h2", { id: "detail-title" }, r.method.name),
    el("p", { class: "soft" }, r.method.about),
    el("dl", { class: "facts" },
      fact("stored", `${r.bytes.length} bytes`), fact("for", `${wide} weights`), fact("bits per weight", digits(r.bits, 5)),
      fact("weight error", digits(r.rms, 5)), fact("output error", digits(r.output, 5)), fact("of the output", `${digits(100 * r.relative, 3)} %`)),
    el("h3", {}, "Stored bytes"),
    byteCells(r.bytes, r.fields),
    el("h3", {}, "Codes of the 32 weights"),
    el("div", { class: "codes" }, r.codes.join(" ")),
    ...extra(r),
  );
}

/** What some methods have to show besides. */
function extra(r) {
  if (r.turned) {
    const limit = 1.12 * Math.max(...Array.from(r.turned, Math.abs), ...Array.from(r.turnedValues, Math.abs), 1e-9);
    return [
      el("h3", {}, "After the rotation"),
      el("div", { class: "chart small-chart" }, barChart(Array.from(r.turned), { ...size("detail", 150), limit, levels: r.turnedLevels, rounded: r.turnedValues, title: "The rotated weights" })),
      el("p", { class: "soft small" }, "This is what is rounded; it is turned back afterwards."),
    ];
  }
  if (r.s)
    return [
      el("h3", {}, "What the activations are divided by"),
      el("div", { class: "chart small-chart" }, barChart(Array.from(r.s), { ...size("detail", 150), limit: 1.12 * Math.max(...r.s), least: 0, kind: "moved", title: "AWQ's factors" })),
      el("p", { class: "soft small" }, "The weights are multiplied by it before they are rounded; 1 / s goes into what comes before, so it costs nothing to store."),
    ];
  return r.steps ? gptqSteps(r) : [];
}

function gptqSteps(r) {
  const holder = el("div", { class: "chart small-chart" });
  const text = el("p", { class: "soft small" });
  const show = () => {
    const done = view.step;
    const work = done < BLOCK ? r.steps[done].weights : Float64Array.from(r.values);
    const bars = Array.from({ length: BLOCK }, (_, i) => (i < done ? r.values[i] : work[i]));
    redraw(holder, barChart(bars, { ...size("detail", 150), limit: view.limit, levels: r.levels, rounded: Array.from(state.weights.subarray(0, BLOCK)), kind: (i) => (i === done ? "now" : i < done ? "bar" : "moved"), title: "GPTQ, step by step" }));
    const last = r.steps[Math.min(done, BLOCK) - 1];
    text.textContent = done === 0 ? "Nothing is rounded yet. The marks are the weights as they were."
      : `Weight ${done - 1} aimed at ${digits(last.aim)} and got ${digits(last.value)}; those to its right were moved by the rest. The marks are the weights as they were.`;
  };
  const input = el("input", { type: "range", min: 0, max: BLOCK, value: view.step, "aria-label": "Step of GPTQ" });
  input.addEventListener("input", () => {
    view.step = Number(input.value);
    show();
  });
  show();
  return [el("h3", {}, "Step by step"), el("label", {}, "Rounded", input), holder, text];
}

function drawNumbers(chosen) {
  const table = byId("numbers");
  if (table.contains(document.activeElement)) return refreshNumbers(table, chosen);
  const input = (values, i, limit) =>
    el("input", { type: "number", step: "any", value: Number(values[i].toPrecision(9)), "aria-label": `number ${i}`,
      onchange: (e) => {
        const value = Number(e.target.value);
        if (e.target.value !== "" && Number.isFinite(value)) values[i] = clamp(value, limit, 1000);
        finish();
      } });
  table.replaceChildren(
    el("thead", {}, el("tr", {}, ["#", "Weight", "Activation", view.chosen, "Error", "Code"].map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, Array.from({ length: BLOCK }, (_, i) =>
      el("tr", {}, el("td", {}, i), el("td", {}, input(state.weights, i, -1000)), el("td", {}, input(state.activations, i, 0.01)),
        el("td", { class: "mono" }, String(chosen.values[i])), el("td", { class: "mono" }, digits(chosen.errors[i])), el("td", { class: "mono" }, chosen.codes[i])))),
  );
}

function refreshNumbers(table, chosen) {
  [...table.tBodies[0].rows].forEach((row, i) => {
    row.cells[3].textContent = String(chosen.values[i]);
    row.cells[4].textContent = digits(chosen.errors[i]);
    row.cells[5].textContent = chosen.codes[i];
  });
}

// ---- Elsewhere ------------------------------------------------------------------------------------------------------

/** The same in Python. Numbers of nine digits are the float32 that they came from. */
function asPython() {
  const list = (values) => Array.from(values, (v) => Number(v.toPrecision(9))).join(", ");
  const wide = METHODS.find((one) => one.name === view.chosen).weights;
  return [
    "import numpy as np",
    "from ggufkit.evaluate.methods import Situation, measure",
    "",
    "weights = np.zeros(256, np.float32)",
    `weights[:${wide}] = [${list(state.weights.subarray(0, wide))}]`,
    `activations = np.array([${list(state.activations)}])`,
    `situation = Situation(weights, activations, rho=${state.rho}, alpha=${state.alpha}, scale="${state.scale}")`,
    `found = measure("${view.chosen}", situation)`,
    "print(found.values[0], found.rms[0], found.output[0])",
    "",
  ].join("\n");
}

function link() {
  const floats = new Float32Array([...state.weights.subarray(0, BLOCK), ...state.activations]);
  const text = btoa(String.fromCharCode(...new Uint8Array(floats.buffer)));
  const rest = [state.preset, Math.round(state.rho * 20), state.alpha, state.scale, METHODS.findIndex((one) => one.name === view.chosen)];
  return `${location.href.split("#")[0]}#${rest.join(",")},${text}`;
}

/** What a link says; false where it says nothing that makes sense. */
function fromFragment() {
  const found = /^#(\d{1,2}),(\d{1,2}),(\d{1,2}),(matched|norm),(\d{1,2}),([A-Za-z0-9+/=]{344})$/.exec(location.hash);
  if (!found || found[1] >= PRESETS.length || found[5] >= METHODS.length) return false;
  const floats = new Float32Array(Uint8Array.from(atob(found[6]), (c) => c.charCodeAt(0)).buffer);
  if (!floats.every((v, i) => Number.isFinite(v) && Math.abs(v) <= 1000 && (i < BLOCK || v >= 0.009))) return false;
  const preset = PRESETS[Number(found[1])];
  state.weights = preset.weights();
  state.weights.set(floats.subarray(0, BLOCK));
  Object.assign(state, { preset: Number(found[1]), activations: Array.from(floats.subarray(BLOCK), (v) => Number(v.toPrecision(7))),
    rho: Math.min(Number(found[2]), 19) / 20, alpha: Math.min(Number(found[3]), 16), scale: found[4] });
  view.chosen = METHODS[Number(found[5])].name;
  rescale();
  update();
  return true;
}

start();
