"use strict";
// Texts to tokens as ggufkit.tokenizer does it, from a vocabulary as ggufkit.web.vocabulary writes it.

const [NORMAL_TOKEN, CONTROL_TOKEN, USER_TOKEN, UNKNOWN_TOKEN, BYTE_TOKEN, LSTRIP_TOKEN, RSTRIP_TOKEN] = [4, 8, 16, 1, 32, 128, 256];

/** GPT-2's letter for each byte: printable Latin-1 is itself, the others are U+0100 and on. */
const BYTE_LETTERS = (() => {
  const letters = [];
  let other = 0;
  for (let b = 0; b < 256; b++) {
    const plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    letters.push(String.fromCharCode(plain ? b : 256 + other++));
  }
  return letters;
})();
const LETTER_BYTES = new Map(BYTE_LETTERS.map((letter, byte) => [letter, byte]));

// ---- Characters as llama.cpp's patterns see them: one sign for each category ----------------------------------------

const WIDE_SPACE = /[\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/u;
const HAN = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2ebef}\u{2f800}-\u{2fa1f}]/u;
const CATEGORIES = [[/\p{L}/u, "À"], [/\p{N}/u, "Â"], [/\p{M}/u, "Ã"], [/\p{P}/u, "Ä"], [/\p{S}/u, "Å"]];

function signOf(c) {
  if (c < "\x80") return c;
  if (WIDE_SPACE.test(c)) return "\v";
  if (c === "\u200c" || c === "\u200d") return "Æ";
  if (HAN.test(c)) return /\p{L}/u.test(c) ? "Á" : "Ç";
  const found = CATEGORIES.find(([pattern]) => pattern.test(c));
  return found ? found[1] : "È";
}

/** What cuts a text into words: steps of patterns, each of which cuts what the one before left. */
function splitter(patterns) {
  const steps = patterns.map(({ source, view }) => ({ view, pattern: view === "thousands" ? null : new RegExp(source, "gu") }));
  return (text) => steps.reduce((words, step) => words.flatMap((word) => cutBy(word, step)), [text]);
}

function cutBy(word, { view, pattern }) {
  const characters = Array.from(word);
  const places = new Set([0]);
  if (view === "thousands") {
    for (const run of word.matchAll(/[0-9]+/g)) {
      const from = Array.from(word.slice(0, run.index)).length;
      for (let at = from + (run[0].length % 3); at < from + run[0].length; at += 3) places.add(at);
    }
  } else {
    const seen = view === "signs" ? characters.map(signOf) : characters.map((c) => (c >= "\x80" && WIDE_SPACE.test(c) ? "\v" : c));
    // Signs are one unit each; in the other view a character may be two.
    const starts = new Map();
    let unit = 0;
    seen.forEach((c, i) => {
      starts.set(unit, i);
      unit += c.length;
    });
    starts.set(unit, seen.length);
    for (const match of seen.join("").matchAll(pattern)) {
      places.add(starts.get(match.index));
      places.add(starts.get(match.index + match[0].length));
    }
  }
  const ends = [...places].sort((a, b) => a - b);
  return ends.map((at, k) => characters.slice(at, ends[k + 1]).join("")).filter(Boolean);
}

// Ideographs are words of their own.
const IDEOGRAPH = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/u;

/** A character as BERT's tokenizer has it, with spaces around what is a word of its own. */
function bertCharacter(c, { lowercase, strip_accents }) {
  if (strip_accents) c = String.fromCodePoint(c.normalize("NFD").codePointAt(0));
  if (/[\t-\r ]/.test(c) || WIDE_SPACE.test(c)) return " ";
  if (c === "\0" || c === "\ufffd" || /[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/u.test(c) || (strip_accents && /\p{M}/u.test(c))) return "";
  const alone = /\p{P}/u.test(c) || (c < "\x7f" && /\p{S}/u.test(c)) || IDEOGRAPH.test(c);
  const lower = c === "İ" ? "i" : c.toLowerCase();
  const text = lowercase && Array.from(lower).length === 1 ? lower : c;
  return alone ? ` ${text} ` : text;
}

/** Neighbours merge, the best pair first, of equals the leftmost. rank(left, right) → number or undefined. */
function mergeSymbols(symbols, rank) {
  const pairs = symbols.slice(1).map((right, i) => rank(symbols[i], right));
  for (;;) {
    let best = -1;
    for (let i = 0; i < pairs.length; i++) if (pairs[i] !== undefined && (best < 0 || pairs[i] < pairs[best])) best = i;
    if (best < 0) return symbols;
    symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
    pairs.splice(best, 1);
    if (best > 0) pairs[best - 1] = rank(symbols[best - 1], symbols[best]);
    if (best < pairs.length) pairs[best] = rank(symbols[best], symbols[best + 1]);
  }
}

/** {encode(text) → ids, piece(id) → bytes}; null where this vocabulary's tokenizer is not here. */
function tokenizerOf(v) {
  if (v.untokenized || v.missing) return null;
  const ids = new Map(v.texts.map((text, i) => [text, i]));
  const encoder = new TextEncoder();
  const byteName = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
  const specials = specialTokens(v);
  const encodeText = { spm: sentencePieces, bpe: bytePairs, wordpiece: wordPieces, unigram: () => unigram(v) }[v.kind]();
  return { encode, piece };

  function encode(text) {
    const found = [...v.before];
    let first = true;
    for (const part of partition(text, specials, v)) {
      if (typeof part === "number") found.push(part);
      else for (const token of encodeText(part, first)) found.push(token);
      first = typeof part === "number";
    }
    return [...found, ...v.after];
  }

  function sentencePieces() {
    const rank = (left, right) => {
      const id = ids.get(left + right);
      return id === undefined ? undefined : -v.scores[id];
    };
    const ofByte = (byte) => ids.get(byteName(byte)) ?? (byte < 128 ? ids.get(String.fromCharCode(byte)) : undefined) ?? v.specials.unk ?? 0;
    // A word start that no token reaches over is a place to cut, which keeps words short.
    const before = new Set();
    for (const text of v.texts) for (let at = text.indexOf("▁", 1); at > 0; at = text.indexOf("▁", at + 1)) before.add(text[at - 1]);
    return (text, first) => {
      const spaced = ((first && v.prefix ? " " : "") + text).replaceAll(" ", "▁");
      const words = [];
      let start = 0;
      for (let at = spaced.indexOf("▁", 1); at > 0; at = spaced.indexOf("▁", at + 1))
        if (!before.has(spaced[at - 1])) {
          words.push(spaced.slice(start, at));
          start = at;
        }
      words.push(spaced.slice(start));
      return words.flatMap((word) => mergeSymbols(Array.from(word), rank).flatMap((symbol) => ids.get(symbol) ?? [...encoder.encode(symbol)].map(ofByte)));
    };
  }

  function bytePairs() {
    const ranks = mergeRanks(v);
    const rank = (left, right) => ranks.get(`${left} ${right}`);
    const split = splitter(v.patterns);
    const bytesOf = (symbol) => {
      const names = v.letters ? Array.from(symbol).filter((c) => c < "\x80") : [...encoder.encode(symbol)].map(byteName);
      return names.map((name) => ids.get(name)).filter((id) => id !== undefined);
    };
    const ofWord = (word) => {
      const text = v.letters ? [...encoder.encode(word)].map((byte) => BYTE_LETTERS[byte]).join("") : word;
      if ((v.whole || (v.newlines && /^\n*$/.test(text))) && ids.has(text)) return [ids.get(text)];
      return mergeSymbols(Array.from(text), rank).flatMap((symbol) => ids.get(symbol) ?? bytesOf(symbol));
    };
    return (text) => split(v.spaces ? text.replaceAll(" ", "▁") : text).flatMap(ofWord);
  }

  function wordPieces() {
    const longest = v.texts.reduce((most, text) => Math.max(most, text.length), 0);
    const unknown = v.specials.unk === undefined ? [] : [v.specials.unk];
    const ofWord = (word) => {
      const characters = Array.from(`▁${word}`);
      const tokens = [];
      for (let at = 0; at < characters.length; ) {
        let end = Math.min(characters.length, at + longest);
        while (end > at && !ids.has(characters.slice(at, end).join(""))) end--;
        if (end === at) return unknown;
        tokens.push(ids.get(characters.slice(at, end).join("")));
        at = end;
      }
      return tokens;
    };
    return (text) => Array.from(text, (c) => bertCharacter(c, v)).join("").split(" ").filter(Boolean).flatMap(ofWord);
  }

  function piece(id) {
    const [text, attribute] = [v.texts[id], v.attributes[id]];
    if (attribute & (CONTROL_TOKEN | USER_TOKEN | UNKNOWN_TOKEN)) return encoder.encode(text);
    if (attribute & BYTE_TOKEN) return Uint8Array.of(parseInt(text.slice(3, 5), 16));
    return pieceBytes(v, text) || encoder.encode(text);
  }
}

// ---- Unigram: of all ways to cut a text the one with the highest total score ----------------------------------------

/** A text's UTF-8 as a string with a character for each byte. */
function byteString(text) {
  return Array.from(new TextEncoder().encode(text), (b) => String.fromCharCode(b)).join("");
}

function widthAt(bytes, at) {
  return [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4][bytes.charCodeAt(at) >> 4];
}

function unigram(v) {
  const unknownToken = v.specials.unk ?? -1;
  const [scores, lengths, kept] = [new Map(), new Map(), new Set()];
  let lowest = Infinity;
  v.texts.forEach((text, id) => {
    const a = v.attributes[id];
    if (!(a & (NORMAL_TOKEN | USER_TOKEN | 2))) return;
    const key = byteString(text);
    if (a & NORMAL_TOKEN) lowest = Math.min(lowest, v.scores[id]);
    if (a & USER_TOKEN) for (let n = 1; n <= key.length; n++) kept.add(key.slice(0, n));
    scores.set(key, [id, a & USER_TOKEN ? 0 : v.scores[id]]);
    if (!lengths.has(key[0])) lengths.set(key[0], new Set());
    lengths.get(key[0]).add(key.length);
  });
  for (const [first, found] of lengths) lengths.set(first, [...found].sort((a, b) => a - b));
  const unknown = Math.fround((lowest === Infinity ? 3.4028234663852886e38 : lowest) - 10);
  const rules = normalRules(v.rules);
  return (text) => {
    const tokens = bestCut(spaced(normal(byteString(text))));
    return tokens.filter((token, i) => token !== unknownToken || tokens[i - 1] !== unknownToken);
  };

  function normal(bytes) {
    let found = "";
    for (let at = 0; at < bytes.length; ) {
      let n = 0;
      while (at + n < bytes.length && kept.has(bytes.slice(at, at + n + 1))) n++;
      let part = bytes.slice(at, at + n);
      if (!n) [part, n] = rules(bytes, at);
      if (!n) [part, n] = [bytes.slice(at, at + widthAt(bytes, at)), widthAt(bytes, at)];
      found += part;
      at += n;
    }
    return found;
  }

  function spaced(bytes) {
    const space = v.spaces ? byteString("▁") : " ";
    if (v.squeeze) return bytes.split(" ").filter(Boolean).map((word) => space + word).join("");
    const words = bytes.replace(/^ +/, "");
    return space.repeat(bytes.length - words.length) + (v.prefix && words ? space : "") + words.replaceAll(" ", space);
  }

  function bestCut(bytes) {
    const best = Array.from({ length: bytes.length + 1 }, () => [-Infinity, unknownToken, 0]);
    best[0] = [0, unknownToken, 0];
    for (let at = 0; at < bytes.length; ) {
      const width = Math.min(widthAt(bytes, at), bytes.length - at);
      const total = best[at][0];
      let whole = false;
      for (const length of lengths.get(bytes[at]) || []) {
        if (at + length > bytes.length) break;
        const found = scores.get(bytes.slice(at, at + length));
        if (!found) continue;
        whole = whole || length === width;
        if (total + found[1] > best[at + length][0]) best[at + length] = [total + found[1], found[0], at];
      }
      if (!whole && total + unknown > best[at + width][0]) best[at + width] = [total + unknown, unknownToken, at];
      at += width;
    }
    const tokens = [];
    for (let at = bytes.length; at > 0; at = best[at][2]) tokens.push(best[at][1]);
    return tokens.reverse();
  }
}

/** SentencePiece's compiled rules, a double array: the longest prefix that has one → [replacement, length]. */
function normalRules(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  if (bytes.length < 4) return () => ["", 0];
  const view = new DataView(bytes.buffer);
  const size = view.getUint32(0, true);
  const nodeAt = (at) => (4 * at + 4 <= size ? view.getUint32(4 + 4 * at, true) : 0);
  const baseOf = (packed) => (packed >>> 10) << ((packed & 512) >> 6);
  return (text, at) => {
    let [length, value, node] = [0, 0, baseOf(nodeAt(0))];
    for (let end = at; end < text.length; end++) {
      const c = text.charCodeAt(end);
      node ^= c;
      const packed = nodeAt(node);
      if (c === 0 || (packed & 0x800000ff) !== c) break;
      node ^= baseOf(packed);
      if ((packed >>> 8) & 1) [length, value] = [end + 1 - at, nodeAt(node) & 0x7fffffff];
    }
    if (!length) return ["", 0];
    let stop = 4 + size + value;
    let replacement = "";
    while (stop < bytes.length && bytes[stop]) replacement += String.fromCharCode(bytes[stop++]);
    return [replacement, length];
  };
}

/** The bytes that an ordinary token's text stands for. */
function pieceBytes(v, text) {
  if (v.letters) {
    const bytes = Array.from(text, (c) => LETTER_BYTES.get(c));
    return bytes.includes(undefined) ? null : Uint8Array.from(bytes);
  }
  return new TextEncoder().encode(v.kind !== "bpe" || v.spaces ? text.replaceAll("▁", " ") : text);
}

/** "left right" → its place among the merges. */
function mergeRanks(v) {
  const ranks = new Map();
  let token = 0;
  v.merged.forEach((step, rank) => {
    token += step;
    let pair = v.odd[rank];
    if (pair === undefined) {
      const text = v.texts[token];
      const cut = v.cuts[rank];
      // Cuts count characters; most texts have none of two units.
      const left = /[\ud800-\udfff]/.test(text) ? Array.from(text).slice(0, cut).join("") : text.slice(0, cut);
      pair = `${left} ${text.slice(left.length)}`;
    }
    if (!ranks.has(pair)) ranks.set(pair, rank);
  });
  return ranks;
}

/** Tokens that are looked for in a text before all else, the longest first. */
function specialTokens(v) {
  const length = (i) => new TextEncoder().encode(v.texts[i]).length;
  const found = [];
  v.attributes.forEach((a, i) => a & (CONTROL_TOKEN | USER_TOKEN | UNKNOWN_TOKEN) && found.push([i, length(i)]));
  return found.sort((a, b) => b[1] - a[1]).map(([i]) => i);
}

function partition(text, specials, v) {
  let parts = text ? [text] : [];
  for (const id of specials) {
    const special = v.texts[id];
    if (!text.includes(special)) continue;
    parts = parts.flatMap((part) => {
      if (typeof part === "number" || !part.includes(special)) return [part];
      const pieces = part.split(special);
      return pieces.flatMap((piece, k) => {
        if (k > 0 && v.attributes[id] & RSTRIP_TOKEN) piece = piece.replace(/^[ \t\n\v\f\r]+/, "");
        if (k < pieces.length - 1 && v.attributes[id] & LSTRIP_TOKEN) piece = piece.replace(/[ \t\n\v\f\r]+$/, "");
        return k ? [id, piece] : [piece];
      }).filter((piece) => piece !== "");
    });
  }
  return parts;
}
