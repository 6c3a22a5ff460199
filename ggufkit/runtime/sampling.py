"""Choosing the next token from the logits, in the order of llama.cpp's default chain:

    logits ─► penalties ─► top-k ─► top-p ─► min-p ─► temperature ─► draw

Source: llama-sampler.cpp, and the order and defaults of common/sampling.cpp.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import GGUFError, GgufkitError, UsageError, printable

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF

__all__ = ["Sampler", "Sampling", "sampling_of"]


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

    def __post_init__(self) -> None:
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


def sampling_of(model: GGUF, **wanted: float | None) -> Sampling:
    """What is `wanted`; for the settings that are None what the file recommends, or else the defaults."""
    recommended = {}
    for key, (name, kind) in _RECOMMENDED.items():
        if wanted.get(name) is None and (value := model.get(key, kind, None)) is not None:
            try:
                Sampling(**{name: value})
            except UsageError as e:
                raise GGUFError(f"{key}: {e.message}; give another one", model.path) from None
            recommended[name] = value
    chosen = {**recommended, **{name: value for name, value in wanted.items() if value is not None}}
    return Sampling(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]


class Sampler:
    """Draws tokens and remembers them.

    Parameters
    ----------
    settings : how.
    suppressed : ids that are never chosen.
    """

    def __init__(self, settings: Sampling | None = None, suppressed: Iterable[int] = ()):
        self.settings = settings or Sampling()
        n = self.settings.repeat_last_n
        self._recent: deque[int] = deque(maxlen=None if n < 0 else n)
        self._suppressed = np.array(list(suppressed), np.int64)
        self._rng = np.random.default_rng(self.settings.seed)

    def accept(self, tokens: Iterable[int]) -> None:
        """Remember tokens of the prompt, for the penalties."""
        self._recent.extend(tokens)

    def reset(self) -> None:
        """Forget all tokens; the draws go on."""
        self._recent.clear()

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
        self._recent.append(token)
        return token

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, probabilities) that a token is drawn from, the best first. Temperature 0: the best token alone."""
        ids, values = self._candidates(self._penalized(logits))
        return ids, _softmax(values)

    def _draw(self, logits: np.ndarray) -> int:
        if self.settings.temperature == 0:
            return int(logits.argmax())
        ids, values = self._candidates(logits)
        cumulative = np.cumsum(_softmax(values))
        return int(ids[np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")])

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        s = self.settings
        active = s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
        if not self._suppressed.size and not (active and self._recent):
            return logits
        logits = logits.astype(np.float32)  # a copy
        logits[self._suppressed] = -np.inf
        if active and self._recent:
            ids, counts = np.unique(np.fromiter(self._recent, np.int64), return_counts=True)
            old = logits[ids]
            new = np.where(old <= 0, old * np.float32(s.repeat_penalty), old / np.float32(s.repeat_penalty))
            logits[ids] = (
                new - counts.astype(np.float32) * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)
            )
        return logits

    def _candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, logits over the temperature) of the tokens that are left, the best first."""
        s = self.settings
        n = len(logits)
        if s.temperature == 0:
            best = logits.argmax()
            return np.array([best]), logits[[best]]
        ids = np.argpartition(logits, n - s.top_k)[n - s.top_k :] if 0 < s.top_k < n else np.arange(n)
        ids = ids[np.argsort(-logits[ids], kind="stable")]  # (k,)
        values = logits[ids].astype(np.float64)
        if s.top_p < 1:
            # The one that reaches top_p stays.
            keep = int(np.searchsorted(np.cumsum(_softmax(values)), np.float32(s.top_p))) + 1
            ids, values = ids[:keep], values[:keep]
        if s.min_p > 0:
            keep = int(np.count_nonzero(values >= values[0] + np.log(s.min_p)))
            ids, values = ids[:keep], values[:keep]
        with np.errstate(over="ignore"):  # far below the best: minus infinity will do
            return ids, (values - values[0]) / s.temperature


def _softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities of sorted logits, the largest first."""
    e = np.exp(values - values[0])
    result: np.ndarray = e / e.sum()
    return result
