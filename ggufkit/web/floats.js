"use strict";
// float32 and float16 as C has them, and how GGML rounds.

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
