"use strict";
// The vocabulary: what cuts a text into tokens, as one types; and all tokens, to search.

const TOKEN_KINDS = [[CONTROL_TOKEN, "control"], [USER_TOKEN, "user-defined"], [UNKNOWN_TOKEN, "unknown"], [BYTE_TOKEN, "byte"], [2, "unused"], [NORMAL_TOKEN, "normal"]];

function tokenKind(attribute) {
  const found = TOKEN_KINDS.find(([bit]) => attribute & bit);
  return found ? found[1] : "undefined";
}

/** Tokenizers are made when they are first used: a large vocabulary takes half a second. */
function lazyTokenizer(v) {
  let made;
  return () => (made === undefined ? (made = tokenizerOf(v)) : made);
}

/** A token's bytes as a text; those that make no character by themselves in hexadecimal. */
function shownPiece(tokenizer, id) {
  const bytes = tokenizer.piece(id);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return [...bytes].map((b) => `\\x${b.toString(16).padStart(2, "0")}`).join("");
  }
}

/** Tokens of a text as chips. */
function tokenChips(v, tokenizer, ids, limit = 3000) {
  const chips = ids.slice(0, limit).map((id, k) => {
    const special = v.attributes[id] & CONTROL_TOKEN;
    const text = shownPiece(tokenizer, id).replaceAll("\n", "⏎\n");
    return el("span", { class: `token token-${special ? "special" : k % 4}`, title: `token ${id}` }, foreign(text, 200), el("sub", {}, id));
  });
  if (ids.length > limit) chips.push(` … and ${number(ids.length - limit)} more`);
  return chips;
}

function vocabularyPart(panel, v, tokenizer) {
  if (v.missing) return panel.append(el("section", { class: "panel" }, el("p", {}, foreign(v.missing))));
  panel.append(typingPart(v, tokenizer), tokensPart(v));
}

function typingPart(v, tokenizer) {
  const section = el("section", { class: "panel" }, el("h2", {}, "Tokens of a text"));
  if (v.untokenized) {
    section.append(el("p", { class: "soft" }, `Texts are not cut here: ${v.untokenized}. The verb tokenize does it.`));
    return section;
  }
  const text = el("textarea", { "aria-label": "A text to cut into tokens", maxlength: 20000, spellcheck: "false", value: "def main():\n    print('Hello, 世界! 12345')" });
  const count = el("span", { class: "soft small", role: "status" });
  const chips = el("div", { class: "tokens" });
  const show = () => {
    const ids = tokenizer().encode(text.value.toWellFormed ? text.value.toWellFormed() : text.value);
    const size = new TextEncoder().encode(text.value).length;
    count.textContent = `${number(ids.length)} tokens for ${number(size)} bytes, ${digits(size / (ids.length || 1), 3)} bytes per token`;
    chips.replaceChildren(...tokenChips(v, tokenizer(), ids));
  };
  text.addEventListener("input", show);
  section.append(text, count, chips);
  setTimeout(show);
  return section;
}

function tokensPart(v) {
  const names = new Map(Object.entries(v.specials).map(([name, id]) => [id, name]));
  const search = el("input", { type: "search", placeholder: "Text or number …", "aria-label": "Search tokens" });
  const kind = el("select", { "aria-label": "Kind of tokens" }, el("option", { value: "" }, "all kinds"), TOKEN_KINDS.map(([, name]) => el("option", { value: name }, name)));
  const count = el("span", { class: "soft small", role: "status" });
  const shown = (i) => {
    if (v.attributes[i] & (CONTROL_TOKEN | USER_TOKEN | UNKNOWN_TOKEN | BYTE_TOKEN)) return v.texts[i];
    const bytes = pieceBytes(v, v.texts[i]);
    return bytes ? new TextDecoder().decode(bytes) : v.texts[i];
  };
  const columns = [{ title: "Id", width: "84px", number: true }, { title: "What it stands for", width: "minmax(140px, 1.2fr)" }, { title: "As the file has it", width: "minmax(140px, 1fr)" }, { title: "Kind", width: "104px" }, { title: "Role", width: "110px" }];
  if (v.scores) columns.push({ title: "Score", width: "90px", number: true });
  const list = longList({
    columns: columns.map((column) => ({ ...column, sort: false })), label: "Tokens",
    cells: (i) => [String(i), foreign(JSON.stringify(shown(i)).slice(1, -1).replaceAll('\\"', '"'), 120), foreign(v.texts[i], 120), tokenKind(v.attributes[i]),
      [names.get(i), v.ends.includes(i) ? "end" : null].filter(Boolean).join(", "), ...(v.scores ? [digits(v.scores[i], 5)] : [])],
  });
  const filter = () => {
    const wanted = search.value;
    const found = [];
    const exact = /^\d+$/.test(wanted) ? Number(wanted) : -1;
    const forms = [...new Set([wanted, storedForm(v, wanted)])];
    if (exact >= 0 && exact < v.texts.length) found.push(exact);
    for (let i = 0; i < v.texts.length; i++) {
      if (kind.value && tokenKind(v.attributes[i]) !== kind.value) continue;
      if (i !== exact && forms.some((form) => v.texts[i].includes(form))) found.push(i);
    }
    list.show(found);
    count.textContent = `${number(found.length)} of ${number(v.texts.length)}`;
  };
  search.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  setTimeout(filter);
  const roles = Object.entries(v.specials).map(([name, id]) => el("span", {}, `${name} `, el("strong", {}, foreign(v.texts[id], 60)), ` ${id}`));
  return el("section", { class: "panel" }, el("h2", {}, "All tokens"), el("div", { class: "legend roles" }, roles), el("div", { class: "row" }, search, kind, count), list.node);
}

/** A text in the letters that the file has it in. */
function storedForm(v, text) {
  if (v.letters) return [...new TextEncoder().encode(text)].map((byte) => BYTE_LETTERS[byte]).join("");
  return v.kind !== "bpe" || v.spaces ? text.replaceAll(" ", "▁") : text;
}

/** The chat template, run on sample conversations when this page was made. */
function conversationPart(panel, conversation, v, tokenizer) {
  if (conversation.missing) return panel.append(el("section", { class: "panel" }, el("p", {}, foreign(conversation.missing))));
  const rendered = el("div", { class: "rendered" });
  const messages = el("div", { class: "messages" });
  const count = el("p", { class: "soft small" });
  const buttons = conversation.shown.map((one, k) => el("button", { type: "button", onclick: () => show(k) }, one.name));
  const show = (k) => {
    const one = conversation.shown[k];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === k)));
    messages.replaceChildren(...one.messages.map((message) => el("div", { class: `message ${message.role}` }, el("strong", {}, message.role), el("div", {}, message.content))));
    if (one.problem) {
      rendered.replaceChildren(el("p", { class: "warn" }, foreign(one.problem)));
      count.textContent = "";
      return;
    }
    const specials = v && !v.missing ? specialTokens(v).filter((id) => v.attributes[id] & CONTROL_TOKEN) : [];
    const parts = v && !v.missing ? partition(one.text, specials, { ...v, attributes: v.attributes.map(() => 0) }) : [one.text];
    rendered.replaceChildren(...parts.map((part) => (typeof part === "number" ? el("span", { class: "token token-special" }, foreign(v.texts[part])) : foreign(part, 40000))));
    const made = v && !v.missing && !v.untokenized ? tokenizer() : null;
    count.textContent = made ? `${number(one.text.length)} characters, ${number(made.encode(one.text).length)} tokens` : `${number(one.text.length)} characters`;
  };
  panel.append(
    el("section", { class: "panel" }, el("div", { class: "row" }, buttons),
      el("div", { class: "columns" }, el("div", {}, el("h3", {}, "The conversation"), messages), el("div", {}, el("h3", {}, "What the model reads"), rendered, count))),
    el("section", { class: "panel" }, el("h2", {}, "The template"), el("pre", {}, foreign(conversation.template, 100000))),
  );
  show(0);
}
