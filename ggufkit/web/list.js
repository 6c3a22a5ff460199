"use strict";
// A list of any length: only the rows in sight are elements. Rows are of one height; arrow keys walk through them.

const ROW = 28;

/**
 * options: columns [{title, width, number, sort}], cells(i) → contents of a row, label, open(i), sorted(column)
 * Returns {show(order)}: which rows there are, by their numbers.
 */
function longList(options) {
  const { columns, cells, label, open = () => {}, sorted } = options;
  const template = columns.map((column) => column.width || "minmax(60px, 1fr)").join(" ");
  const least = `${columns.reduce((sum, column) => sum + 14 + Number(/\d+/.exec(column.width || "60")[0]), 0)}px`;
  const space = el("div", { class: "space", style: { minWidth: least } });
  const head = el("div", { class: "list-head", role: "row", style: { gridTemplateColumns: template, minWidth: least } },
    columns.map((column, k) =>
      el("span", { role: "columnheader", class: column.number ? "number" : undefined },
        sorted && column.sort !== false ? el("button", { type: "button", onclick: () => sorted(k) }, column.title) : column.title)));
  const body = el("div", { class: "list", role: "grid", "aria-label": label, tabindex: 0 }, head, space);
  let order = [];
  let chosen = -1;
  let drawn = "";
  const draw = () => {
    const first = Math.max(0, Math.floor(body.scrollTop / ROW) - 6);
    const last = Math.min(order.length, Math.ceil((body.scrollTop + (body.clientHeight || 600)) / ROW) + 6);
    const key = `${first} ${last} ${chosen}`;
    if (key === drawn) return;
    drawn = key;
    const rows = [];
    for (let at = first; at < last; at++)
      rows.push(
        el("div", { role: "row", "aria-rowindex": at + 1, "aria-selected": String(at === chosen), "data-at": at, style: { top: `${at * ROW}px`, gridTemplateColumns: template } },
          cells(order[at]).map((cell, k) => el("span", { role: "gridcell", class: columns[k].number ? "number" : undefined }, cell))));
    space.replaceChildren(...rows);
  };
  const choose = (at) => {
    if (at < 0 || at >= order.length) return;
    chosen = at;
    if (at * ROW < body.scrollTop) body.scrollTop = at * ROW;
    const below = (at + 1) * ROW + head.offsetHeight - body.clientHeight;
    if (below > body.scrollTop) body.scrollTop = below;
    draw();
    open(order[at]);
  };
  body.addEventListener("scroll", draw);
  body.addEventListener("click", (event) => {
    const row = event.target.closest("[data-at]");
    if (row) choose(Number(row.dataset.at));
  });
  body.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(body.clientHeight / ROW) - 1);
    const to = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: Math.min(chosen + page, order.length - 1), PageUp: Math.max(chosen - page, 0), Home: 0, End: order.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  new ResizeObserver(() => ((drawn = ""), draw())).observe(body);
  const node = el("div", { class: "long-list" }, body);
  return {
    node,
    show(numbers, keep) {
      const before = order[chosen];
      order = numbers;
      chosen = keep ? order.indexOf(before) : -1;
      space.style.height = `${order.length * ROW}px`;
      body.setAttribute("aria-rowcount", order.length);
      body.scrollTop = 0;
      drawn = "";
      draw();
    },
    choose: (number) => choose(order.indexOf(number)),
  };
}

/** Numbers 0 … n - 1, sorted by a key each; texts as they are, numbers as numbers, nothing last. */
function sortedBy(numbers, key, descending) {
  const keys = new Map(numbers.map((i) => [i, key(i)]));
  const compare = (a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === y) return a - b;
    if (x === null || x === undefined || Number.isNaN(x)) return 1;
    if (y === null || y === undefined || Number.isNaN(y)) return -1;
    return (x < y ? -1 : 1) * (descending ? -1 : 1);
  };
  return [...numbers].sort(compare);
}
