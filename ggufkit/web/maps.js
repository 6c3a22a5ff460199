"use strict";
// The file as pictures: a strip by offset, a treemap by layer, a matrix of layers and roles.

const BIT_COLOURS = [
  [1.5, [75, 29, 117]], [2.5, [91, 74, 199]], [3.5, [59, 120, 216]], [4.5, [31, 159, 181]], [6.5, [53, 183, 121]],
  [8.5, [165, 198, 59]], [16, [240, 179, 63]], [32, [229, 112, 58]],
];

/** A colour for bits per weight. */
function bitColour(bits) {
  const last = BIT_COLOURS.length - 1;
  let i = BIT_COLOURS.findIndex(([b]) => bits <= b);
  if (i < 0) i = last;
  if (i === 0) return rgb(BIT_COLOURS[0][1]);
  const [[low, a], [high, b]] = [BIT_COLOURS[i - 1], BIT_COLOURS[i]];
  const t = clamp((bits - low) / (high - low), 0, 1);
  return rgb(a.map((v, k) => Math.round(v + t * (b[k] - v))));
}

function rgb(parts) {
  return `rgb(${parts.join(" ")})`;
}

/** Pale to dark, of a number from 0 to 1. */
function heatColour(t) {
  const stops = [[246, 238, 222], [247, 196, 122], [232, 110, 78], [170, 40, 96], [72, 18, 96]];
  const at = clamp(t, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return rgb(stops[i].map((v, k) => Math.round(v + (at - i) * (stops[i + 1][k] - v))));
}

/** Black or white, whichever can be read on a colour. */
function inkOn(colour) {
  const [r, g, b] = colour.match(/\d+/g).map(Number);
  return r * 0.299 + g * 0.587 + b * 0.114 > 140 ? "#111" : "#fff";
}

/** The legend of a model's types. */
function typeLegend(model) {
  const bytes = model.types.map(() => 0);
  model.tensors.type.forEach((type, i) => (bytes[type] += model.tensors.bytes[i]));
  const order = model.types.map((_, i) => i).sort((a, b) => bytes[b] - bytes[a]);
  const total = bytes.reduce((a, b) => a + b, 0) || 1;
  return el("div", { class: "legend types" }, order.map((i) =>
    el("span", {}, el("i", { style: { background: bitColour(model.types[i].bits) } }), `${model.types[i].name} ${(100 * bytes[i] / total).toFixed(1)} %`)));
}

/** A canvas that is as sharp as the screen, drawn by draw(context, width, height) when its size or the theme changes. */
function sharpCanvas(height, draw, attributes) {
  const canvas = el("canvas", { role: "img", ...attributes });
  canvas.style.height = `${height}px`;
  const paint = () => {
    const width = canvas.clientWidth;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    draw(context, width, height);
  };
  new ResizeObserver(paint).observe(canvas);
  document.addEventListener("theme", paint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  return canvas;
}

/** Shows what is under the pointer, and opens it. find(x, y) → number of a tensor or null. */
function pointing(canvas, find, describe, open) {
  const tip = el("div", { class: "tip", hidden: true });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const i = find(event.clientX - box.left, event.clientY - box.top);
    tip.hidden = i === null;
    canvas.style.cursor = i === null ? "default" : "pointer";
    if (i === null) return;
    tip.replaceChildren(...describe(i));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 300)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const i = find(event.clientX - box.left, event.clientY - box.top);
    tip.hidden = true;
    if (i !== null) open(i);
  });
  document.body.append(tip);
}

function describeTensor(model, i) {
  const t = model.tensors;
  return [
    el("strong", {}, foreign(t.name[i], 120)),
    el("div", {}, `${model.types[t.type[i]].name}, ${t.shape[i].join(" × ") || "scalar"}, ${humanBytes(t.bytes[i])}`),
  ];
}

/** The file from its first byte to its last. */
function fileStrip(model, open) {
  const t = model.tensors;
  const order = t.offset.map((_, i) => i).sort((a, b) => t.offset[a] - t.offset[b]);
  let places = [];
  const canvas = sharpCanvas(46, (context, width, height) => {
    // Offsets of a split model begin anew in each file: tensors are laid end to end.
    const total = t.bytes.reduce((a, b) => a + b, 0) || 1;
    let at = 0;
    places = [];
    for (const i of order) {
      const wide = (t.bytes[i] / total) * width;
      context.fillStyle = bitColour(model.types[t.type[i]].bits);
      context.fillRect(at, 0, Math.max(wide, 0.3), height);
      if (wide > 3) {
        context.fillStyle = "rgb(0 0 0 / 25%)";
        context.fillRect(at + wide - 0.5, 0, 0.5, height);
      }
      places.push([at, at + wide, i]);
      at += wide;
    }
  }, { class: "strip", "aria-label": "The file by offset, coloured by bits per weight" });
  const find = (x) => {
    const hit = places.find(([a, b]) => x >= a && x < b);
    return hit ? hit[2] : null;
  };
  pointing(canvas, find, (i) => describeTensor(model, i), open);
  return canvas;
}

/** Rectangles of these areas that fill one, as square as can be (Bruls, Huizing, van Wijk: squarified treemaps). */
function squarified(items, area, x, y, width, height) {
  const total = items.reduce((sum, item) => sum + area(item), 0);
  const placed = [];
  if (!(total > 0)) return placed;
  const scale = (width * height) / total;
  let row = [];
  let rest = items.filter((item) => area(item) > 0).sort((a, b) => area(b) - area(a));
  const worst = (sizes, side) => {
    const sum = sizes.reduce((a, b) => a + b, 0);
    return Math.max((side * side * sizes[0]) / (sum * sum), (sum * sum) / (side * side * sizes[sizes.length - 1]));
  };
  const lay = () => {
    const sum = row.reduce((a, item) => a + area(item) * scale, 0);
    const across = width >= height;
    const side = across ? height : width;
    const deep = sum / side;
    let at = across ? y : x;
    for (const item of row) {
      const long = (area(item) * scale) / deep;
      placed.push(across ? { item, x, y: at, width: deep, height: long } : { item, x: at, y, width: long, height: deep });
      at += long;
    }
    if (across) [x, width] = [x + deep, width - deep];
    else [y, height] = [y + deep, height - deep];
    row = [];
  };
  while (rest.length) {
    const side = Math.min(width, height);
    const sizes = row.map((item) => area(item) * scale);
    const next = area(rest[0]) * scale;
    if (!row.length || worst([...sizes, next], side) <= worst(sizes, side)) row.push(rest.shift());
    else lay();
  }
  if (row.length) lay();
  return placed;
}

/** Layers, and in each its tensors, by bytes. */
function treemap(model, open) {
  const t = model.tensors;
  const groups = new Map();
  t.name.forEach((name, i) => {
    const key = t.layer[i] === null ? `- ${name.split(".")[0]}` : `layer ${t.layer[i]}`;
    if (!groups.has(key)) groups.set(key, { key, tensors: [], bytes: 0 });
    groups.get(key).tensors.push(i);
    groups.get(key).bytes += t.bytes[i];
  });
  const layerOf = (group) => t.layer[group.tensors[0]] ?? -1;
  const sorted = [...groups.values()].sort((a, b) => layerOf(a) - layerOf(b));
  let leaves = [];
  const canvas = sharpCanvas(420, (context, width, height) => {
    const style = getComputedStyle(document.documentElement);
    leaves = [];
    context.font = `11px ${style.getPropertyValue("--sans")}`;
    for (const place of squarified(sorted, (group) => group.bytes, 0, 0, width, height)) {
      const inner = squarified(place.item.tensors, (i) => t.bytes[i], place.x + 1, place.y + 1, Math.max(place.width - 2, 0.1), Math.max(place.height - 2, 0.1));
      for (const leaf of inner) {
        context.fillStyle = bitColour(model.types[t.type[leaf.item]].bits);
        context.fillRect(leaf.x + 0.25, leaf.y + 0.25, Math.max(leaf.width - 0.5, 0.2), Math.max(leaf.height - 0.5, 0.2));
        leaves.push(leaf);
      }
      const label = place.item.key.startsWith("- ") ? visible(place.item.key.slice(2), 40) : place.item.key.slice(6);
      if (place.width > context.measureText(label).width + 10 && place.height > 17) {
        const biggest = inner[0] || place;
        context.fillStyle = inkOn(bitColour(model.types[t.type[biggest.item]].bits));
        context.fillText(label, place.x + 5, place.y + 14);
      }
    }
  }, { class: "treemap", "aria-label": "Layers and their tensors by bytes, coloured by bits per weight" });
  const find = (x, y) => {
    const hit = leaves.find((leaf) => x >= leaf.x && x < leaf.x + leaf.width && y >= leaf.y && y < leaf.y + leaf.height);
    return hit ? hit.item : null;
  };
  pointing(canvas, find, (i) => describeTensor(model, i), open);
  return canvas;
}

/** Bytes of each layer as a table. */
function layerTable(model) {
  const t = model.tensors;
  const sums = new Map();
  t.name.forEach((_, i) => {
    const key = t.layer[i];
    const sum = sums.get(key) || { tensors: 0, bytes: 0, weights: 0 };
    sums.set(key, { tensors: sum.tensors + 1, bytes: sum.bytes + t.bytes[i], weights: sum.weights + t.weights[i] });
  });
  const rows = [...sums].sort(([a], [b]) => (a === null ? -1 : a) - (b === null ? -1 : b));
  return table(
    [{ title: "Layer" }, { title: "Tensors", number: true }, { title: "Bytes", number: true }, { title: "Bits per weight", number: true }],
    rows.map(([layer, sum]) => [layer === null ? "outside the layers" : String(layer), sum.tensors, humanBytes(sum.bytes), digits((8 * sum.bytes) / (sum.weights || 1), 4)]),
    "Bytes of the layers",
  );
}

// ---- The matrix -----------------------------------------------------------------------------------------------------

/** What cells can be coloured by: [{key, title, of(i) → number or null, colour(value, all), text(value)}]. */
function matrixMeasures(model, samples, errors) {
  const t = model.tensors;
  const scaledBy = (of) => {
    const values = t.name.map((_, i) => of(i)).filter((v) => v !== null && v > 0);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (v) => heatColour(v > 0 ? Math.log(v / low) / (Math.log(high / low) || 1) : 0);
  };
  const measures = [{ key: "bits", title: "bits per weight", of: (i) => model.types[t.type[i]].bits, colour: bitColour, text: (v) => `${digits(v, 4)} bits` }];
  const add = (key, title, of, text) => {
    if (t.name.some((_, i) => of(i) > 0)) measures.push({ key, title, of, colour: scaledBy(of), text });
  };
  if (errors) add("error", "error against the other file", (i) => (errors.has(t.name[i]) ? errors.get(t.name[i]) : null), (v) => `error ${digits(100 * v, 3)} %`);
  if (samples) {
    const known = (name) => (i) => (samples[i] && samples[i][name] !== undefined ? samples[i][name] : null);
    add("outlier", "largest weight over rms", known("outlier"), (v) => `largest ${digits(v, 3)} × rms`);
    add("rms", "rms of the weights", known("rms"), (v) => `rms ${digits(v, 3)}`);
    add("zeros", "share of zeros", known("zeros"), (v) => `${digits(100 * v, 3)} % zeros`);
  }
  return measures;
}

/** Roles downwards, layers across; a cell is a tensor, or several of a role in a layer (the first is shown). */
function layerMatrix(model, measure, open) {
  const t = model.tensors;
  const roles = new Map();
  let layers = 0;
  t.name.forEach((name, i) => {
    if (t.layer[i] === null) return;
    const role = name.replace(/^blk\.\d+\./, "");
    if (!roles.has(role)) roles.set(role, new Map());
    roles.get(role).set(t.layer[i], i);
    layers = Math.max(layers, t.layer[i] + 1);
  });
  layers = Math.min(layers, 512);
  const shown = [...roles].slice(0, 200);
  const head = el("tr", {}, el("th", { scope: "col" }, "role"), Array.from({ length: layers }, (_, l) => el("th", { scope: "col", class: "layer" }, l % 5 === 0 ? String(l) : el("span", { class: "visually-hidden" }, l))));
  const rows = shown.map(([role, cells]) =>
    el("tr", {}, el("th", { scope: "row" }, foreign(role, 60)),
      Array.from({ length: layers }, (_, l) => {
        const i = cells.get(l);
        const value = i === undefined ? null : measure.of(i);
        if (i === undefined || value === null) return el("td", { class: "none" }, i === undefined ? null : el("button", { type: "button", "data-tensor": i, "aria-label": "nothing known" }));
        const text = `${visible(t.name[i], 80)}: ${model.types[t.type[i]].name}, ${measure.text(value)}`;
        return el("td", {}, el("button", { type: "button", "data-tensor": i, title: text, "aria-label": text, tabindex: -1, style: { background: measure.colour(value) } }));
      })));
  const node = el("table", { class: "matrix" }, el("caption", { class: "visually-hidden" }, `Layers and roles by ${measure.title}`), el("thead", {}, head), el("tbody", {}, rows));
  node.style.setProperty("--cell", `${clamp(Math.floor((Math.min(innerWidth, 1400) - 300) / layers) - 1, 12, 36)}px`);
  const first = node.querySelector("td button");
  if (first) first.tabIndex = 0;
  node.addEventListener("click", (event) => event.target.dataset.tensor !== undefined && open(Number(event.target.dataset.tensor)));
  node.addEventListener("keydown", (event) => walk(node, event));
  return node;
}

/** Arrow keys in the matrix. */
function walk(node, event) {
  const cell = event.target.closest("td");
  const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (!cell || !by) return;
  event.preventDefault();
  const row = cell.parentNode.sectionRowIndex;
  let [r, c] = [row + by[0], cell.cellIndex + by[1]];
  const rows = node.tBodies[0].rows;
  while (r >= 0 && r < rows.length && c >= 1 && c < rows[r].cells.length) {
    const button = rows[r].cells[c].querySelector("button");
    if (button) {
      event.target.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
      return;
    }
    [r, c] = [r + by[0], c + by[1]];
  }
}
