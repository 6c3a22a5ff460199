"use strict";
// The searches for scales of llama.cpp, in its order of sums. An error weighs what is said of each weight.

function sumOfSquares(x) {
  let sum = 0;
  for (const v of x) sum = f32(sum + f32(v * v));
  return sum;
}

/** What an error weighs where there is an importance matrix: importance · √(sigma2 + x²). */
function errorWeights(x, importance, sigma2) {
  return x.map((v, i) => f32(importance[i] * f32(Math.sqrt(f32(sigma2 + f32(v * v))))));
}

/** Scale and levels of x ≈ scale · (l - 8), the best of 19 ways to round: make_qx_quants of Q4_0. */
function searchScale(x, w) {
  const extreme = extremeOf(x);
  if (Math.abs(extreme) < f32(1e-15)) return { scale: 0, levels: new Array(x.length).fill(0) };
  const fit = (iscale) => {
    let [lx, l2] = [0, 0];
    for (let i = 0; i < x.length; i++) {
      const level = clamp(nearestInt(f32(iscale * x[i])), -8, 7);
      lx = f32(lx + f32(f32(w[i] * x[i]) * level));
      l2 = f32(l2 + f32(f32(w[i] * level) * level));
    }
    return [lx, l2];
  };
  let iscale = f32(-8 / extreme);
  let [lx, l2] = fit(iscale);
  let scale = l2 === 0 ? 0 : f32(lx / l2);
  let best = f32(scale * lx);
  for (let step = -9; step <= 9; step++) {
    if (step === 0) continue;
    const tried = f32(-f32(8 + f32(f32(0.1) * step)) / extreme);
    [lx, l2] = fit(tried);
    if (l2 > 0 && f32(lx * lx) > f32(best * l2)) {
      scale = f32(lx / l2);
      best = f32(scale * lx);
      iscale = tried;
    }
  }
  return { scale, levels: Array.from(x, (v) => clamp(nearestInt(f32(iscale * v)), -8, 7) + 8) };
}

// Which inverse scales are tried: (15 + from + by · step) / (largest - smallest); whether levels saturate before they
// are rounded.
const Q4_K_PLAIN = { from: -1, by: f32(0.1), steps: 20, saturates: false };
const Q4_K_WEIGHTED = { from: f32(-0.9), by: f32(0.05), steps: 36, saturates: true };

/**
 * Scale and minimum of x ≈ scale · l + min, l in 0 … 15: make_qkx2_quants, and make_qkx3_quants with importance. The
 * pair (iscale, base) gives the levels that were found.
 */
function searchScaleAndMin(x, w, grid) {
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
  for (let step = 0; step <= grid.steps; step++) {
    const top = f32(f32(grid.from + f32(grid.by * step)) + 15);
    const iscale = f32(top / f32(high - found.min));
    let [sumL, sumL2, sumXL] = [0, 0, 0];
    for (let i = 0; i < n; i++) {
      const l = (levels[i] = grid.saturates ? nearestInt(clamp(f32(iscale * f32(x[i] - found.min)), 0, 15)) : levelOf(iscale, x[i], found.min));
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

/** Six-bit levels of the largest of a super-block's scales. A level is a byte before it is capped. */
function levelsOfLargest(values) {
  const largest = values.reduce((a, b) => (b > a ? b : a), 0);
  const scale = largest > 0 ? f32(63 / largest) : 0;
  return { scale: f32(largest / 63), levels: values.map((v) => Math.min(nearestInt(f32(scale * v)) & 255, 63)) };
}

/** Six-bit levels of a super-block's scales for the least weighted error: make_qp_quants. */
function searchLevels(values, w) {
  const largest = values.reduce((a, b) => (b > a ? b : a), 0);
  if (largest < f32(1e-15)) return { scale: 0, levels: values.map(() => 0) };
  const errorOf = (scale, level) =>
    values.reduce((sum, v, i) => {
      const d = f32(v - f32(scale * level(v)));
      return f32(sum + f32(f32(w[i] * d) * d));
    }, 0);
  let iscale = f32(63 / largest);
  let best = errorOf(f32(1 / iscale), (v) => nearestInt(f32(iscale * v)) & 255);
  for (let step = -4; step <= 4; step++) {
    if (step === 0) continue;
    const tried = f32(f32(f32(f32(0.1) * step) + 63) / largest);
    const error = errorOf(f32(1 / tried), (v) => Math.min(nearestInt(f32(tried * v)), 63));
    if (error < best) [best, iscale] = [error, tried];
  }
  let [lx, l2] = [0, 0];
  const levels = values.map((v, i) => {
    const level = Math.min(nearestInt(f32(iscale * v)), 63);
    lx = f32(lx + f32(f32(w[i] * v) * level));
    l2 = f32(l2 + f32(f32(w[i] * level) * level));
    return level & 255;
  });
  // Single levels move while that helps.
  for (let round = 0, moves = 1; round < 5 && moves; round++) {
    moves = 0;
    values.forEach((v, i) => {
      const wv = f32(w[i] * v);
      const [restX, rest2] = [f32(lx - f32(wv * levels[i])), f32(l2 - f32(f32(w[i] * levels[i]) * levels[i]))];
      if (!(restX > 0 && rest2 > 0)) return;
      const moved = Math.min(nearestInt(f32(f32(v * rest2) / restX)), 63);
      if (moved === levels[i]) return;
      const [newX, new2] = [f32(restX + f32(wv * moved)), f32(rest2 + f32(f32(w[i] * moved) * moved))];
      if (!(f32(f32(newX * newX) * l2) > f32(f32(lx * lx) * new2))) return;
      levels[i] = moved & 255;
      [lx, l2] = [newX, new2];
      moves++;
    });
  }
  return { scale: l2 > 0 ? f32(lx / l2) : 0, levels };
}
