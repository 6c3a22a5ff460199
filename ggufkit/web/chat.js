"use strict";
// The chat page: a conversation with the server that it came from.

const STORE = "ggufkit-chat";
const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed", "probabilities"];
const state = { messages: [], running: null, models: [] };

// ---- What is kept in this tab --------------------------------------------------------------------------------------

function save() {
  const settings = Object.fromEntries(FIELDS.map((name) => [name, valueOf(name)]));
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ messages: state.messages, settings, model: byId("models").value }));
  } catch {
    // No room, or not allowed: then the conversation ends with the page.
  }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE) || "{}");
    state.messages = Array.isArray(kept.messages) ? kept.messages : [];
    for (const [name, value] of Object.entries(kept.settings || {})) {
      const field = byId(name);
      if (field === null) continue;
      if (field.type === "checkbox") field.checked = value === true;
      else field.value = value ?? "";
    }
    return kept.model;
  } catch {
    return undefined;
  }
}

function valueOf(name) {
  const field = byId(name);
  if (field.type === "checkbox") return field.checked;
  if (field.type === "number") return field.value === "" ? null : Number(field.value);
  return field.value;
}

// ---- Talking to the server -----------------------------------------------------------------------------------------

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  if (response.status === 401) {
    byId("key-row").hidden = false;
    byId("settings").open = true;
    byId("key").focus();
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** The JSON frames of a stream of server-sent events. */
async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const line = block.split("\n").find((one) => one.startsWith("data: "));
      if (line && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function requestBody(messages) {
  const system = valueOf("system").trim();
  const said = messages.map(({ role, content }) => ({ role, content }));
  const body = { model: byId("models").value, messages: system ? [{ role: "system", content: system }, ...said] : said };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) if (valueOf(name) !== null) body[name] = valueOf(name);
  if (valueOf("probabilities")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return { ...body, stream: true };
}

/** Let the model answer what has been said. */
async function answer() {
  const turn = { role: "assistant", content: "", thoughts: "", tokens: [], measures: "" };
  const body = requestBody(state.messages);
  state.messages.push(turn);
  const node = show(turn);
  node.classList.add("running");
  const stop = new AbortController();
  state.running = stop;
  update();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: stop.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    for await (const part of frames(response)) {
      if (part.error) throw new Error(part.error.message);
      take(turn, part);
      draw(node, turn);
    }
  } catch (error) {
    if (stop.signal.aborted) turn.measures = "stopped";
    else turn.error = String(error.message || error);
  }
  node.classList.remove("running");
  draw(node, turn);
  state.running = null;
  update();
  save();
}

function take(turn, part) {
  for (const choice of part.choices || []) {
    turn.content += choice.delta.content || "";
    turn.thoughts += choice.delta.reasoning_content || "";
    for (const token of (choice.logprobs && choice.logprobs.content) || []) turn.tokens.push(token);
    if (choice.finish_reason === "length") turn.cut = true;
  }
  const t = part.timings;
  if (t) {
    const known = t.cache_n ? ` (${number(t.cache_n)} known)` : "";
    const parts = [`${number(t.prompt_n + t.cache_n)} tokens read${known}`, `${number(t.predicted_n)} written`];
    if (t.predicted_ms > 0) parts.push(`${digits(t.predicted_per_second, 3)} a second`);
    if (turn.cut) parts.push("cut off at its limit");
    turn.measures = parts.join(" · ");
  }
}

// ---- Showing it ----------------------------------------------------------------------------------------------------

function show(turn) {
  const node = el("article", { class: `turn ${turn.role}` });
  byId("talk").append(node);
  draw(node, turn);
  return node;
}

function draw(node, turn) {
  const atEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
  const parts = [];
  if (turn.role === "assistant") parts.push(el("div", { class: "who" }, byId("models").value));
  if (turn.thoughts) {
    const open = !turn.content;
    parts.push(el("details", { open }, el("summary", {}, "Thoughts"), el("p", {}, foreign(turn.thoughts, 1e6))));
  }
  const withTokens = turn.tokens && turn.tokens.length && !turn.thoughts;
  const text = withTokens ? tokensOf(turn) : markup(turn.content);
  parts.push(el("div", { class: "text", dir: "auto" }, text.length ? text : el("p", {})));
  if (turn.error) parts.push(el("p", { class: "measures", role: "alert" }, visible(turn.error)));
  else if (turn.measures) parts.push(el("div", { class: "measures" }, turn.measures));
  node.classList.toggle("failed", Boolean(turn.error));
  node.replaceChildren(...parts);
  if (atEnd) window.scrollTo(0, document.documentElement.scrollHeight);
}

/** Text with blocks of code, `code` and **bold**, as elements. */
function markup(text) {
  const found = [];
  for (const [i, part] of text.split(/^```/m).entries()) {
    if (i % 2) {
      const line = part.indexOf("\n");
      const code = line < 0 ? "" : part.slice(line + 1).replace(/\n$/, "");
      const copy = el("button", { type: "button", onclick: () => copyText(code, copy) }, "Copy");
      found.push(el("div", { class: "code" }, el("pre", {}, el("code", {}, foreign(code, 1e6))), copy));
    } else {
      for (const paragraph of part.split(/\n{2,}/)) if (paragraph.trim()) found.push(el("p", {}, inline(paragraph.trim())));
    }
  }
  return found;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, i) => {
    if (i % 2 === 0) return foreign(part, 1e6);
    return part[0] === "`" ? el("code", {}, foreign(part.slice(1, -1))) : el("strong", {}, foreign(part.slice(2, -2)));
  });
}

/** Each token with how sure the model was of it; a click lists what else might have come. */
function tokensOf(turn) {
  const list = el("div", { class: "alternatives" });
  const buttons = turn.tokens.map((token) => {
    const sure = Math.exp(token.logprob);
    const shade = sure > 0.8 ? "" : sure > 0.4 ? "p1" : sure > 0.1 ? "p2" : "p3";
    const onclick = () => list.replaceChildren(alternatives(token));
    const onkeydown = (event) => event.key === "Enter" && onclick();
    // A button would be a box that no line break of the text goes through.
    const attributes = { role: "button", tabindex: 0, class: shade, title: percent(sure), onclick, onkeydown };
    return el("span", attributes, foreign(token.token));
  });
  return [el("p", { class: "tokens" }, buttons), list];
}

function alternatives(token) {
  const rows = token.top_logprobs.map((one) => {
    const mark = one.token === token.token ? " ←" : "";
    return [el("code", {}, foreign(JSON.stringify(one.token)), mark), percent(Math.exp(one.logprob))];
  });
  return table([{ title: "What might have come" }, { title: "Probability", number: true }], rows);
}

function percent(p) {
  return p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${digits(100 * p, 2)} %`;
}

function update() {
  const running = state.running !== null;
  byId("stop").hidden = !running;
  byId("send").hidden = running;
  byId("again").disabled = running || !state.messages.some((turn) => turn.role === "user");
  byId("status").textContent = running ? "The model is writing …" : "";
}

// ---- The model -----------------------------------------------------------------------------------------------------

async function readModels(wanted) {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    byId("status").textContent = await failure(response);
    return;
  }
  state.models = (await response.json()).data;
  const select = byId("models");
  select.replaceChildren(...state.models.map((model) => el("option", { value: model.id }, visible(model.id))));
  if (state.models.some((model) => model.id === wanted)) select.value = wanted;
  byId("model-choice").hidden = state.models.length < 2;
  byId("status").textContent = "";
  showModel();
}

function showModel() {
  const model = state.models.find((one) => one.id === byId("models").value);
  if (model === undefined) return;
  const meta = model.meta || {};
  document.title = visible(model.id);
  byId("model-name").textContent = visible(model.id);
  const facts = [
    ["Name", meta.name],
    ["Architecture", meta.architecture],
    ["Weights", meta.n_params && humanCount(meta.n_params)],
    ["Type", meta.file_type],
    ["Bits per weight", meta.bits_per_weight && digits(meta.bits_per_weight, 3)],
    ["Size", meta.size && humanBytes(meta.size)],
    ["Layers", meta.n_layers],
    ["Context here", meta.n_ctx && number(meta.n_ctx)],
    ["Context in training", meta.n_ctx_train && number(meta.n_ctx_train)],
    ["Tokens known", meta.n_vocab && number(meta.n_vocab)],
  ].filter(([, value]) => value !== undefined && value !== null);
  const about = ["Weights", "Type", "Size"].map((name) => facts.find(([one]) => one === name)).filter(Boolean);
  const unit = (name) => (name === "Weights" ? " weights" : "");
  byId("model-about").textContent = visible(about.map(([name, value]) => `${value}${unit(name)}`).join(" · "));
  byId("facts").replaceChildren(
    ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, foreign(value)))),
  );
}

// ---- Hands ---------------------------------------------------------------------------------------------------------

function send() {
  const field = byId("message");
  const content = field.value.trim();
  if (!content || state.running !== null) return;
  field.value = "";
  const turn = { role: "user", content };
  state.messages.push(turn);
  show(turn);
  window.scrollTo(0, document.documentElement.scrollHeight);
  answer();
}

function again() {
  while (state.messages.length && state.messages.at(-1).role !== "user") state.messages.pop();
  drawAll();
  answer();
}

function drawAll() {
  byId("talk").replaceChildren();
  state.messages.forEach(show);
}

function start() {
  byId("tools").append(themeButton());
  const model = restore();
  drawAll();
  update();
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => state.running && state.running.abort());
  byId("again").addEventListener("click", again);
  byId("new").addEventListener("click", () => {
    if (state.running) state.running.abort();
    state.messages = [];
    drawAll();
    update();
    save();
    byId("message").focus();
  });
  byId("models").addEventListener("change", () => {
    showModel();
    save();
  });
  byId("key").addEventListener("change", () => readModels(byId("models").value));
  for (const name of FIELDS) byId(name).addEventListener("change", save);
  readModels(model);
}

start();
