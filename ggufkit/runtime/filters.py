"""What a sampler does to the candidates for the next token: llama.cpp's samplers, one function each.

Each gets ids and logits, the best first, and gives those that are left, in this order too.

Source: src/llama-sampler.cpp of llama.cpp, whose numbers these are.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = [
    "Candidates",
    "dry_penalties",
    "min_p",
    "mirostat",
    "mirostat_k",
    "softmax",
    "temperature",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical",
    "xtc",
]

# (ids, logits), arrays of shape (k,), sorted by logit, the largest first.
Candidates = tuple[np.ndarray, np.ndarray]


def softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities of sorted logits, the largest first."""
    e = np.exp(values - values[0])
    result: np.ndarray = e / e.sum()
    return result


def top_k(ids: np.ndarray, values: np.ndarray, k: int) -> Candidates:
    """The k best; all for a k of 0 and less."""
    return (ids[:k], values[:k]) if k > 0 else (ids, values)


def top_p(ids: np.ndarray, values: np.ndarray, p: float) -> Candidates:
    """The fewest best ones that have the probability p together; the one that reaches it stays."""
    if p >= 1:
        return ids, values
    keep = int(np.searchsorted(np.cumsum(softmax(values)), np.float32(p))) + 1
    return ids[:keep], values[:keep]


def min_p(ids: np.ndarray, values: np.ndarray, p: float) -> Candidates:
    """Those with at least p times the probability of the best one."""
    if p <= 0:
        return ids, values
    keep = int(np.count_nonzero(values >= values[0] + np.log(p)))
    return ids[:keep], values[:keep]


def top_n_sigma(ids: np.ndarray, values: np.ndarray, n: float) -> Candidates:
    """Those within n standard deviations of the best logit."""
    if n <= 0:
        return ids, values
    finite = values[np.isfinite(values)]
    keep = int(np.count_nonzero(values >= values[0] - n * finite.std()))
    return ids[:keep], values[:keep]


def typical(ids: np.ndarray, values: np.ndarray, p: float) -> Candidates:
    """Those whose surprise is nearest to what is to be expected, until they have the probability p together."""
    if p >= 1:
        return ids, values
    finite = np.isfinite(values)
    ids, values = ids[finite], values[finite]
    shares = softmax(values)
    surprise = -np.log(np.maximum(shares, 1e-300))
    expected = float((shares * surprise).sum())
    nearest = np.argsort(np.abs(surprise - expected), kind="stable")
    last = int(np.searchsorted(np.cumsum(shares[nearest]), np.float32(p), side="right")) + 1
    kept = np.sort(nearest[:last])
    return ids[kept], values[kept]


def xtc(ids: np.ndarray, values: np.ndarray, probability: float, threshold: float, chance: float) -> Candidates:
    """Leave out all that reach the threshold but the last of them, so often as the probability says.

    Parameters
    ----------
    chance : a random number from 0 to 1.
    """
    if probability <= 0 or threshold > 0.5 or len(ids) < 2 or chance > probability:
        return ids, values
    first = max(0, int(np.count_nonzero(softmax(values) >= np.float32(threshold))) - 1)
    return ids[first:], values[first:]


def temperature(ids: np.ndarray, values: np.ndarray, value: float, spread: float, exponent: float) -> Candidates:
    """Logits over the temperature; with a `spread` over one from value - spread to value + spread, by the entropy."""
    if spread > 0:
        if len(ids) <= 1:
            return ids, values
        low, high = max(0.0, value - spread), value + spread
        shares = softmax(values)
        entropy = -float((shares * np.log(np.maximum(shares, 1e-300))).sum())
        value = low + (high - low) * (entropy / math.log(len(ids))) ** exponent
    if value <= 0:
        return ids[:1], values[:1]
    with np.errstate(over="ignore"):  # far below the best: minus infinity will do
        return ids, (values - values[0]) / value


def mirostat(ids: np.ndarray, values: np.ndarray, mu: float) -> Candidates:
    """Version 2: those whose surprise is at most mu bits, at least one."""
    surprise = -np.log2(np.maximum(softmax(values), 1e-300))
    over = np.flatnonzero(surprise > mu)
    keep = max(1, int(over[0])) if len(over) else len(ids)
    return ids[:keep], values[:keep]


def mirostat_k(values: np.ndarray, mu: float, vocabulary: int, m: int = 100) -> int:
    """Version 1: how many of the best, from the exponent of Zipf's law that fits the first `m`."""
    shares = softmax(values)[:m]
    n = len(shares) - 1
    if n < 1:
        return 1
    i = np.arange(n)
    t = np.log((i + 2) / (i + 1))
    b = np.log(shares[:-1] / np.maximum(shares[1:], 1e-300))
    exponent = float((t * b).sum() / (t * t).sum())
    epsilon = exponent - 1
    with np.errstate(all="ignore"):
        k = ((epsilon * np.exp2(mu)) / (1 - np.float64(vocabulary) ** -epsilon)) ** (1 / np.float64(exponent))
    return max(1, int(min(k, len(values)))) if np.isfinite(k) else 1


def dry_penalties(
    recent: np.ndarray, multiplier: float, base: float, allowed: int, breakers: frozenset[int] = frozenset()
) -> dict[int, float]:
    """Token → what is taken off its logit because it would go on with a repetition.

        … the cat sat … the cat │ sat     the last two tokens were there before, so that "sat" makes it three

    Parameters
    ----------
    recent : tokens (n,), the last at the end.
    allowed : how many tokens may repeat for nothing; each one more multiplies the penalty by `base`.
    breakers : tokens over which no repetition is looked for.
    """
    if multiplier == 0 or base < 1 or len(recent) <= allowed:
        return {}
    back = recent[::-1]  # the last first
    matches = _matches(back)
    nearest = back[: matches.max()].tolist()
    limit = next((i for i, token in enumerate(nearest) if token in breakers), len(nearest))
    lengths = np.minimum(matches, limit)[1:]  # of what is like the end; before it in `back` stands what came after it
    at = np.flatnonzero(lengths >= allowed)
    longest: dict[int, int] = {}
    for token, length in zip(back[at].tolist(), lengths[at].tolist(), strict=True):
        longest[token] = max(length, longest.get(token, 0))
    most = math.log(3.4e38) / math.log(base) if base > 1.000001 else math.inf
    return {token: multiplier * base ** min(length - allowed, most) for token, length in longest.items()}


def _matches(tokens: np.ndarray) -> np.ndarray:
    """The Z function: at each place how many tokens are like those at the beginning, 0 at the first; (n,) int64.

    Only places of the first token are looked at: of a text few.
    """
    starts = np.flatnonzero(tokens == tokens[0])[1:].tolist()
    n, text = len(tokens), tokens.tolist()
    found = [0] * n
    left = right = 0
    for i in starts:
        length = min(found[i - left], right - i) if i < right else 0
        while i + length < n and text[length] == text[i + length]:
            length += 1
        found[i] = length
        if i + length > right:
            left, right = i, i + length
    return np.array(found, np.int64)
