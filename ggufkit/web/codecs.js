"use strict";
// Block formats in JavaScript, to the last bit what ggufkit and llama.cpp store: float32 arithmetic, every result
// rounded by Math.fround. A codec is {size, bytes, fields, encode(x) → Uint8Array, decode(bytes) → Float32Array}.

const f32 = Math.fround;

/** The bits of a float32 and back. */
const bitsOf = (() => {
  const floats = new Float32Array(1);
  const words = new Uint32Array(floats.buffer);
  return {
    of(x) { floats[0] = x; return words[0]; },
    from(bits) { words[0] = bits; return floats[0]; },
  };
})();

/** float32 → the bits of the nearest float16, ties to even. */
function toHalf(x) {
  const bits = bitsOf.of(x);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and beyond
  if (magnitude < 0x38800000) return sign | evenly(Math.abs(x) * 2 ** 24); // subnormal: steps of 2^-24, exact in doubles
  return sign | evenly((magnitude - 0x38000000) / 2 ** 13);
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : mantissa * 2 ** -24);
}

/** To the nearest whole number, ties to even. */
function evenly(x) {
  const down = Math.floor(x);
  const rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2 !== 0) ? down + 1 : down;
}

/** GGML's nearest_int: adds 1.5 · 2^23 in float32 and reads the mantissa, whatever x is. */
function nearestInt(x) {
  return (bitsOf.of(f32(x + 12582912)) & 0x7fffff) - 0x400000;
}

/** Ties away from zero. */
function roundAway(x) {
  return Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
}

/** 1 / d, or 0 for 0; with what GGML's bytes become of an infinite one. */
function inverse(d) {
  return d === 0 ? 0 : f32(1 / d);
}

function finiteLevel(level) {
  return Math.abs(level) < 4194304 ? level : 0;
}

/** The first weight of largest magnitude, its sign kept; 0 if all are. */
function extremeOf(x) {
  let extreme = 0;
  for (const v of x) if (Math.abs(v) > Math.abs(extreme)) extreme = v;
  return extreme;
}

function largestOf(x) {
  return Math.abs(extremeOf(x));
}

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
  /** The weight of largest magnitude becomes level 0: d = weight / -8. */
  encode(x) {
    const out = new Uint8Array(18);
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

/**
 * Scale and minimum of x ≈ scale · l + min, l in 0 … 15: make_qkx2_quants with the steps of Q4_K. The pair (iscale,
 * base) gives the levels that were found.
 */
function searchScaleAndMin(x, w) {
  const n = x.length;
  let [low, high, sumW, sumX] = [x[0], x[0], 0, 0];
  for (let i = 0; i < n; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sumW = f32(sumW + w[i]);
    sumX = f32(sumX + f32(w[i] * x[i]));
  }
  if (low > 0) low = 0;
  const levelOf = (iscale, v, base) => clamp(nearestInt(f32(iscale * f32(v - base))), 0, 15);
  const square = (scale, l, min, i) => {
    const d = f32(f32(f32(scale * l) + min) - x[i]);
    return f32(w[i] * f32(d * d));
  };
  const first = f32(15 / f32(high - low));
  let found = { scale: f32(1 / first), min: low, iscale: Number.isFinite(first) ? first : 0, base: low };
  let best = 0;
  for (let i = 0; i < n; i++) best = f32(best + square(found.scale, levelOf(first, x[i], low), low, i));
  if (high === low) [found.scale, best] = [0, 0];
  const levels = new Float32Array(n);
  for (let step = 0; step <= 20; step++) {
    const top = f32(f32(-1 + f32(f32(0.1) * step)) + 15);
    const iscale = f32(top / f32(high - found.min));
    let [sumL, sumL2, sumXL] = [0, 0, 0];
    for (let i = 0; i < n; i++) {
      const l = (levels[i] = levelOf(iscale, x[i], found.min));
      const wl = f32(w[i] * l);
      sumL = f32(sumL + wl);
      sumL2 = f32(sumL2 + f32(wl * l));
      sumXL = f32(sumXL + f32(wl * x[i]));
    }
    const D = f32(f32(sumW * sumL2) - f32(sumL * sumL));
    if (!(D > 0)) continue;
    let scale = f32(f32(f32(sumW * sumXL) - f32(sumX * sumL)) / D);
    let min = f32(f32(f32(sumL2 * sumX) - f32(sumL * sumXL)) / D);
    if (min > 0) [scale, min] = [f32(sumXL / sumL2), 0];
    let error = 0;
    for (let i = 0; i < n; i++) error = f32(error + square(scale, levels[i], min, i));
    if (error < best) {
      best = error;
      found = { scale, min, iscale, base: found.min };
    }
  }
  return found;
}

CODECS.Q4_K = {
  size: 256,
  bytes: 144,
  fields: "d:2 dmin:2 scales:12 qs:128",
  encode(x) {
    const out = new Uint8Array(144);
    const found = Array.from({ length: 8 }, (_, j) => {
      const part = x.subarray(32 * j, 32 * j + 32);
      let squares = 0;
      for (const v of part) squares = f32(squares + f32(v * v));
      const rms = f32(Math.sqrt(f32(squares / 32)));
      return searchScaleAndMin(part, Float32Array.from(part, (v) => f32(rms + Math.abs(v))));
    });
    // Scales and minima as 0 … 63 of the largest; a level is a byte before it is capped.
    const sixBits = (values) => {
      const largest = values.reduce((a, b) => (b > a ? b : a), 0);
      const scale = largest > 0 ? f32(63 / largest) : 0;
      return [f32(largest / 63), values.map((v) => Math.min(nearestInt(f32(scale * v)) & 255, 63))];
    };
    const [d, scales] = sixBits(found.map((one) => one.scale));
    const [dmin, mins] = sixBits(found.map((one) => -one.min));
    const [dHalf, minHalf] = [putHalf(out, 0, d), putHalf(out, 2, dmin)];
    for (let j = 0; j < 4; j++) {
      out[4 + j] = scales[j] | ((scales[j + 4] >> 4) << 6);
      out[8 + j] = mins[j] | ((mins[j + 4] >> 4) << 6);
      out[12 + j] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
    }
    const levels = Array.from(x, (v, i) => {
      const one = found[i >> 5];
      const step = f32(dHalf * scales[i >> 5]);
      const offset = f32(minHalf * mins[i >> 5]);
      // Where the step is 0 the levels of the search stay.
      const quotient = step === 0 ? f32(one.iscale * f32(v - one.base)) : f32(f32(v + offset) / step);
      return clamp(nearestInt(quotient), 0, 15);
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
  /** Sixteen scales are tried; each is then fitted to the levels that it gives, an error weighing x². */
  encode(x) {
    const moments = (scale) => {
      let [qx, qq] = [0, 0];
      for (const v of x) {
        const q = IQ4_LEVELS[this.nearest(f32(scale * v))];
        const wq = f32(f32(v * v) * q);
        qx = f32(qx + f32(wq * v));
        qq = f32(qq + f32(wq * q));
      }
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
