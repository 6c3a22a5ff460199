"use strict";
// What all pages share. Nothing here or elsewhere makes markup of a text: elements are made by `el`, texts are text nodes.

/** An element: el("td", {class: "number", onclick: f}, "text", another). Texts become text nodes. */
function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

/** What the page's data block of this name holds; a promise. Large ones are stored compressed. */
async function readData(name) {
  const block = byId(`data-${name}`);
  if (block === null) return undefined;
  if (block.type === "application/json") return JSON.parse(block.textContent);
  const bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// ---- Texts out of files ---------------------------------------------------------------------------------------------

// Control characters, marks that turn the direction of writing, invisible ones, halves of surrogate pairs.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u{e0000}-\u{e0fff}]/gu;

/** A text with what cannot be seen written out, for places that hold plain text only. */
function visible(text, limit = 4000) {
  const shown = String(text).slice(0, limit).replace(UNSEEN, escaped);
  return String(text).length > limit ? `${shown}…` : shown;
}

function escaped(c) {
  return `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
}

/** A text out of a file as an element: its characters as they are, those that cannot be seen as labels. */
function foreign(text, limit = 4000) {
  const node = el("span", { class: "foreign", dir: "auto" });
  const shown = String(text).slice(0, limit);
  let at = 0;
  for (const match of shown.matchAll(UNSEEN)) {
    node.append(shown.slice(at, match.index), el("span", { class: "control" }, escaped(match[0]).slice(1)));
    at = match.index + match[0].length;
  }
  node.append(shown.slice(at), String(text).length > limit ? "…" : "");
  return node;
}

// ---- Numbers for people ---------------------------------------------------------------------------------------------

/** Bytes in powers of 1000, as disks and llama.cpp count. */
function humanBytes(n) {
  return n < 1000 ? `${n} B` : `${scaled(n, " kMGTP")}B`;
}

function humanCount(n) {
  return n < 1000 ? String(n) : scaled(n, " KMBT").trim();
}

function scaled(n, units) {
  const power = Math.min(units.length - 1, Math.floor(Math.log10(n) / 3));
  return `${(n / 1000 ** power).toFixed(2)} ${units[power]}`;
}

/** A number with `digits` significant ones. */
function digits(x, n = 4) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const magnitude = Math.abs(x);
  const text = magnitude >= 1e6 || magnitude < 1e-4 ? x.toExponential(n - 1) : String(Number(x.toPrecision(n)));
  return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}

function clamp(x, low, high) {
  return x < low ? low : x > high ? high : x;
}

function number(n) {
  return Number(n).toLocaleString("en-US").replace(/,/g, "\u202f");
}

// ---- Frame ----------------------------------------------------------------------------------------------------------

/** A button that goes through: as the system has it, light, dark. */
function themeButton() {
  const names = { "": "System", light: "Light", dark: "Dark" };
  const order = Object.keys(names);
  let current = "";
  const button = el("button", { type: "button", class: "no-print", "aria-label": "Colours" });
  const show = () => {
    button.textContent = `${current === "dark" ? "☾" : current === "light" ? "☀" : "◐"} ${names[current]}`;
    if (current) document.documentElement.dataset.theme = current;
    else delete document.documentElement.dataset.theme;
    document.dispatchEvent(new Event("theme"));
  };
  button.addEventListener("click", () => {
    current = order[(order.indexOf(current) + 1) % order.length];
    show();
  });
  show();
  return button;
}

/**
 * Tabs: `tabs` is [{id, title, build}]; a panel is built when it is first shown. Arrow keys move between them, the
 * address's fragment names the one that is open.
 */
function tabBar(holder, tabs) {
  const list = el("div", { role: "tablist", "aria-label": "Parts of this page" });
  const panels = new Map();
  const open = (id, focus) => {
    for (const tab of tabs) {
      const chosen = tab.id === id;
      tab.button.setAttribute("aria-selected", String(chosen));
      tab.button.tabIndex = chosen ? 0 : -1;
      if (chosen && !panels.has(id)) {
        const panel = el("section", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, tabindex: 0 });
        panels.set(id, panel);
        holder.append(panel);
        tab.build(panel);
      }
      if (panels.has(tab.id)) panels.get(tab.id).hidden = !chosen;
      if (chosen && focus) tab.button.focus();
    }
    history.replaceState(null, "", `#${id}`);
  };
  for (const tab of tabs) {
    tab.button = el(
      "button",
      { type: "button", role: "tab", id: `tab-${tab.id}`, onclick: () => open(tab.id), "aria-controls": `panel-${tab.id}` },
      tab.title,
    );
    list.append(tab.button);
  }
  list.addEventListener("keydown", (event) => {
    const at = tabs.findIndex((tab) => tab.button === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    open(tabs[(to + tabs.length) % tabs.length].id, true);
  });
  holder.append(list);
  const wanted = location.hash.slice(1);
  open(tabs.some((tab) => tab.id === wanted) ? wanted : tabs[0].id);
  return open;
}

/** A table of a few rows, which scrolls where it is too wide: head is [{title, number}], cells are texts or elements. */
function table(head, rows, caption) {
  const cell = (value, column, tag) =>
    el(tag, { class: column.number ? "number" : undefined, scope: tag === "th" ? "col" : undefined }, value);
  const contents = el(
    "table",
    {},
    el("caption", { class: "visually-hidden" }, caption),
    el("thead", {}, el("tr", {}, head.map((column) => cell(column.title, column, "th")))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, i) => cell(value, head[i], "td"))))),
  );
  return el("div", { class: "scroll" }, contents);
}

async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without the permission: select it in a field, as browsers before had it.
    const field = el("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1200);
}
