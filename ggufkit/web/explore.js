"use strict";
// One model: its parts are tabs, each built when it is first opened from data that is unpacked then.

async function start() {
  const model = await readData("model");
  const data = (name) => {
    let found;
    return () => (found = found || readData(name));
  };
  const [metadata, vocabulary, conversation, memory, samples, other, results] = ["metadata", "vocabulary", "conversation", "memory", "samples", "other", "results"].map(data);
  const has = (name) => byId(`data-${name}`) !== null;
  byId("title").append(foreign(model.title, 200));
  byId("subtitle").append(model.planned ? "A plan: nothing is written yet. " : "", foreign([model.facts.name, model.facts.architecture, model.facts.file_type].filter(Boolean).join(" · "), 300));
  byId("tools").append(themeButton());

  let choose = null; // of the tensors' tab, once it is built
  const toTensor = async (i) => {
    open("tensors");
    while (choose === null) await new Promise((resolve) => setTimeout(resolve, 10));
    choose(i);
  };
  const errors = async () => (has("other") ? errorsOf(await other()) : null);
  const soon = (build) => (panel) => build(panel).catch((error) => panel.append(el("p", { class: "warn" }, String(error))));
  const tabs = [
    { id: "overview", title: "Overview", build: (panel) => overviewPart(panel, model, toTensor) },
    { id: "layers", title: "Layers", build: soon(async (panel) => layersPart(panel, model, await samples(), await errors(), toTensor)) },
    { id: "tensors", title: "Tensors", build: soon(async (panel) => (choose = tensorsPart(panel, model, await samples(), await errors()))) },
    { id: "metadata", title: "Metadata", build: soon(async (panel) => metadataPart(panel, await metadata())) },
  ];
  let tokenizer;
  const lazily = async () => {
    const v = await vocabulary();
    tokenizer = tokenizer || lazyTokenizer(v);
    return v;
  };
  if (has("vocabulary")) tabs.push({ id: "vocabulary", title: "Vocabulary", build: soon(async (panel) => vocabularyPart(panel, await lazily(), tokenizer)) });
  if (has("conversation")) tabs.push({ id: "template", title: "Chat template", build: soon(async (panel) => conversationPart(panel, await conversation(), await lazily(), tokenizer)) });
  tabs.push({ id: "memory", title: "Memory", build: soon(async (panel) => memoryPart(panel, await memory())) });
  if (has("other")) tabs.push({ id: "other", title: "Beside another", build: soon(async (panel) => otherPart(panel, model, await other())) });
  if (has("results")) tabs.push({ id: "quality", title: "Quality", build: soon(async (panel) => resultsPart(panel, await results(), model.title)) });
  const open = tabBar(byId("parts"), tabs);
}

/** Tensor name → relative error, of tensors that were compared. */
function errorsOf(other) {
  const found = new Map();
  other.name.forEach((name, i) => {
    if (other.status[i] === "differs" || other.status[i] === "requantized") found.set(name, other.relative[i]);
    if (other.status[i] === "identical" || other.status[i] === "same values") found.set(name, 0);
  });
  return found;
}

const FACT_NAMES = { bits_per_weight: "bits per weight", file_type: "type", bytes: "bytes of weights", kv_heads: "heads of keys and values", byteorder: "byte order" };

function overviewPart(panel, model, open) {
  const elsewhere = (name, value) => name === "name" || (name === "files" && value === 1);
  const shown = Object.entries(model.facts).filter(([name, value]) => !elsewhere(name, value)).map(([name, value]) => {
    const bytes = name === "size" || name === "bytes";
    const text = bytes ? humanBytes(value) : name === "parameters" ? humanCount(value) : name === "bits_per_weight" ? digits(value, 4) : typeof value === "number" ? number(value) : foreign(value, 300);
    return el("div", {}, el("dt", {}, FACT_NAMES[name] || name.replaceAll("_", " ")), el("dd", { title: typeof value === "number" ? String(value) : undefined }, text));
  });
  panel.append(
    el("section", { class: "panel" }, el("h2", {}, "At first sight"), el("dl", { class: "facts" }, shown),
      model.left_out ? el("p", { class: "warn" }, `${number(model.left_out)} more tensors are left out of this page.`) : ""),
    el("section", { class: "panel" }, el("h2", {}, "The file from its first byte to its last"), fileStrip(model, open), typeLegend(model)),
    el("section", { class: "panel" }, el("h2", {}, "Where the bytes are"), el("p", { class: "soft small" }, "A field for each layer, in it its tensors; colours are bits per weight. A click opens the tensor."), treemap(model, open), lazyDetails("As a table", () => layerTable(model))),
    el("section", { class: "panel" }, el("h2", {}, "Types"), typesTable(model)),
  );
}

function typesTable(model) {
  const t = model.tensors;
  const sums = model.types.map(() => ({ tensors: 0, weights: 0, bytes: 0 }));
  t.type.forEach((type, i) => {
    sums[type].tensors++;
    sums[type].weights += t.weights[i];
    sums[type].bytes += t.bytes[i];
  });
  const total = sums.reduce((a, s) => a + s.bytes, 0) || 1;
  const order = sums.map((_, i) => i).sort((a, b) => sums[b].bytes - sums[a].bytes);
  return table([{ title: "Type" }, { title: "Bits per weight", number: true }, { title: "Tensors", number: true }, { title: "Weights", number: true }, { title: "Bytes", number: true }, { title: "Share", number: true }],
    order.map((i) => [el("span", { class: "chip", style: { background: bitColour(model.types[i].bits), color: inkOn(bitColour(model.types[i].bits)) } }, model.types[i].name), digits(model.types[i].bits, 5), number(sums[i].tensors), humanCount(sums[i].weights), humanBytes(sums[i].bytes), `${((100 * sums[i].bytes) / total).toFixed(1)} %`]), "Types");
}

function layersPart(panel, model, samples, errors, open) {
  const measures = matrixMeasures(model, samples, errors);
  const holder = el("div", { class: "scroll" });
  const legend = el("p", { class: "soft small" });
  const select = el("select", {}, measures.map((measure) => el("option", { value: measure.key }, measure.title)));
  const show = () => {
    const measure = measures.find((one) => one.key === select.value);
    holder.replaceChildren(layerMatrix(model, measure, open));
    const values = model.tensors.name.map((_, i) => measure.of(i)).filter((v) => v !== null);
    legend.textContent = `From ${measure.text(Math.min(...values))} to ${measure.text(Math.max(...values))}. Arrow keys walk through the cells, Enter opens a tensor.`;
  };
  select.addEventListener("change", show);
  panel.append(el("section", { class: "panel" }, el("div", { class: "row split" }, el("h2", {}, "Layers and roles"), el("label", { class: "small" }, "coloured by", select)), holder, legend, typeLegend(model)), reasonsTable(model, open));
  show();
}

function reasonsTable(model, open) {
  const t = model.tensors;
  const groups = new Map();
  t.reason.forEach((reason, i) => {
    const key = `${reason} ${t.type[i]}`;
    if (!groups.has(key)) groups.set(key, { reason: model.reasons[reason], type: t.type[i], tensors: [], bytes: 0 });
    groups.get(key).tensors.push(i);
    groups.get(key).bytes += t.bytes[i];
  });
  if (model.reasons.every((reason) => !reason)) return el("section", { class: "panel" }, el("h2", {}, "Why these types"), el("p", { class: "soft" }, "The file does not say which preset it was made with."));
  const rows = [...groups.values()].sort((a, b) => b.bytes - a.bytes).map((group) => [
    typeChip(model, group.tensors[0]), foreign(group.reason || "–"), number(group.tensors.length), humanBytes(group.bytes),
    el("button", { type: "button", class: "plain", onclick: () => open(group.tensors[0]) }, foreign(t.name[group.tensors[0]], 60))]);
  return el("section", { class: "panel" }, el("h2", {}, "Why these types"),
    el("p", { class: "soft small" }, model.planned ? "The plan's reasons." : "What llama-quantize's preset of that name says of tensors like these; a file does not keep the reasons."),
    table([{ title: "Type" }, { title: "Reason" }, { title: "Tensors", number: true }, { title: "Bytes", number: true }, { title: "The first" }], rows, "Reasons"));
}

function metadataPart(panel, rows) {
  const search = el("input", { type: "search", placeholder: "Search keys and values …", "aria-label": "Search metadata" });
  const count = el("span", { class: "soft small", role: "status" });
  const holder = el("div", { class: "metadata" });
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(([key, kind, value]) => words.every((word) => `${key} ${kind} ${value}`.toLowerCase().includes(word)));
    count.textContent = `${found.length} of ${rows.length}`;
    holder.replaceChildren(table([{ title: "Key" }, { title: "Type" }, { title: "Value" }],
      found.slice(0, 1000).map(([key, kind, value]) => [foreign(key, 300), kind, el("div", { class: "long" }, foreign(value, 50000))]), "Metadata"));
  };
  search.addEventListener("input", show);
  panel.append(el("section", { class: "panel" }, el("div", { class: "row split" }, search, count), holder));
  show();
}

start();
