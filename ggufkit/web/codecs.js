"use strict";
// Block formats in JavaScript, to the last bit what ggufkit and llama.cpp store: float32 arithmetic, every result
// rounded by Math.fround. A codec is {size, bytes, fields, encode(x, importance) → Uint8Array, decode(bytes) →
// Float32Array, codes(bytes), levels(bytes): those of the first weights}; some of them use importance.

function putHalf(out, at, x) {
  const bits = toHalf(x);
  out[at] = bits & 255;
  out[at + 1] = bits >> 8;
  return fromHalf(bits);
}

function halfAt(bytes, at) {
  return fromHalf(bytes[at] | (bytes[at + 1] << 8));
}

/** byte j   BBBBAAAA   A = level of weight j, B = level of weight j + 16 */
function putNibbles(out, at, levels, from = 0) {
  for (let j = 0; j < 16; j++) out[at + j] = levels[from + j] | (levels[from + j + 16] << 4);
}

function nibblesAt(bytes, at) {
  return Array.from({ length: 32 }, (_, i) => (i < 16 ? bytes[at + i] & 15 : bytes[at + i - 16] >> 4));
}

const CODECS = {};

// ---- Q4_0, Q4_1, Q8_0 -----------------------------------------------------------------------------------------------

CODECS.Q4_0 = {
  size: 32,
  bytes: 18,
  fields: "d:2 qs:16",
  /** The weight of largest magnitude becomes level 0: d = weight / -8; or with importance d is searched for. */
  encode(x, importance) {
    const out = new Uint8Array(18);
    if (importance) {
      const found = searchScale(x, errorWeights(x, importance, f32(sumOfSquares(x) / 32)));
      putHalf(out, 0, found.scale);
      putNibbles(out, 2, found.levels);
      return out;
    }
    const d = f32(extremeOf(x) / -8);
    const scale = inverse(d);
    putHalf(out, 0, d);
    putNibbles(out, 2, Array.from(x, (v) => Math.min(15, Math.trunc(finiteLevel(f32(f32(v * scale) + 8.5))))));
    return out;
  },
  decode(bytes) {
    const d = halfAt(bytes, 0);
    return Float32Array.from(nibblesAt(bytes, 2), (q) => f32((q - 8) * d));
  },
  levels: (bytes) => Array.from({ length: 16 }, (_, q) => f32((q - 8) * halfAt(bytes, 0))),
  codes: (bytes) => nibblesAt(bytes, 2),
};

CODECS.Q4_1 = {
  size: 32,
  bytes: 20,
  fields: "d:2 m:2 qs:16",
  /** m = the smallest weight, d = (largest - m) / 15. */
  encode(x) {
    const out = new Uint8Array(20);
    let [least, most] = [x[0], x[0]];
    for (const v of x) {
      if (v < least) least = v;
      if (v > most) most = v;
    }
    const d = f32(f32(most - least) / 15);
    const scale = inverse(d);
    putHalf(out, 0, d);
    putHalf(out, 2, least);
    const level = (v) => Math.min(15, Math.trunc(finiteLevel(f32(f32(f32(v - least) * scale) + 0.5))));
    putNibbles(out, 4, Array.from(x, level));
    return out;
  },
  decode(bytes) {
    const [d, m] = [halfAt(bytes, 0), halfAt(bytes, 2)];
    return Float32Array.from(nibblesAt(bytes, 4), (q) => f32(f32(q * d) + m));
  },
  levels: (bytes) => Array.from({ length: 16 }, (_, q) => f32(f32(q * halfAt(bytes, 0)) + halfAt(bytes, 2))),
  codes: (bytes) => nibblesAt(bytes, 4),
};

CODECS.Q8_0 = {
  size: 32,
  bytes: 34,
  fields: "d:2 qs:32",
  /** d = max |w| / 127. */
  encode(x) {
    const out = new Uint8Array(34);
    const d = f32(largestOf(x) / 127);
    const scale = inverse(d);
    putHalf(out, 0, d);
    x.forEach((v, i) => (out[2 + i] = roundAway(finiteLevel(f32(v * scale)))));
    return out;
  },
  decode(bytes) {
    const d = halfAt(bytes, 0);
    return Float32Array.from(this.codes(bytes), (q) => f32(q * d));
  },
  levels: (bytes) => Array.from({ length: 255 }, (_, q) => f32((q - 127) * halfAt(bytes, 0))),
  codes: (bytes) => Array.from(new Int8Array(bytes.buffer, bytes.byteOffset + 2, 32)),
};

// ---- Q4_K -----------------------------------------------------------------------------------------------------------

CODECS.Q4_K = {
  size: 256,
  bytes: 144,
  fields: "d:2 dmin:2 scales:12 qs:128",
  /** A search for each sub-block; then scales and minima become levels 0 … 63 of two float16. */
  encode(x, importance) {
    const out = new Uint8Array(144);
    const parts = Array.from({ length: 8 }, (_, j) => x.subarray(32 * j, 32 * j + 32));
    const sigma2 = f32(f32(2 * sumOfSquares(x)) / 256);
    const weights = parts.map((part, j) => {
      if (importance) return errorWeights(part, importance.subarray(32 * j, 32 * j + 32), sigma2);
      const rms = f32(Math.sqrt(f32(sumOfSquares(part) / 32)));
      return Float32Array.from(part, (v) => f32(rms + Math.abs(v)));
    });
    const found = parts.map((part, j) => searchScaleAndMin(part, weights[j], importance ? Q4_K_WEIGHTED : Q4_K_PLAIN));
    const sums = weights.map((w) => w.reduce((a, b) => f32(a + b), 0));
    const sixBits = (values) => (importance ? searchLevels(values, sums) : levelsOfLargest(values));
    const scales = sixBits(found.map((one) => one.scale));
    const mins = sixBits(found.map((one) => -one.min));
    putHalf(out, 0, scales.scale);
    putHalf(out, 2, mins.scale);
    for (let j = 0; j < 4; j++) {
      out[4 + j] = scales.levels[j] | ((scales.levels[j + 4] >> 4) << 6);
      out[8 + j] = mins.levels[j] | ((mins.levels[j + 4] >> 4) << 6);
      out[12 + j] = (scales.levels[j + 4] & 15) | ((mins.levels[j + 4] & 15) << 4);
    }
    const factors = parts.map((_, j) => this.factors(out, j));
    const levels = Array.from(x, (v, i) => {
      const one = found[i >> 5];
      const [step, offset] = factors[i >> 5];
      // Where the step is 0 the levels of the search stay.
      const quotient = step === 0 ? f32(one.iscale * f32(v - one.base)) : f32(f32(v + offset) / step);
      return clamp(nearestInt(importance && step === 0 ? clamp(quotient, 0, 15) : quotient), 0, 15);
    });
    for (let j = 0; j < 4; j++)
      for (let i = 0; i < 32; i++) out[16 + 32 * j + i] = levels[64 * j + i] | (levels[64 * j + 32 + i] << 4);
    return out;
  },
  /** Step and offset of sub-block j. */
  factors(bytes, j) {
    const s = bytes.subarray(4, 16);
    const scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
    const min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
    return [f32(halfAt(bytes, 0) * scale), f32(halfAt(bytes, 2) * min)];
  },
  codes(bytes) {
    return Array.from({ length: 256 }, (_, i) => {
      const byte = bytes[16 + 32 * (i >> 6) + (i & 31)];
      return i & 32 ? byte >> 4 : byte & 15;
    });
  },
  decode(bytes) {
    const factors = Array.from({ length: 8 }, (_, j) => this.factors(bytes, j));
    return Float32Array.from(this.codes(bytes), (q, i) => f32(f32(factors[i >> 5][0] * q) - factors[i >> 5][1]));
  },
  levels(bytes) {
    const [step, offset] = this.factors(bytes, 0);
    return Array.from({ length: 16 }, (_, q) => f32(f32(step * q) - offset));
  },
};

// ---- IQ4_NL ---------------------------------------------------------------------------------------------------------

const IQ4_LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

CODECS.IQ4_NL = {
  size: 32,
  bytes: 18,
  fields: "d:2 qs:16",
  /** The level nearest to v; NaN takes the last. */
  nearest(v) {
    for (let i = 0; i < 15; i++) if (v < (IQ4_LEVELS[i] + IQ4_LEVELS[i + 1]) / 2) return i;
    return 15;
  },
  /** Sixteen scales are tried; each is then fitted to the levels that it gives, an error weighing x² or as is said. */
  encode(x, importance) {
    const w = importance ? errorWeights(x, importance, f32(sumOfSquares(x) * f32(2 / 32))) : x.map((v) => f32(v * v));
    const moments = (scale) => {
      let [qx, qq] = [0, 0];
      x.forEach((v, i) => {
        const q = IQ4_LEVELS[this.nearest(f32(scale * v))];
        const wq = f32(w[i] * q);
        qx = f32(qx + f32(wq * v));
        qq = f32(qq + f32(wq * q));
      });
      return [qx, qq];
    };
    const extreme = extremeOf(x);
    let [qx, qq] = moments(f32(1 / f32(-extreme / -127)));
    let d = qq > 0 ? f32(qx / qq) : 0;
    let best = f32(d * qx);
    for (let trial = -7; trial <= 7; trial++) {
      [qx, qq] = moments(f32((trial - 127) / extreme));
      if (qq > 0 && f32(qx * qx) > f32(best * qq)) {
        d = f32(qx / qq);
        best = f32(d * qx);
      }
    }
    if (Math.abs(extreme) < f32(1e-15)) d = 0;
    const out = new Uint8Array(18);
    putHalf(out, 0, d);
    const scale = inverse(d);
    putNibbles(out, 2, Array.from(x, (v) => this.nearest(f32(scale * v))));
    return out;
  },
  decode(bytes) {
    const d = halfAt(bytes, 0);
    return Float32Array.from(nibblesAt(bytes, 2), (q) => f32(d * IQ4_LEVELS[q]));
  },
  levels: (bytes) => IQ4_LEVELS.map((level) => f32(halfAt(bytes, 0) * level)),
  codes: (bytes) => nibblesAt(bytes, 2),
};

// ---- MXFP4, NVFP4 ---------------------------------------------------------------------------------------------------

const E2M1_DOUBLED = [0, 1, 2, 3, 4, 6, 8, 12, -0, -1, -2, -3, -4, -6, -8, -12];

/** The level of a weight for scale d (half of it, levels are doubled); of two equally near ones the smaller. */
function nearestE2M1(v, d) {
  const magnitude = Math.abs(v);
  let [level, nearest] = [0, magnitude];
  for (let i = 1; i < 8; i++) {
    const distance = Math.abs(f32(f32(E2M1_DOUBLED[i] * d) - magnitude));
    if (distance < nearest) [level, nearest] = [i, distance];
  }
  return v < 0 && level > 0 ? level | 8 : level;
}

function timesE2M1(q, d) {
  return f32((q & 8 ? (q & 7 ? E2M1_DOUBLED[q] : 0) : E2M1_DOUBLED[q]) * d);
}

CODECS.MXFP4 = {
  size: 32,
  bytes: 17,
  fields: "e:1 qs:16",
  /** e = ⌊log2 max |w|⌋ - 2 + 127. */
  encode(x) {
    const largest = largestOf(x);
    const e = largest > 0 ? (Math.floor(f32(Math.log2(largest))) + 125) & 255 : 0;
    const d = f32(2 ** (e - 128));
    const out = new Uint8Array(17);
    out[0] = e < 255 ? e : 0;
    putNibbles(out, 1, Array.from(x, (v) => nearestE2M1(v, d)));
    return out;
  },
  decode(bytes) {
    const d = f32(2 ** (bytes[0] - 128));
    return Float32Array.from(nibblesAt(bytes, 1), (q) => timesE2M1(q, d));
  },
  levels: (bytes) => Array.from({ length: 16 }, (_, q) => timesE2M1(q, f32(2 ** (bytes[0] - 128)))),
  codes: (bytes) => nibblesAt(bytes, 1),
};

CODECS.NVFP4 = {
  size: 64,
  bytes: 36,
  fields: "d:4 qs:32",
  /** Half of what a UE4M3 byte means. */
  scale(byte) {
    if (byte === 0x7f) return 0;
    const [exponent, mantissa] = [(byte >> 3) & 15, byte & 7];
    return f32((exponent ? (8 + mantissa) * 2 ** (exponent - 10) : mantissa * 2 ** -9) / 2);
  },
  /** The UE4M3 nearest to a scale, ties up. */
  byte(value) {
    const bits = bitsOf.of(value);
    const exponent = (bits >>> 23) - 120;
    if (exponent <= 0) return Math.min(Math.trunc(f32(f32(value * 512) + 0.5)), 7);
    const rounded = (exponent << 3) + ((((bits >> 19) & 15) + 1) >> 1);
    return rounded < 0x78 ? rounded : 0x7e;
  },
  encode(x) {
    const out = new Uint8Array(36);
    for (let s = 0; s < 4; s++) {
      const part = x.subarray(16 * s, 16 * s + 16);
      const e = (out[s] = this.byte(f32(largestOf(part) / 6)));
      const levels = Array.from(part, (v) => nearestE2M1(v, this.scale(e)));
      for (let j = 0; j < 8; j++) out[4 + 8 * s + j] = levels[j] | (levels[j + 8] << 4);
    }
    return out;
  },
  codes(bytes) {
    return Array.from({ length: 64 }, (_, i) => {
      const byte = bytes[4 + 8 * (i >> 4) + (i & 7)];
      return i & 8 ? byte >> 4 : byte & 15;
    });
  },
  decode(bytes) {
    return Float32Array.from(this.codes(bytes), (q, i) => timesE2M1(q, this.scale(bytes[i >> 4])));
  },
  levels(bytes) {
    return [0, 1].flatMap((s) => Array.from({ length: 16 }, (_, q) => timesE2M1(q, this.scale(bytes[s]))));
  },
};

// ---- TQ2_0 ----------------------------------------------------------------------------------------------------------

CODECS.TQ2_0 = {
  size: 256,
  bytes: 66,
  fields: "qs:64 d:2",
  /** d = max |w|;   qs[32 h + m]   DDCCBBAA   weights 128 h + m, … + 32, … + 64, … + 96 */
  encode(x) {
    const out = new Uint8Array(66);
    const d = largestOf(x);
    const scale = inverse(d);
    x.forEach((v, i) => {
      const trit = roundAway(finiteLevel(f32(v * scale))) + 1;
      out[32 * (i >> 7) + (i & 31)] |= trit << (2 * ((i >> 5) & 3));
    });
    putHalf(out, 64, d);
    return out;
  },
  codes: (bytes) => Array.from({ length: 256 }, (_, i) => (bytes[32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3),
  decode(bytes) {
    const d = halfAt(bytes, 64);
    return Float32Array.from(this.codes(bytes), (q) => f32((q - 1) * d));
  },
  levels: (bytes) => [-halfAt(bytes, 64), 0, halfAt(bytes, 64)],
};
