"use strict";
// The tensors: a list to search and sort, and one of them looked at.

function tensorsPart(panel, model, samples, errors) {
  const t = model.tensors;
  const search = el("input", { type: "search", placeholder: "Search names, types, reasons …", "aria-label": "Search tensors" });
  const count = el("span", { class: "soft small", role: "status" });
  const detail = el("section", { class: "panel", "aria-live": "polite" });
  const known = (i, name) => (samples && samples[i] ? samples[i][name] : null);
  const columns = [
    { title: "Tensor", width: "minmax(160px, 2.2fr)", of: (i) => t.name[i], show: (i) => foreign(t.name[i], 160) },
    { title: "Type", width: "64px", of: (i) => model.types[t.type[i]].name, show: (i) => typeChip(model, i) },
    { title: "Shape", width: "minmax(96px, 0.8fr)", of: (i) => t.weights[i], show: (i) => t.shape[i].join(" × ") || "scalar" },
    { title: "Bytes", width: "78px", number: true, of: (i) => t.bytes[i], show: (i) => humanBytes(t.bytes[i]) },
  ];
  if (samples) columns.push({ title: "RMS", width: "58px", number: true, of: (i) => known(i, "rms"), show: (i) => digits(known(i, "rms"), 3) },
    { title: "Outlier", width: "56px", number: true, of: (i) => known(i, "outlier"), show: (i) => digits(known(i, "outlier"), 3) });
  if (errors) columns.push({ title: "Error", width: "60px", number: true, of: (i) => (errors.has(t.name[i]) ? errors.get(t.name[i]) : null),
    show: (i) => (errors.has(t.name[i]) ? `${digits(100 * errors.get(t.name[i]), 3)} %` : "–") });
  let [sort, descending] = [-1, false];
  const list = longList({
    columns, label: "Tensors", cells: (i) => columns.map((column) => column.show(i)), open: (i) => showTensor(detail, model, samples, errors, i),
    sorted(k) {
      [sort, descending] = [k, sort === k ? !descending : false];
      filter();
    },
  });
  const texts = t.name.map((name, i) => `${name} ${model.types[t.type[i]].name} ${model.reasons[t.reason[i]]}`.toLowerCase());
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = t.name.map((_, i) => i).filter((i) => words.every((word) => texts[i].includes(word)));
    if (sort >= 0) found = sortedBy(found, columns[sort].of, descending);
    list.show(found);
    count.textContent = `${number(found.length)} of ${number(t.name.length + model.left_out)}`;
  };
  search.addEventListener("input", filter);
  detail.append(el("p", { class: "soft" }, "Choose a tensor: by a click, or with the arrow keys."));
  panel.append(el("div", { class: "beside" },
    el("section", { class: "panel" }, el("div", { class: "row split" }, search, count), list.node), detail));
  filter();
  return (i) => {
    search.value = "";
    filter();
    list.choose(i);
  };
}

function typeChip(model, i) {
  const type = model.types[model.tensors.type[i]];
  const colour = bitColour(type.bits);
  return el("span", { class: "chip", style: { background: colour, color: inkOn(colour) } }, type.name);
}

function showTensor(holder, model, samples, errors, i) {
  const t = model.tensors;
  const type = model.types[t.type[i]];
  const sample = samples ? samples[i] : null;
  const fact = (title, text) => el("div", {}, el("dt", {}, title), el("dd", {}, text));
  const facts = [fact("type", type.name), fact("bits per weight", digits(type.bits, 5)), fact("shape", t.shape[i].join(" × ") || "scalar"),
    fact("weights", number(t.weights[i])), fact("bytes", number(t.bytes[i])), fact("from byte", number(t.offset[i]))];
  if (errors && errors.has(t.name[i])) facts.push(fact("error", `${digits(100 * errors.get(t.name[i]), 4)} %`));
  if (sample && sample.rms !== undefined)
    facts.push(fact("rms", digits(sample.rms)), fact("largest / rms", digits(sample.outlier, 3)), fact("zeros", `${digits(100 * sample.zeros, 3)} %`));
  holder.replaceChildren(
    el("h2", {}, foreign(t.name[i], 300)),
    model.reasons[t.reason[i]] ? el("p", { class: "soft" }, foreign(model.reasons[t.reason[i]])) : "",
    el("dl", { class: "facts" }, facts),
  );
  if (!sample) return holder.append(el("p", { class: "soft small" }, samples ? "It holds no weights that could be looked at." : "This page was made without a look at the weights."));
  if (sample.broken) holder.append(el("p", { class: "warn" }, `${number(sample.broken)} of the weights that were looked at are not finite.`));
  if (!sample.histogram) return;
  holder.append(
    el("p", { class: "soft small" }, `A sample of ${sample.rows.length} of ${number(t.weights[i] / (t.shape[i][0] || 1))} rows.`),
    el("div", { class: "columns small-columns" },
      el("div", {}, el("h3", {}, "Weights"), histogram(sample.histogram, "weights")),
      sample.scales ? el("div", {}, el("h3", {}, "Scales of the blocks"), histogram(sample.scales, "scales")) : ""),
    el("h3", {}, sample.heat.what === "scale" ? "Scales of the blocks, row by row" : "Magnitudes, row by row"),
    heatMap(sample.heat, sample.rows),
    el("h3", {}, "As it is stored"),
    openedBlocks(sample.blocks, type),
  );
}

function histogram({ low, high, counts }, what) {
  const [width, height, bottom] = [380, 120, 18];
  const most = Math.max(...counts);
  const wide = width / counts.length;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": `Histogram of ${what}, from ${digits(low)} to ${digits(high)}` });
  counts.forEach((count, i) => {
    const tall = (height - bottom) * Math.sqrt(count / most);
    picture.append(svg("rect", { x: i * wide, width: Math.max(wide - 1, 0.5), y: height - bottom - tall, height: tall, rx: 1 },
      svg("title", {}, `${digits(low + ((high - low) * i) / counts.length, 3)}: ${number(count)}`)));
  });
  picture.append(svg("text", { x: 0, y: height - 4 }, digits(low, 3)), svg("text", { x: width, y: height - 4, "text-anchor": "end" }, digits(high, 3)));
  if (low < 0 && high > 0) {
    const x = (-low / (high - low)) * width;
    picture.append(svg("line", { class: "zero", x1: x, x2: x, y1: 0, y2: height - bottom }), svg("text", { x, y: height - 4, "text-anchor": "middle" }, "0"));
  }
  return el("div", {}, picture, el("div", { class: "soft small" }, "Heights are square roots of counts."));
}

function heatMap(heat, rows) {
  const cells = Uint8Array.from(atob(heat.cells), (c) => c.charCodeAt(0));
  const tall = clamp(Math.round(260 / rows.length), 4, 18);
  const canvas = sharpCanvas(tall * rows.length, (context, width) => {
    const wide = width / heat.columns;
    for (let r = 0; r < rows.length; r++)
      for (let c = 0; c < heat.columns; c++) {
        context.fillStyle = heatColour(cells[r * heat.columns + c] / 255);
        context.fillRect(c * wide, r * tall, wide + 0.5, tall + 0.5);
      }
  }, { class: "heat", "aria-label": `Mean ${heat.what} of parts of rows, from ${digits(heat.low, 3)} to ${digits(heat.high, 3)}` });
  const bar = el("span", { class: "heat-bar", "aria-hidden": "true" });
  const table_ = () => table([{ title: "Row" }, ...Array.from({ length: 8 }, (_, k) => ({ title: `${k + 1}/8`, number: true }))],
    rows.map((row, r) => [String(row), ...Array.from({ length: 8 }, (_, k) => value(cells[r * heat.columns + Math.floor((k * heat.columns) / 8)]))]), "Cells of the heat map");
  const value = (byte) => (byte === 0 ? "0" : digits(heat.low * (heat.high / heat.low || 1) ** ((byte - 1) / 254), 3));
  return el("div", {}, canvas, el("div", { class: "row small soft" }, digits(heat.low, 3), bar, digits(heat.high, 3)), lazyDetails("As a table", table_));
}

/** Details whose contents are made when they are opened. */
function lazyDetails(title, make) {
  const node = el("details", {}, el("summary", {}, title));
  node.addEventListener("toggle", () => node.open && node.childElementCount === 1 && node.append(el("div", { class: "scroll" }, make())));
  return node;
}

function openedBlocks({ stored, values }, type) {
  const bytes = Uint8Array.from(atob(stored), (c) => c.charCodeAt(0));
  const weights = new Float32Array(Uint8Array.from(atob(values), (c) => c.charCodeAt(0)).buffer);
  const count = Math.floor(weights.length / type.block);
  if (type.block === 1) {
    return el("div", {}, el("div", { class: "codes mono" }, [...weights.subarray(0, 64)].map((v) => digits(v, 5)).join("  ")));
  }
  const holder = el("div", {});
  const show = (block) => {
    const part = bytes.subarray(block * type.bytes, (block + 1) * type.bytes);
    const some = [...weights.subarray(block * type.block, (block + 1) * type.block)];
    const width = Math.max(holder.clientWidth, 240);
    const pieces = [];
    for (let at = 0; at < Math.min(some.length, 256); at += 64) {
      const shown = some.slice(at, at + 64);
      pieces.push(el("div", { class: "chart" }, barChart(shown, { width, height: 92, limit: 1.1 * Math.max(...some.map(Math.abs), 1e-30), title: `Weights ${at} to ${at + shown.length - 1} of the block` })));
    }
    holder.replaceChildren(byteCells(part, type.fields), ...pieces, lazyDetails("The weights", () => el("div", { class: "codes mono" }, some.map(String).join("  "))));
  };
  const input = el("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": "Which block" });
  const shown = el("output", {}, `0 of ${count}`);
  input.addEventListener("input", () => {
    shown.textContent = `${input.value} of ${count}`;
    show(Number(input.value));
  });
  setTimeout(() => show(0));
  return el("div", {}, el("label", { class: "small" }, `Block of ${type.block} weights in ${type.bytes} bytes`, count > 1 ? input : "", count > 1 ? shown : ""), holder);
}
