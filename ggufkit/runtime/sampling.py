"""Choosing the next token from the logits, in the order of llama.cpp's default chain:

    logits ─► bias ─► penalties ─► dry ─► top_n_sigma ─► top_k ─► typ_p ─► top_p ─► min_p ─► xtc ─► temperature ─► draw
                                                                          with mirostat only: temperature ─► mirostat

Source: llama-sampler.cpp, and the order and defaults of common/sampling.cpp.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import GGUFError, GgufkitError, UsageError, printable
from ggufkit.runtime.filters import (
    Candidates,
    dry_penalties,
    min_p,
    mirostat,
    mirostat_k,
    softmax,
    temperature,
    top_k,
    top_n_sigma,
    top_p,
    typical,
    xtc,
)

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF

__all__ = ["SAMPLERS", "Sampler", "Sampling", "sampling_of"]


# llama.cpp's order and names.
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes
    ----------
    temperature : 0 takes the best token; above 1 flattens the distribution.
    top_k : of how many best tokens; 0 for all.
    top_p : of the fewest best tokens that have this probability together; 1 for all.
    min_p : of tokens with at least this share of the best one's probability; 0 for all.
    repeat_penalty : logits of recent tokens are divided by it (multiplied where negative); 1 for none.
    repeat_last_n : how many tokens are recent; 0 for none, -1 for all.
    frequency_penalty, presence_penalty : taken off a recent token's logit, for each time and once.
    seed : the same seed gives the same text; None for another one each time.
    top_n_sigma : of tokens within so many standard deviations of the best logit; 0 and less for all.
    typical_p : of the most typical tokens that have this probability together; 1 for all.
    xtc_probability, xtc_threshold : so often all tokens but the last that reach the threshold are left out.
    dynatemp_range, dynatemp_exponent : the temperature goes so far down and up with the entropy.
    dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n : off the logit of a token that goes on with a
        repetition longer than allowed, multiplier times base for each token more; looked for in the last n, -1 for all.
    mirostat, mirostat_tau, mirostat_eta : 1 or 2: keep the surprise at tau bits, learning by eta; 0 for not.
    samplers : their order; those that are left out are not used.
    logit_bias : token → what is added to its logit.

    Raises
    ------
    UsageError : a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    top_n_sigma: float = -1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] = SAMPLERS
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.samplers if name not in SAMPLERS]:
            raise UsageError(f"there is no sampler {printable(unknown[0])}; there are {', '.join(SAMPLERS)}")
        for name, low, high in (
            ("temperature", 0.0, 1e6),
            ("top_k", -(1 << 31), (1 << 31) - 1),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 1e-3, 1e3),
            ("repeat_last_n", -1, (1 << 31) - 1),
            ("frequency_penalty", -1e3, 1e3),
            ("presence_penalty", -1e3, 1e3),
            ("seed", 0, (1 << 64) - 1),
            ("top_n_sigma", -1e6, 1e6),
            ("typical_p", 0.0, 1.0),
            ("xtc_probability", 0.0, 1.0),
            ("xtc_threshold", 0.0, 1.0),
            ("dynatemp_range", 0.0, 1e6),
            ("dynatemp_exponent", 0.0, 1e3),
            ("dry_multiplier", 0.0, 1e6),
            ("dry_base", 1.0, 1e6),
            ("dry_allowed_length", 0, (1 << 31) - 1),
            ("dry_penalty_last_n", -1, (1 << 31) - 1),
            ("mirostat", 0, 2),
            ("mirostat_tau", 0.0, 1e3),
            ("mirostat_eta", 0.0, 1e3),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                shown = printable(repr(value), 40)
                raise UsageError(f"{name.replace('_', ' ')} is {shown}; it must be between {low:g} and {high:g}")


# Metadata key → setting: what the makers of a model recommend.
_RECOMMENDED = {
    "general.sampling.temp": ("temperature", float),
    "general.sampling.top_k": ("top_k", int),
    "general.sampling.top_p": ("top_p", float),
    "general.sampling.min_p": ("min_p", float),
    "general.sampling.penalty_repeat": ("repeat_penalty", float),
    "general.sampling.penalty_last_n": ("repeat_last_n", int),
}


def sampling_of(model: GGUF, **wanted: Any) -> Sampling:
    """What is `wanted`; for the settings that are None what the file recommends, or else the defaults."""
    recommended: dict[str, Any] = {}
    for key, (name, kind) in _RECOMMENDED.items():
        if wanted.get(name) is None and (value := model.get(key, kind, None)) is not None:
            try:
                Sampling(**{name: value})
            except UsageError as e:
                raise GGUFError(f"{key}: {e.message}; give another one", model.path) from None
            recommended[name] = value
    chosen = {**recommended, **{name: value for name, value in wanted.items() if value is not None}}
    return Sampling(**{name: value for name, value in chosen.items() if value is not None})


class Sampler:
    """Draws tokens and remembers them.

    Parameters
    ----------
    settings : how.
    suppressed : ids that are never chosen.
    breakers : ids over which DRY looks for no repetition: line ends, colons, quotes.
    """

    def __init__(self, settings: Sampling | None = None, suppressed: Iterable[int] = (), breakers: Iterable[int] = ()):
        self.settings = settings or Sampling()
        self._tokens = array("q")
        self._breakers = frozenset(breakers)
        self._mu = 2 * self.settings.mirostat_tau
        self._suppressed = np.array(list(suppressed), np.int64)
        self._rng = np.random.default_rng(self.settings.seed)

    def accept(self, tokens: Iterable[int]) -> None:
        """Remember tokens of the prompt, for the penalties."""
        self._tokens.extend(tokens)

    def reset(self) -> None:
        """Forget all tokens; the draws go on."""
        del self._tokens[:]
        self._mu = 2 * self.settings.mirostat_tau

    def draw(self, logits: np.ndarray) -> int:
        """The next token, which is remembered.

        Parameters
        ----------
        logits : array of shape (vocab,), float32; left as it is.

        Raises
        ------
        GgufkitError : the logits are no numbers.
        """
        best = logits.max()
        if not np.isfinite(best):
            raise GgufkitError(
                f"the best of the model's logits is {best}, no number; its weights are damaged, or their type is too "
                "small for them; look with ggufkit validate"
            )
        token = self._draw(self._penalized(logits))
        self._tokens.append(token)
        return token

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, probabilities) that a token is drawn from, the best first. Temperature 0: the best token alone."""
        ids, values = self._candidates(self._penalized(logits))
        return ids, softmax(values)

    def _draw(self, logits: np.ndarray) -> int:
        s = self.settings
        if np.float32(s.temperature) == 0 and not s.dynatemp_range:
            return int(logits.argmax())
        ids, values = self._candidates(logits)
        shares = softmax(values)
        cumulative = np.cumsum(shares)
        at = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        if s.mirostat:
            self._mu -= s.mirostat_eta * (-float(np.log2(shares[at])) - s.mirostat_tau)
        return int(ids[at])

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        s = self.settings
        active = s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
        active = active and bool(self._tokens and s.repeat_last_n) and "penalties" in s.samplers
        dry = bool(s.dry_multiplier and self._tokens and s.dry_penalty_last_n and "dry" in s.samplers)
        if not (self._suppressed.size or s.logit_bias or active or dry):
            return logits
        logits = logits.astype(np.float32)  # a copy
        logits[self._suppressed] = -np.inf
        for token, bias in s.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += np.float32(bias)
        if active:
            ids, counts = np.unique(self._last(s.repeat_last_n), return_counts=True)
            old = logits[ids]
            new = np.where(old <= 0, old * np.float32(s.repeat_penalty), old / np.float32(s.repeat_penalty))
            logits[ids] = (
                new - counts.astype(np.float32) * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)
            )
        if dry:
            recent = self._last(s.dry_penalty_last_n)
            found = dry_penalties(recent, s.dry_multiplier, s.dry_base, s.dry_allowed_length, self._breakers)
            for token, penalty in found.items():
                logits[token] -= np.float32(penalty)
        return logits

    def _last(self, n: int) -> np.ndarray:
        """The last n tokens, n > 0, or all of them for -1; gone before another is remembered, or that fails."""
        tokens = np.frombuffer(self._tokens, np.int64)
        return tokens[-n:] if n > 0 else tokens

    def _candidates(self, logits: np.ndarray) -> Candidates:
        """(ids, logits over the temperature) of the tokens that are left, the best first."""
        s = self.settings
        if np.float32(s.temperature) == 0 and not s.dynatemp_range:
            best = logits.argmax()
            return np.array([best]), logits[[best]]
        if s.mirostat:
            return self._mirostat(*_sorted(logits, len(logits)))
        early = [name for name in s.samplers if name not in ("penalties", "dry")]
        found = _sorted(logits, s.top_k if self._top_k_comes_first(early) else 0)
        for name in early:
            found = self._filtered(name, *found)
        return found

    def _top_k_comes_first(self, names: Sequence[str]) -> bool:
        """Whether nothing looks at all logits before top_k: then only its are sorted."""
        s = self.settings
        before = names[: names.index("top_k")] if "top_k" in names else names
        return "top_k" in names and all(name == "top_n_sigma" and s.top_n_sigma <= 0 for name in before)

    def _filtered(self, name: str, ids: np.ndarray, values: np.ndarray) -> Candidates:
        s = self.settings
        if name == "top_n_sigma":
            return top_n_sigma(ids, values, s.top_n_sigma)
        if name == "top_k":
            return top_k(ids, values, s.top_k)
        if name == "typ_p":
            return typical(ids, values, s.typical_p)
        if name == "top_p":
            return top_p(ids, values, s.top_p)
        if name == "min_p":
            return min_p(ids, values, s.min_p)
        if name == "xtc":
            return xtc(
                ids, values, s.xtc_probability, s.xtc_threshold, self._rng.random() if s.xtc_probability else 1.0
            )
        return temperature(ids, values, s.temperature, s.dynatemp_range, s.dynatemp_exponent)

    def _mirostat(self, ids: np.ndarray, values: np.ndarray) -> Candidates:
        s = self.settings
        n = len(ids)
        ids, values = temperature(ids, values, s.temperature, s.dynatemp_range, s.dynatemp_exponent)
        return (
            mirostat(ids, values, self._mu) if s.mirostat == 2 else top_k(ids, values, mirostat_k(values, self._mu, n))
        )


def _sorted(logits: np.ndarray, k: int) -> Candidates:
    """The k best (all for 0), the best first."""
    n = len(logits)
    if 0 < k < n:
        ids = np.argpartition(logits, n - k)[n - k :]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
    else:
        ids = _falling(logits)
    return ids, logits[ids].astype(np.float64)


def _falling(logits: np.ndarray) -> np.ndarray:
    """All ids, the best first, of equal ones the smaller: as a stable argsort, in a quarter of its time.

    A key has the logit's bits above, turned around where it is positive, and the id below.
    """
    bits = (logits + np.float32(0)).view(np.uint32)  # no -0
    keys = np.where(bits >> np.uint32(31), bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(logits), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
