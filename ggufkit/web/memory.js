"use strict";
// Memory: sliders with stops; of each the bytes are those that `ggufkit fit` gives.

const PART_COLOURS = ["var(--c1)", "var(--c3)", "var(--c2)", "var(--c4)", "var(--c5)", "var(--c6)"];

function memoryPart(panel, memory) {
  if (memory.missing) return panel.append(el("section", { class: "panel" }, el("p", {}, foreign(memory.missing))));
  const state = { engine: Object.keys(memory.engines)[0], type: "F16", context: Math.min(3, memory.contexts.length - 1), slots: 0, device: "" };
  const result = el("div", { "aria-live": "polite" });
  const range = (title, list, key) => {
    const output = el("output", {}, number(list[state[key]]));
    const input = el("input", { type: "range", min: 0, max: list.length - 1, value: state[key] });
    input.addEventListener("input", () => {
      state[key] = Number(input.value);
      output.textContent = number(list[state[key]]);
      show();
    });
    return el("label", {}, title, input, output);
  };
  const choice = (title, key, options, change = () => {}) => {
    const node = el("select", {}, options.map(([value, text]) => el("option", { value }, text)));
    node.addEventListener("change", () => {
      state[key] = node.value;
      change();
      show();
    });
    return el("label", {}, title, node);
  };
  const types = el("label", {});
  const fillTypes = () => {
    const known = Object.keys(memory.engines[state.engine].types);
    if (!known.includes(state.type)) state.type = known[0];
    const made = choice("Cache", "type", known.map((kind) => [kind, kind]));
    made.querySelector("select").value = state.type;
    types.replaceChildren(...made.childNodes);
  };
  fillTypes();
  const names = { "llama.cpp": "llama.cpp, all on the device", cpu: "ggufkit on the CPU", mlx: "ggufkit on MLX" };
  panel.append(el("section", { class: "panel" },
    el("div", { class: "row memory-settings" },
      choice("Engine", "engine", Object.keys(memory.engines).map((engine) => [engine, names[engine]]), fillTypes),
      types, range("Context", memory.contexts, "context"), range("Conversations", memory.slots, "slots"),
      choice("Device", "device", [["", "any"], ...memory.devices.map(([name, usable]) => [name, `${name}, ${humanBytes(usable)}`])])),
    result,
    el("p", { class: "soft small" }, "The numbers of ggufkit fit, at the stops of the sliders. Weights and caches are exact; computing is an estimate.")));
  show();

  function partsAt(context) {
    const engine = memory.engines[state.engine];
    return { weights: engine.weights, ...engine.types[state.type][state.slots][context] };
  }

  function show() {
    const parts = partsAt(state.context);
    const total = Object.values(parts).reduce((a, b) => a + b, 0);
    const device = memory.devices.find(([name]) => name === state.device);
    const whole = Math.max(total, device ? device[1] : 0);
    const colour = (k) => PART_COLOURS[k % PART_COLOURS.length];
    const bar = el("div", { class: "memory-bar", role: "img", "aria-label": `${humanBytes(total)} in all` },
      Object.entries(parts).map(([name, bytes], k) => el("div", { title: `${name}: ${humanBytes(bytes)}`, style: { width: `${(100 * bytes) / whole}%`, background: colour(k) } })));
    const rows = Object.entries(parts).map(([name, bytes], k) => [el("span", {}, el("i", { class: "dot", style: { background: colour(k) } }), name), humanBytes(bytes), number(bytes), `${((100 * bytes) / total).toFixed(1)} %`]);
    let verdict = "";
    if (device) {
      const fits = total <= device[1];
      const largest = memory.contexts.filter((_, c) => Object.values(partsAt(c)).reduce((a, b) => a + b, 0) <= device[1]).pop();
      verdict = el("p", { class: fits ? "good" : "warn" }, fits ? `Fits: ${humanBytes(device[1] - total)} are left.` : `Does not fit: ${humanBytes(total - device[1])} are missing.`,
        largest ? ` The largest context of these stops that fits is ${number(largest)}.` : " No context of these stops fits.");
    }
    result.replaceChildren(el("p", { class: "big" }, humanBytes(total)), bar, verdict,
      table([{ title: "Part" }, { title: "", number: true }, { title: "Bytes", number: true }, { title: "Share", number: true }], [...rows, [el("strong", {}, "all"), humanBytes(total), number(total), ""]], "Bytes by part"),
      curve());
  }

  /** Bytes against context, for each type of the cache. */
  function curve() {
    const engine = memory.engines[state.engine];
    const [width, height, left, bottom] = [800, 240, 84, 30];
    const lines = Object.entries(engine.types).map(([kind, slots]) => [kind, slots[state.slots].map((parts) => engine.weights + Object.values(parts).reduce((a, b) => a + b, 0))]);
    const most = Math.max(...lines.flatMap(([, values]) => values)) * 1.05;
    const [low, high] = [Math.log2(memory.contexts[0]), Math.log2(memory.contexts[memory.contexts.length - 1])];
    const x = (context) => left + ((Math.log2(context) - low) / (high - low || 1)) * (width - left - 60);
    const y = (bytes) => 8 + (1 - bytes / most) * (height - bottom - 8);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": "Bytes by context and type of the cache" });
    for (let k = 0; k <= 4; k++) picture.append(svg("line", { class: "axis", x1: left, x2: width - 60, y1: y((most * k) / 4), y2: y((most * k) / 4) }), svg("text", { class: "soft", x: left - 6, y: y((most * k) / 4) + 4, "text-anchor": "end" }, humanBytes(Math.round((most * k) / 4))));
    memory.contexts.forEach((context) => picture.append(svg("text", { class: "soft", x: x(context), y: height - 8, "text-anchor": "middle" }, context >= 1024 ? `${Math.round(context / 1024)}k` : String(context))));
    let last = -Infinity;
    lines.sort((a, b) => a[1][a[1].length - 1] - b[1][b[1].length - 1]).reverse().forEach(([kind, values], k) => {
      const end = y(values[values.length - 1]);
      last = Math.max(end, last + 13);
      picture.append(svg("polyline", { points: values.map((v, c) => `${x(memory.contexts[c])},${y(v)}`).join(" "), fill: "none", "stroke-width": kind === state.type ? 3 : 1.5, stroke: colourOf(k) }),
        svg("text", { x: width - 55, y: last + 4 }, kind));
    });
    picture.append(svg("line", { class: "axis", x1: x(memory.contexts[state.context]), x2: x(memory.contexts[state.context]), y1: 8, y2: height - bottom, "stroke-dasharray": "3 3" }));
    return el("div", {}, el("h3", {}, "By context and type of the cache"), picture);
  }

  function colourOf(k) {
    return PART_COLOURS[k % PART_COLOURS.length];
  }
}
