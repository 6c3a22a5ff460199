"use strict";
// Bars around a line of zero, that can be dragged, typed at and walked through with the arrow keys.

const CHART = { left: 44, right: 8, top: 10, bottom: 18 };

/**
 * Draw `values` as bars. Options:
 *   width, height   of the picture, in pixels
 *   limit           of its values; least: 0 for magnitudes, else -limit
 *   levels          lines behind the bars
 *   rounded         values that are marked over the bars
 *   kind            class of the bars, or a function of their number
 *   label           what one bar is, for readers
 *   edit(i, value)  makes the bars draggable; start and stop are called around a drag
 */
function barChart(values, options) {
  const { left, right, top, bottom } = CHART;
  const { width = 960, height = 300, limit = 1, least = -limit, levels = [], rounded, kind = "bar", edit, label = "weight" } = options;
  const low = height - bottom;
  const y = (v) => top + ((limit - clamp(v, least, limit)) / (limit - least)) * (low - top);
  const wide = (width - left - right) / values.length;
  const x = (i) => left + wide * i;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: edit ? "group" : "img", "aria-label": options.title });
  for (const level of levels)
    if (level <= limit && level >= least) picture.append(svg("line", { class: "level", x1: left, x2: width - right, y1: y(level), y2: y(level) }));
  for (const mark of ticks(least, limit, height < 120 ? 1 : 5))
    picture.append(svg("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, digits(mark, 3)));
  picture.append(svg("line", { class: "zero", x1: left, x2: width - right, y1: y(0), y2: y(0) }));
  for (let i = 0; i < values.length; i++) {
    const [a, b] = [y(0), y(values[i])];
    picture.append(
      svg("rect", {
        class: typeof kind === "string" ? kind : kind(i),
        x: x(i) + wide * 0.14, width: wide * 0.72, y: Math.min(a, b), height: Math.max(Math.abs(b - a), 0.5), rx: 2,
      }),
    );
    if (rounded) {
      const q = y(rounded[i]);
      picture.append(
        svg("line", { class: "error", x1: x(i) + wide / 2, x2: x(i) + wide / 2, y1: b, y2: q }),
        svg("line", { class: "value", x1: x(i) + wide * 0.16, x2: x(i) + wide * 0.84, y1: q, y2: q }),
      );
    }
    if (i % 4 === 0) picture.append(svg("text", { x: x(i) + wide / 2, y: height - 3, "text-anchor": "middle" }, i));
  }
  if (edit) values.forEach((value, i) => picture.append(handle(i, value)));
  return picture;

  function handle(i, value) {
    const node = svg("rect", {
      class: "hit", x: x(i), width: wide, y: top, height: low - top, tabindex: i === (options.focused || 0) ? 0 : -1,
      role: "slider", "aria-label": `${label} ${i}`, "aria-valuenow": value, "aria-valuemin": least, "aria-valuemax": limit,
      "aria-orientation": "vertical", "data-index": i,
    });
    return node;
  }
}

/** The least of 1, 2, 5, 10, 20, … that is not less. */
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((k) => k * power).find((step) => step >= least);
}

/** Round numbers between two, about `many` to either side. */
function ticks(least, limit, many) {
  const unit = roundStep(limit / (many + 0.5));
  const found = [];
  for (let k = 0; k * unit <= limit; k++) {
    found.push(k * unit);
    if (k > 0 && -k * unit >= least) found.push(-k * unit);
  }
  return found;
}

/**
 * Make the bars of the chart that `draw` puts into `holder` editable. The listeners are the holder's, so that the chart
 * may be drawn anew while a bar is dragged.
 */
function editable(holder, { values, range, least, step, change, done = () => {} }) {
  let dragged = null;
  const at = (event) => {
    const box = holder.firstChild.getBoundingClientRect();
    const [, , , tall] = holder.firstChild.getAttribute("viewBox").split(" ").map(Number);
    const part = ((event.clientY - box.top) / box.height) * tall;
    const { limit, low } = range();
    return limit - ((part - CHART.top) / (tall - CHART.bottom - CHART.top)) * (limit - low);
  };
  const index = (target) => (target.dataset && target.dataset.index !== undefined ? Number(target.dataset.index) : null);
  holder.addEventListener("pointerdown", (event) => {
    dragged = index(event.target);
    if (dragged === null) return;
    event.preventDefault();
    holder.setPointerCapture(event.pointerId);
    change(dragged, at(event), true);
  });
  holder.addEventListener("pointermove", (event) => dragged !== null && change(dragged, at(event), true));
  const release = () => {
    if (dragged === null) return;
    focusOn(dragged);
    dragged = null;
    done();
  };
  const focusOn = (i) => {
    const node = holder.querySelector(`[data-index="${i}"]`);
    if (node) node.focus();
  };
  holder.addEventListener("pointerup", release);
  holder.addEventListener("pointercancel", release);
  holder.addEventListener("keydown", (event) => {
    const i = index(event.target);
    if (i === null) return;
    const size = step() * (event.shiftKey ? 10 : 1);
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: values().length - 1 }[event.key];
    const by = { ArrowUp: size, ArrowDown: -size, PageUp: 10 * size, PageDown: -10 * size }[event.key];
    if (to === undefined && by === undefined && event.key !== "0") return;
    event.preventDefault();
    if (to !== undefined) focusOn((to + values().length) % values().length);
    else {
      const value = event.key === "0" ? 0 : values()[i] + by;
      change(i, Math.max(value, least()), false);
      done();
      focusOn(i);
    }
  });
}

/** Bytes, coloured by the field that they are in: "d:2 qs:16". */
function byteCells(bytes, fields) {
  const cells = el("div", { class: "bytes" });
  const legend = el("div", { class: "legend" });
  let at = 0;
  fields.split(" ").forEach((field, i) => {
    const [name, count] = [field.split(":")[0], Number(field.split(":")[1])];
    legend.append(el("span", { class: `field-${i}` }, el("i", {}), `${name}: ${count} ${count === 1 ? "byte" : "bytes"}`));
    for (let k = 0; k < count; k++, at++) cells.append(el("span", { class: `field-${i}`, title: `byte ${at}, ${name}` }, bytes[at].toString(16).padStart(2, "0")));
  });
  return el("div", {}, cells, legend);
}
