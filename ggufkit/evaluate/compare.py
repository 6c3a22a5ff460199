"""Several models and the one that they were made from, on the same text: what each byte buys.

    found = compare(base, [small, smaller], windows)
    found.models[0].divergence.facts()["kld"]

The base reads each window once. Its predictions are kept for as many windows as fit into memory, 16 bits per token of
the vocabulary as llama-perplexity keeps them; then one model after the other reads these windows. So the numbers are
those of `perplexity` with a base file, without the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import UsageError, printable
from ggufkit.evaluate.divergence import Divergence
from ggufkit.evaluate.perplexity import Estimate, compared, estimate_of, level_count, packed, predictions
from ggufkit.evaluate.windows import Windows

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["Compared", "Comparison", "compare"]

_MEMORY = 1 << 30  # bytes of the base's predictions
_SHOWN = ("Median", "90.0%", "99.0%", "99.9%", "Maximum")


@dataclass(frozen=True)
class Compared:
    """One model.

    Attributes
    ----------
    path : of the file.
    nbytes : of the file, or of all its parts.
    bpw : bits per weight, of all weights.
    divergence : from the base.
    """

    path: str
    nbytes: int
    bpw: float
    divergence: Divergence

    def as_json(self) -> dict[str, Any]:
        """Numbers with their standard errors; KLD in nats per token."""
        facts = self.divergence.facts()
        return {
            "path": self.path,
            "bytes": self.nbytes,
            "bpw": self.bpw,
            "kld": facts["kld"],
            "kld_quantiles": {name: facts["kld_quantiles"][name] for name in _SHOWN},
            "same_top": facts["same_top"],
            "perplexity": facts["perplexity"],
            "perplexity_ratio": facts["ratio"],
        }


@dataclass(frozen=True)
class Comparison:
    """All models, in the order in which they were given.

    Attributes
    ----------
    path, nbytes, bpw : of the base, as of `Compared`.
    estimate : the base's perplexity.
    models : what is compared with it.
    """

    path: str
    nbytes: int
    bpw: float
    estimate: Estimate
    models: tuple[Compared, ...]

    def as_json(self) -> dict[str, Any]:
        """``{"base": …, "tokens": n, "models": [{"path", "bytes", "bpw", "kld": [mean, error], …}, …]}``"""
        base = {"path": self.path, "bytes": self.nbytes, "bpw": self.bpw}
        base["perplexity"] = [self.estimate.perplexity, self.estimate.error]
        models = [model.as_json() for model in self.models]
        return {"base": base, "tokens": self.estimate.tokens, "models": models}


def compare(
    base: Model,
    models: Sequence[Model],
    windows: Windows,
    *,
    types: tuple[str, str] = ("F16", "F16"),
    memory: int = _MEMORY,
    report: Callable[[int, str], None] = lambda tokens, path: None,
) -> Comparison:
    """How far the predictions of models are from those of the base, on the second half of each window.

    Parameters
    ----------
    types : of keys and values in the caches.
    memory : bytes that the base's predictions may take; those of one window are always kept.
    report : called after each pass that predicts with how many tokens were read, and the path of the model.

    Raises
    ------
    UsageError : there are no models, or one has another vocabulary.
    """
    if not models:
        raise UsageError("there is no model to compare with the base")
    for model in models:
        if model.vocabulary != base.vocabulary:
            raise UsageError(
                f"{printable(model.gguf.path)} has {model.vocabulary} tokens, and the base "
                f"{printable(base.gguf.path)} {base.vocabulary}; only models of one vocabulary can be compared"
            )
    nll: list[np.ndarray] = []
    facts: list[list[np.ndarray]] = [[] for _ in models]
    for part in _parts(windows, base.vocabulary, memory):
        levels = []
        for logits, targets, read in predictions(base, part, types):
            levels.append(np.zeros((len(targets), level_count(base.vocabulary)), np.uint16))
            nll.append(packed(logits, targets, levels[-1]))
            report(read, base.gguf.path)
        for model, found in zip(models, facts, strict=True):
            for (logits, targets, read), known in zip(predictions(model, part, types), levels, strict=True):
                found.append(compared(logits, targets, known))
                report(read, model.gguf.path)
    made = [
        Compared(*_sizes(model), Divergence.of(np.concatenate(found)))
        for model, found in zip(models, facts, strict=True)
    ]
    return Comparison(*_sizes(base), estimate_of(np.concatenate(nll)), tuple(made))


def _parts(windows: Windows, vocabulary: int, memory: int) -> Iterator[Windows]:
    """The windows, so many at a time that the predictions of their second halves fit."""
    each = 2 * level_count(vocabulary) * (windows.length - 1 - windows.length // 2)
    step = max(1, memory // max(each, 1))
    for lo in range(0, len(windows), step):
        yield windows.part(lo, lo + step)


def _sizes(model: Model) -> tuple[str, int, float]:
    """Path, bytes of the file, and bits per weight."""
    infos = model.gguf.info.values()
    weights = sum(tensor.size for tensor in model.gguf.tensors.values())
    return model.gguf.path, model.gguf.size, 8 * sum(info.nbytes for info in infos) / max(weights, 1)
