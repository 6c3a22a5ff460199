"use strict";
// The model beside another file, and among those that `compare` measured.

function otherPart(panel, model, other) {
  const counts = new Map();
  other.status.forEach((status) => counts.set(status, (counts.get(status) || 0) + 1));
  const worst = other.relative.reduce((best, value, i) => (value > (other.relative[best] || 0) ? i : best), 0);
  const facts = [["other", foreign(other.title)], ["bytes of it", humanBytes(other.model.facts.size)], ["bytes of this", humanBytes(model.facts.size || 0)],
    ...[...counts].map(([status, n]) => [status, number(n)])];
  if (other.relative[worst] > 0) facts.push(["largest error", `${digits(100 * other.relative[worst], 3)} %`]);
  const search = el("input", { type: "search", placeholder: "Search …", "aria-label": "Search tensors" });
  const changed = el("input", { type: "checkbox", checked: true });
  const numbers = (values) => (i) => (other.status[i] === "differs" || other.status[i] === "requantized" ? values[i] : null);
  const columns = [
    { title: "Tensor", width: "minmax(220px, 2fr)", of: (i) => other.name[i], show: (i) => foreign(other.name[i], 160) },
    { title: "Contents", width: "110px", of: (i) => other.status[i], show: (i) => other.status[i] },
    { title: "Type", width: "150px", of: (i) => other.b[i], show: (i) => [...new Set([other.a[i], other.b[i]].filter(Boolean))].join(" → ") },
    { title: "Bytes", width: "196px", number: true, of: (i) => other.bytes_b[i] - other.bytes_a[i], show: (i) => `${humanBytes(other.bytes_a[i])} → ${humanBytes(other.bytes_b[i])}` },
    { title: "Error, of rms", width: "104px", number: true, of: numbers(other.relative), show: (i) => (numbers(other.relative)(i) === null ? "–" : `${digits(100 * other.relative[i], 3)} %`) },
    { title: "Largest", width: "90px", number: true, of: numbers(other.largest), show: (i) => digits(numbers(other.largest)(i), 3) },
  ];
  let [sort, descending] = [-1, false];
  const list = longList({
    columns, label: "Tensors of both files", cells: (i) => columns.map((column) => column.show(i)),
    sorted(k) {
      [sort, descending] = [k, sort === k ? !descending : k >= 3];
      filter();
    },
  });
  const filter = () => {
    const same = ["identical", "same type", "same values"];
    let found = other.name.map((_, i) => i).filter((i) => (!changed.checked || !same.includes(other.status[i])) && other.name[i].includes(search.value));
    if (sort >= 0) found = sortedBy(found, columns[sort].of, descending);
    list.show(found);
  };
  search.addEventListener("input", filter);
  changed.addEventListener("change", filter);
  panel.append(
    el("section", { class: "panel" }, el("h2", {}, "From the other file to this one"), el("dl", { class: "facts" }, facts.map(([title, text]) => el("div", {}, el("dt", {}, title), el("dd", {}, text))))),
    el("section", { class: "panel" },
      el("h2", {}, "Both files, byte by byte"),
      el("h3", {}, foreign(other.title)), fileStrip(other.model, () => {}), typeLegend(other.model),
      el("h3", {}, foreign(model.title)), fileStrip(model, () => {}), typeLegend(model)),
    el("section", { class: "panel" }, el("div", { class: "row split" }, el("h2", {}, "Tensors"), el("span", { class: "row" }, search, el("label", { class: "small" }, changed, "only what differs"))), list.node),
    el("section", { class: "panel" }, el("h2", {}, `Metadata that differs (${other.fields.length})`),
      other.fields.length ? table([{ title: "Key" }, { title: "There" }, { title: "Here" }],
        other.fields.map(([key, a, b, items]) => [foreign(key), a === null ? "–" : foreign(a, 400), b === null ? "–" : [foreign(b, 400), items ? ` (${number(items)} items differ)` : ""]]), "Metadata that differs") : el("p", { class: "soft" }, "None.")),
  );
  filter();
}

/** KL divergence against size, logarithmic upwards; this file is marked. */
function resultsPart(panel, results, title) {
  const points = results.points.filter((p) => p.kld > 0).sort((a, b) => a.bytes - b.bytes);
  const [width, height, left, right, top, bottom] = [820, 420, 72, 30, 16, 44];
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": "KL divergence by size" });
  if (points.length) {
    const [least, most] = [Math.min(...points.map((p) => p.kld)) / 1.5, Math.max(...points.map((p) => p.kld)) * 1.5];
    const [small, large] = [Math.min(...points.map((p) => p.bytes)) * 0.94, Math.max(...points.map((p) => p.bytes)) * 1.06];
    const x = (bytes) => left + ((bytes - small) / (large - small || 1)) * (width - left - right);
    const y = (kld) => top + ((Math.log(most) - Math.log(kld)) / (Math.log(most) - Math.log(least) || 1)) * (height - top - bottom);
    for (let power = Math.ceil(Math.log10(least)); power <= Math.floor(Math.log10(most)); power++)
      picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power) }), svg("text", { class: "soft", x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, String(10 ** power)));
    const unit = roundStep((large - small) / 5);
    for (let bytes = Math.ceil(small / unit) * unit; bytes <= large; bytes += unit)
      picture.append(svg("line", { class: "axis", x1: x(bytes), x2: x(bytes), y1: height - bottom, y2: height - bottom + 5 }), svg("text", { class: "soft", x: x(bytes), y: height - 22, "text-anchor": "middle" }, humanBytes(bytes)));
    picture.append(svg("text", { class: "soft", x: width / 2, y: height - 4, "text-anchor": "middle" }, "size"), svg("text", { class: "soft", x: 4, y: 12 }, "KLD"));
    // What no other beats in both.
    let best = Infinity;
    const front = points.filter((p) => (p.kld < best ? ((best = p.kld), true) : false));
    picture.append(svg("polyline", { points: front.map((p) => `${x(p.bytes)},${y(p.kld)}`).join(" "), fill: "none", stroke: "var(--c1)", "stroke-width": 1.5, opacity: 0.6 }));
    for (const p of points) {
      picture.append(svg("line", { x1: x(p.bytes), x2: x(p.bytes), y1: y(p.kld + p.error), y2: y(Math.max(p.kld - p.error, least)), stroke: "var(--c1)" }),
        svg("circle", { cx: x(p.bytes), cy: y(p.kld), r: p.this ? 8 : 5, fill: p.this ? "var(--c2)" : "var(--c1)" }, svg("title", {}, `${visible(p.name, 80)}: ${digits(p.kld)}`)),
        svg("text", { x: x(p.bytes) + 10, y: y(p.kld) - 8, "font-weight": p.this ? 700 : 400 }, visible(p.name.replace(/\.gguf$/, ""), 30)));
    }
  }
  const marked = results.points.some((p) => p.this);
  panel.append(el("section", { class: "panel" },
    el("h2", {}, "What each byte buys"),
    el("p", { class: "soft" }, "KL divergence from ", foreign(results.base.name, 80), marked ? "; this file is the large mark." : ["; ", foreign(title, 80), " is not among them."]),
    picture,
    table([{ title: "File" }, { title: "Bytes", number: true }, { title: "Bits per weight", number: true }, { title: "KLD", number: true }, { title: "±", number: true }, { title: "Same top", number: true }, { title: "Perplexity", number: true }],
      [...results.points].sort((a, b) => a.bytes - b.bytes).map((p) => [p.this ? el("strong", {}, foreign(p.name, 80)) : foreign(p.name, 80), humanBytes(p.bytes), digits(p.bpw, 4), digits(p.kld), digits(p.error, 2), `${digits(100 * p.same_top, 4)} %`, digits(p.perplexity)]), "Results of compare")));
}
