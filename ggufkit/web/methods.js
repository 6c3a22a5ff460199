"use strict";
// What methods of quantization do to one block of 32 weights; the same digits as ggufkit.evaluate.methods.
//
// A situation is {weights, activations, rho, alpha, scale}: 256 float32, of which the first 32 are the block and the
// others its neighbours in a super-block; 32 magnitudes of the activations that meet the block; how much neighbouring
// activations have in common; AWQ's exponent in sixteenths; TurboQuant's scale.

const BLOCK = 32;

/** Uniform steps: levels -7 … 7 of d, a float16. Those beyond `top` are clipped. */
function uniform(x, top) {
  const d = fromHalf(toHalf(f32(top / 7)));
  const codes = Array.from(x, (v) => (d === 0 ? 0 : clamp(evenly(f32(v / d)), -7, 7)));
  const bytes = new Uint8Array(18);
  putHalf(bytes, 0, d);
  putNibbles(bytes, 2, codes.map((q) => q + 8));
  const levels = Array.from({ length: 15 }, (_, q) => f32((q - 7) * d));
  return { d, codes, bytes, levels, values: Float32Array.from(codes, (q) => f32(q * d)), fields: "d:2 qs:16" };
}

/** Σ of squared differences, in order, in doubles. */
function squaredError(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (y[i] - x[i]) * (y[i] - x[i]);
  return sum;
}

/** Of 25 places to clip at, quarters of the largest magnitude and up, the one of least squared error. */
function clipped(x) {
  const largest = largestOf(x);
  let best = uniform(x, largest);
  let least = squaredError(x, best.values);
  for (let i = 31; i >= 8; i--) {
    const one = uniform(x, f32(largest * f32(i / 32)));
    const error = squaredError(x, one.values);
    if (error < least) [best, least] = [one, error];
  }
  return best;
}

// ---- Small floats ---------------------------------------------------------------------------------------------------

const SMALL_FLOATS = { E4M3: { mantissa: 3, bias: 7, largest: 448 }, E5M2: { mantissa: 2, bias: 15, largest: 57344 } };

/** The nearest number of a small float, ties to even, what is beyond the largest becomes it: [code, number]. */
function smallFloat(v, { mantissa, bias, largest }) {
  const sign = bitsOf.of(v) >>> 31;
  const magnitude = Math.min(Math.abs(v), largest);
  let exponent = Math.max((bitsOf.of(magnitude) >>> 23) - 127, 1 - bias);
  let steps = evenly(magnitude / 2 ** (exponent - mantissa));
  if (steps === 2 << mantissa) [steps, exponent] = [1 << mantissa, exponent + 1];
  const code = steps < 1 << mantissa ? steps : ((exponent + bias) << mantissa) | (steps - (1 << mantissa));
  return [(sign << 7) | code, (sign ? -1 : 1) * steps * 2 ** (exponent - mantissa)];
}

/** Bytes of a small float each, with a float32 scale in front where there is one. */
function floats(x, kind, scaled) {
  const form = SMALL_FLOATS[kind];
  const largest = largestOf(x);
  const scale = scaled && largest > 0 ? f32(largest / form.largest) : 1;
  const found = Array.from(x, (v) => smallFloat(f32(v / scale), form));
  const head = scaled ? Array.from(new Uint8Array(new Float32Array([scale]).buffer)) : [];
  const levels = [];
  for (let code = 0; code < 256; code++) {
    const e = (code & 127) >> form.mantissa;
    const m = code & ((1 << form.mantissa) - 1);
    const magnitude = e ? (1 + m / (1 << form.mantissa)) * 2 ** (e - form.bias) : (m / (1 << form.mantissa)) * 2 ** (1 - form.bias);
    if (magnitude <= form.largest) levels.push(f32((code & 128 ? -1 : 1) * magnitude * scale));
  }
  return {
    codes: found.map(([code]) => code),
    bytes: Uint8Array.from([...head, ...found.map(([code]) => code)]),
    values: Float32Array.from(found, ([, number]) => f32(number * scale)),
    levels,
    fields: scaled ? "scale:4 qs:32" : "qs:32",
  };
}

// QLoRA's sixteen levels: quantiles of a normal distribution, with an exact 0.
const NF4 = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
].map(f32);
const NF4_BORDERS = NF4.slice(1).map((level, i) => f32((level + NF4[i]) / 2));

/** bitsandbytes: blocks of 64, a float32 scale of the largest magnitude; the first weight of two in the high nibble. */
function nf4(x) {
  const largest = largestOf(x);
  const scale = f32(1 / largest);
  const codes = Array.from(x, (v) => (largest === 0 ? 7 : NF4_BORDERS.filter((border) => f32(v * scale) > border).length));
  const bytes = new Uint8Array(36);
  bytes.set(new Uint8Array(new Float32Array([largest]).buffer));
  for (let i = 0; i < 32; i++) bytes[4 + i] = (codes[2 * i] << 4) | codes[2 * i + 1];
  return {
    codes,
    bytes,
    values: Float32Array.from(codes, (q) => f32(NF4[q] * largest)),
    levels: NF4.map((level) => f32(level * largest)),
    fields: "absmax:4 qs:32",
  };
}

// ---- Methods that look at activations -------------------------------------------------------------------------------

/** a to the power k / 16, by square roots alone, which every machine rounds alike. */
function power16(a, k) {
  let [result, root] = [1, a];
  if (k >= 16) return a;
  for (const bit of [8, 4, 2, 1]) {
    root = Math.sqrt(root);
    if (k & bit) result *= root;
  }
  return result;
}

/** AWQ: weights grow by s = aᵅ before they are rounded, and shrink after; the activations do the opposite. */
function awq(x, activations, alpha) {
  const powers = Array.from(activations, (a) => power16(a, alpha));
  const middle = Math.sqrt(Math.max(...powers) * Math.min(...powers));
  const s = Float32Array.from(powers, (p) => p / middle);
  const scaled = x.map((v, i) => f32(v * s[i]));
  const rounded = uniform(scaled, largestOf(scaled));
  return { ...rounded, values: rounded.values.map((v, i) => f32(v / s[i])), s, scaled, levels: [] };
}

/** How the activations of two places go together: H[i][j] = a_i a_j ρ^|i - j|. */
function hessian({ activations, rho }) {
  const powers = [1];
  for (let k = 1; k < BLOCK; k++) powers.push(powers[k - 1] * rho);
  return Array.from(activations, (a, i) => Float64Array.from(activations, (b, j) => a * b * powers[Math.abs(i - j)]));
}

/** The inverse of a positive definite matrix, by elimination in place. */
function inverted(matrix) {
  const n = matrix.length;
  const work = matrix.map((row) => Float64Array.from(row));
  const result = work.map((_, i) => Float64Array.from({ length: n }, (_, j) => (i === j ? 1 : 0)));
  for (let k = 0; k < n; k++) {
    const pivot = work[k][k];
    for (let j = 0; j < n; j++) {
      work[k][j] /= pivot;
      result[k][j] /= pivot;
    }
    for (let i = 0; i < n; i++) {
      const factor = work[i][k];
      if (i === k || factor === 0) continue;
      for (let j = 0; j < n; j++) {
        work[i][j] -= factor * work[k][j];
        result[i][j] -= factor * result[k][j];
      }
    }
  }
  return result;
}

/** The inverse of what GPTQ looks at, with a hundredth of its mean diagonal added; of the last activations it is kept. */
const dampedInverse = (() => {
  let [known, found] = ["", null];
  return (situation) => {
    const key = `${situation.rho} ${situation.activations.join(" ")}`;
    if (key !== known) {
      const H = hessian(situation);
      let damp = 0;
      for (let i = 0; i < BLOCK; i++) damp += H[i][i];
      damp = (0.01 * damp) / BLOCK;
      for (let i = 0; i < BLOCK; i++) H[i][i] += damp;
      [known, found] = [key, inverted(H)];
    }
    return found.map((row) => Float64Array.from(row));
  };
})();

/** GPTQ: round from left to right, and let the weights that are left make up for each error. Steps show how. */
function gptq(x, situation) {
  const left = dampedInverse(situation);
  const grid = uniform(x, largestOf(x));
  const work = Float64Array.from(x);
  const codes = [];
  const steps = [];
  for (let i = 0; i < BLOCK; i++) {
    const q = grid.d === 0 ? 0 : clamp(evenly(work[i] / grid.d), -7, 7);
    codes.push(q);
    const error = (work[i] - q * grid.d) / left[i][i];
    steps.push({ at: i, aim: work[i], value: q * grid.d, weights: Float64Array.from(work) });
    for (let j = i + 1; j < BLOCK; j++) work[j] -= error * left[i][j];
    // What is left of the inverse once weight i is fixed.
    for (let r = i + 1; r < BLOCK; r++) {
      const factor = left[r][i] / left[i][i];
      for (let c = i + 1; c < BLOCK; c++) left[r][c] -= factor * left[i][c];
    }
  }
  const bytes = new Uint8Array(18);
  putHalf(bytes, 0, grid.d);
  putNibbles(bytes, 2, codes.map((q) => q + 8));
  return { ...grid, codes, bytes, steps, values: Float32Array.from(codes, (q) => f32(q * grid.d)) };
}

// ---- Rotations ------------------------------------------------------------------------------------------------------

/** Random signs, those of ggufkit.turboquant: splitmix64 from seed 0. */
const SIGNS = (() => {
  const wrap = (x) => BigInt.asUintN(64, x);
  return Float32Array.from({ length: BLOCK }, (_, i) => {
    let state = wrap(BigInt(i + 1) * 0x9e3779b97f4a7c15n);
    state = wrap((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n);
    state = wrap((state ^ (state >> 27n)) * 0x94d049bb133111ebn);
    return state >> 63n ? -1 : 1;
  });
})();
const DOWN = f32(1 / f32(Math.sqrt(BLOCK)));

/** The Walsh–Hadamard transform of 32 numbers, not scaled. */
function transform(x) {
  let values = Float32Array.from(x);
  for (const half of [1, 2, 4, 8, 16])
    values = values.map((v, k) => (k & half ? f32(values[k ^ half] - v) : f32(values[k ^ half] + v)));
  return values;
}

function rotated(x) {
  return transform(x.map((v, i) => f32(v * SIGNS[i]))).map((v) => f32(v * DOWN));
}

function rotatedUniform(x) {
  const turned = rotated(x);
  const rounded = uniform(turned, largestOf(turned));
  const values = transform(rounded.values).map((v, i) => f32(f32(v * SIGNS[i]) * DOWN));
  return { ...rounded, values, turned, turnedValues: rounded.values, turnedLevels: rounded.levels, levels: [] };
}

// Lloyd–Max levels of N(0, 1), the positive half.
const GAUSSIAN = {
  2: [0.452780035, 1.510417608],
  3: [0.245094179, 0.75600528, 1.343909277, 2.151945703],
  4: [0.128395029, 0.388048297, 0.656759115, 0.942340452, 1.256231191, 1.618046379, 2.069017219, 2.732589564],
};

/** The sum of float32 lanes: halves added to halves. */
function sumLanes(products) {
  let lanes = Array.from({ length: 16 }, (_, i) => f32(f32(products[i]) + products[i + 16]));
  while (lanes.length > 1) {
    const half = lanes.length / 2;
    lanes = lanes.slice(0, half).map((v, i) => f32(v + lanes[i + half]));
  }
  return lanes[0];
}

/** TurboQuant: rotate, divide by the norm, round to the levels of a Gaussian; planes of 2 and 1 bits, or of 4. */
function turboquant(x, bits, mode) {
  const positive = GAUSSIAN[bits];
  const half = positive.length;
  const borders = positive.slice(1).map((level, i) => f32((level + positive[i]) / 2));
  const norm = f32(Math.sqrt(sumLanes(x.map((v) => f32(v * v)))));
  const inverseNorm = norm > 0 ? f32(1 / norm) : 0;
  const turned = transform(x.map((v, i) => f32(v * SIGNS[i]))).map((v) => f32(v * inverseNorm));
  const codes = Array.from(turned, (v) => {
    const found = borders.filter((border) => Math.abs(v) > border).length;
    return v < 0 ? half - 1 - found : half + found;
  });
  const level = (q) => f32(q < half ? -positive[half - 1 - q] : positive[q - half]);
  const own = sumLanes(codes.map((q) => f32(level(q) * level(q))));
  let scale = 0;
  if (norm > 0) scale = f32(norm / f32(Math.sqrt(mode === "norm" ? BLOCK : own)));
  const bytes = new Uint8Array(2 + 4 * bits);
  const stored = putHalf(bytes, 0, scale);
  let at = 2;
  for (let done = 0; done < bits; ) {
    const wide = bits - done >= 4 ? 4 : bits - done >= 2 ? 2 : 1;
    const count = 4 * wide;
    codes.forEach((q, i) => (bytes[at + (i % count)] |= ((q >> done) & ((1 << wide) - 1)) << (wide * Math.floor(i / count))));
    at += count;
    done += wide;
  }
  const step = f32(stored * DOWN);
  const kept = Float32Array.from(codes, (q) => f32(level(q) * step));
  const values = transform(kept).map((v, i) => f32(v * SIGNS[i]));
  const unit = f32(norm * DOWN); // to draw: rotated weights as they are, not of length 1
  return {
    codes,
    bytes,
    values,
    turned: turned.map((v) => f32(v * unit)),
    turnedValues: kept.map((v) => f32(v * f32(Math.sqrt(BLOCK)))),
    turnedLevels: Array.from({ length: 2 * half }, (_, q) => f32(f32(level(q) * step) * f32(Math.sqrt(BLOCK)))),
    levels: [],
    fields: bits === 3 ? "scale:2 low:8 high:4" : `scale:2 qs:${4 * bits}`,
  };
}

// ---- All of them ----------------------------------------------------------------------------------------------------

/** A format of GGUF: the block alone, or with the neighbours that share its numbers. */
function ofCodec(name, weighted = false) {
  const codec = CODECS[name];
  return ({ weights, activations }) => {
    // The neighbours meet activations of 1.
    const importance = Float32Array.from({ length: codec.size }, (_, i) => (i < BLOCK ? activations[i] * activations[i] : 1));
    const bytes = codec.encode(weights.subarray(0, codec.size), weighted ? importance : undefined);
    return {
      bytes,
      codes: codec.codes(bytes).slice(0, BLOCK),
      values: codec.decode(bytes).slice(0, BLOCK),
      levels: codec.levels(bytes),
      fields: codec.fields,
    };
  };
}

const block = ({ weights }) => weights.subarray(0, BLOCK);

const METHODS = [
  { name: "INT4 absmax", weights: 32, run: (s) => uniform(block(s), largestOf(block(s))),
    about: "Equal steps from the largest weight down. One outlier, and the others share what is left: a step of 4.85 / 7 = 0.69 rounds all small weights to 0." },
  { name: "INT4 clipped", weights: 32, run: (s) => clipped(block(s)),
    about: "Equal steps; the largest weights are cut where that makes the squared error least." },
  { name: "Q4_0", weights: 32, run: ofCodec("Q4_0"),
    about: "Equal steps, 16 levels; the weight of largest magnitude is level 0, so that it is exact and one more level is of use. An outlier does to it what it does to INT4." },
  { name: "Q4_0 imatrix", weights: 32, run: ofCodec("Q4_0", true),
    about: "Q4_0 with an importance matrix, here the squares of the activations: of 19 scales the one of least weighted error." },
  { name: "Q4_1", weights: 32, run: ofCodec("Q4_1"),
    about: "Equal steps from the smallest weight to the largest: a scale and a minimum." },
  { name: "Q4_K", weights: 256, run: ofCodec("Q4_K"),
    about: "A scale and a minimum of 6 bits for each 32 weights of a super-block of 256, both searched for. This block is the first of eight." },
  { name: "Q4_K imatrix", weights: 256, run: ofCodec("Q4_K", true),
    about: "Q4_K with an importance matrix: errors weigh more where activations are large, in the search of sub-blocks and of their scales." },
  { name: "IQ4_NL", weights: 32, run: ofCodec("IQ4_NL"),
    about: "Sixteen levels that lie closer together near 0, and the best of 16 scales." },
  { name: "IQ4_NL imatrix", weights: 32, run: ofCodec("IQ4_NL", true),
    about: "IQ4_NL with an importance matrix: the best scale for what the activations are." },
  { name: "Q8_0", weights: 32, run: ofCodec("Q8_0"), about: "Equal steps of 8 bits: what others are measured against." },
  { name: "NF4", weights: 64, run: ({ weights }) => { const all = nf4(weights.subarray(0, 64)); return { ...all, codes: all.codes.slice(0, 32), values: all.values.slice(0, 32) }; },
    about: "Levels at the quantiles of a normal distribution, one float32 scale for 64 weights (QLoRA, bitsandbytes)." },
  { name: "MXFP4", weights: 32, run: ofCodec("MXFP4"),
    about: "Floats of 4 bits (0, ½, 1, 1½, 2, 3, 4, 6) times a power of two." },
  { name: "NVFP4", weights: 64, run: ofCodec("NVFP4"),
    about: "The same floats with a scale of 8 bits for each 16 weights: an outlier harms 15 neighbours, not 31." },
  { name: "E4M3", weights: 32, run: (s) => floats(block(s), "E4M3", false),
    about: "FP8 with 3 bits of mantissa: 31.5 dB wherever the weights lie, as long as they are not tiny." },
  { name: "E4M3 scaled", weights: 32, run: (s) => floats(block(s), "E4M3", true),
    about: "FP8, the largest weight of the block brought to 448." },
  { name: "E5M2", weights: 32, run: (s) => floats(block(s), "E5M2", false),
    about: "FP8 with a range of 32 powers of two and 2 bits of mantissa." },
  { name: "E5M2 scaled", weights: 32, run: (s) => floats(block(s), "E5M2", true),
    about: "FP8, the largest weight of the block brought to 57344." },
  { name: "TQ2_0", weights: 256, run: ofCodec("TQ2_0"),
    about: "Ternary: -d, 0 or d, where d is the largest weight of 256. For models that were trained to be ternary." },
  { name: "AWQ", weights: 32, run: (s) => awq(block(s), s.activations, s.alpha),
    about: "Weights that meet large activations are made larger before rounding, so that their error is smaller. It helps where an activation is large, not where a weight is." },
  { name: "GPTQ", weights: 32, run: (s) => gptq(block(s), s),
    about: "Rounds from left to right; each error is passed on to the weights to its right, as far as their activations go together. The weight error grows, the output error shrinks." },
  { name: "Rotated INT4", weights: 32, run: (s) => rotatedUniform(block(s)),
    about: "A random rotation (signs, then Walsh–Hadamard) spreads an outlier over all 32 places, then INT4, then back. It turns one hot weight into two heaps." },
  ...[2, 3, 4].map((bits) => ({ name: `TurboQuant ${bits}`, weights: 32, run: (s) => turboquant(block(s), bits, s.scale),
    about: "Rotated, divided by its norm, then rounded to the best levels for a Gaussian: it needs to see no data first. For caches, in rows of 64 to 256." })),
];

/** Σ Σ e_i H_ij e_j, rows first, in doubles. */
function energy(e, H) {
  let sum = 0;
  for (let i = 0; i < BLOCK; i++) {
    let row = 0;
    for (let j = 0; j < BLOCK; j++) row += H[i][j] * e[j];
    sum += e[i] * row;
  }
  return sum;
}

/** What a method does to a situation, and how well: every number that the page shows. */
function measure(method, situation, H = hessian(situation)) {
  const x = block(situation);
  const result = method.run(situation);
  const errors = Float64Array.from(result.values, (v, i) => v - x[i]);
  let [squares, weighted, signal, importance, largest] = [0, 0, 0, 0, 0];
  for (let i = 0; i < BLOCK; i++) {
    const a2 = situation.activations[i] * situation.activations[i];
    squares += errors[i] * errors[i];
    weighted += a2 * (errors[i] * errors[i]);
    importance += a2;
    signal += x[i] * x[i];
    largest = Math.max(largest, Math.abs(errors[i]));
  }
  const output = Math.sqrt(Math.max(energy(errors, H), 0));
  const whole = Math.sqrt(Math.max(energy(x, H), 0));
  return {
    ...result,
    errors,
    bits: (8 * result.bytes.length) / method.weights,
    rms: Math.sqrt(squares / BLOCK),
    weighted: Math.sqrt(weighted / importance),
    largest,
    decibels: squares === 0 ? Infinity : 10 * Math.log10(signal / squares),
    output,
    relative: whole > 0 ? output / whole : 0,
  };
}
