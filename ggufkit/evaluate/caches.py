"""What the types of keys and values cost: bytes, distance from a float32 cache, and speed, by length of the context.

Every window of a text is read once with each cache. Of its second half each prediction is compared with that of the
same weights and the cache in float32, so nothing but the cache differs:

    KLD        mean of Σ p (ln p − ln q), p with the float32 cache, in nats per token
    same top   how often the likeliest token is the same
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ggufkit.errors import UsageError, printable
from ggufkit.evaluate.windows import Windows
from ggufkit.runtime.kv.types import CENTRED, PRESETS, TYPES, key_types
from ggufkit.runtime.model import Model

__all__ = ["CacheCost", "measure_caches", "pair_of_types"]

EXACT = ("F32", "F32")
_STEP = 64  # tokens whose logits are compared at a time


@dataclass(frozen=True)
class CacheCost:
    """One pair of types at one length of the context.

    Attributes
    ----------
    keys, values : the types.
    context : tokens.
    bytes : of the whole cache; 0 where the backend does not say.
    kld, error : mean in nats per token, and its standard error; NaN without a text.
    same_top : share of predictions; NaN without a text.
    rate : tokens per second that are generated at the end of the context; NaN where it was not measured.
    """

    keys: str
    values: str
    context: int
    bytes: int
    kld: float
    error: float
    same_top: float
    rate: float


def pair_of_types(text: str) -> tuple[str, str]:
    """Types of keys and values: ``"q8_0"`` for both, ``"tq6/tq4"``, ``"tq4-centred"``, or a preset's name.

    Raises
    ------
    UsageError : there is no such type.
    """
    if text in PRESETS:
        return PRESETS[text]
    names = {name.lower(): name for name in key_types()}
    keys, _, values = text.lower().partition("/")
    values = values or keys.removesuffix(CENTRED)
    if keys not in names or values.upper() not in map(str.upper, TYPES):
        raise UsageError(
            f"a cache is a type, two of them as in tq6/tq4, or {', '.join(PRESETS)}; types: {', '.join(TYPES)}; "
            f"not {printable(text)}"
        )
    return names[keys], names[values]


def measure_caches(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    context: int,
    windows: Windows | None = None,
    *,
    tokens: int = 16,
    rounds: int = 3,
    advance: Callable[[int, str], None] = lambda done, what: None,
) -> list[CacheCost]:
    """Measure pairs of types with a context of so many tokens.

    Parameters
    ----------
    windows : of a text, as long as the context; None to measure speed alone.
    tokens : to generate at the end of the context for the speed; 0 for none.
    rounds : how often, all pairs in turn; the median counts.
    advance : called with the tokens that are done, and what is being measured.
    """
    distances = _distances(model, pairs, windows, advance) if windows is not None else {}
    rates = _rates(model, pairs, context, tokens, rounds, advance) if tokens else {}
    nothing = (math.nan, math.nan, math.nan)
    return [
        CacheCost(
            *pair, context, _bytes(model, pair, context), *distances.get(pair, nothing), rates.get(pair, math.nan)
        )
        for pair in pairs
    ]


def _bytes(model: Model, pair: tuple[str, str], context: int) -> int:
    return sum(getattr(layer, "nbytes", 0) for layer in model.new_cache(context, *pair).layers)


def _distances(
    model: Model, pairs: Sequence[tuple[str, str]], windows: Windows, advance: Callable[[int, str], None]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """KLD, its standard error and the share of equal tops of each pair."""
    found: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in pairs}
    same = dict.fromkeys(pairs, 0)
    chosen = list(dict.fromkeys([EXACT, *pairs]))
    caches = {pair: model.new_cache(windows.length, *pair) for pair in chosen}
    half = windows.length // 2
    for seen, _ in windows:
        for pair in chosen:
            caches[pair].truncate(0)
            model.forward(seen[:half], caches[pair], logits=None)
            advance(half, "/".join(pair))
        # The last token's prediction is of what the window does not hold.
        for lo in range(half, windows.length - 1, _STEP):
            piece = seen[lo : min(lo + _STEP, windows.length - 1)]
            exact = _log_probabilities(model.forward(piece, caches[EXACT], logits="all"))
            for pair in pairs:
                own = exact
                if pair != EXACT:
                    own = _log_probabilities(model.forward(piece, caches[pair], logits="all"))
                found[pair].append((np.exp(exact) * (exact - own)).sum(axis=1, dtype=np.float64))
                same[pair] += int((exact.argmax(1) == own.argmax(1)).sum())
                advance(len(piece), "/".join(pair))
    results = {}
    for pair, parts in found.items():
        values = np.concatenate(parts)
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        results[pair] = (float(values.mean()), error, same[pair] / len(values))
    return results


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _rates(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    context: int,
    tokens: int,
    rounds: int,
    advance: Callable[[int, str], None],
) -> dict[tuple[str, str], float]:
    """Tokens per second at the end of the context, the median of rounds in which all pairs take turns."""
    rng = np.random.default_rng(0)
    depth = max(context - tokens, 1)
    ids = rng.integers(0, model.vocabulary, context)
    caches = {}
    for pair in dict.fromkeys(pairs):
        caches[pair] = model.new_cache(depth + tokens, *pair)
        model.forward(ids[:depth], caches[pair], logits=None)
        model.forward(ids[:1], caches[pair])  # what a first token loads
        advance(depth, "/".join(pair))
    seconds: dict[tuple[str, str], list[float]] = {pair: [] for pair in caches}
    for _ in range(rounds):
        for pair, cache in caches.items():
            cache.truncate(depth)
            start = time.perf_counter()
            for token in ids[:tokens]:
                model.forward([int(token)], cache)
            seconds[pair].append(time.perf_counter() - start)
            advance(tokens, "/".join(pair))
    return {pair: tokens / median(times) for pair, times in seconds.items()}
