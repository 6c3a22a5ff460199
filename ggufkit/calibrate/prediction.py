"""What GPTQ will make of predicted divergences, before it runs.

Types are chosen by the errors of plain encoders, for all types of all tensors. What GPTQ gains with those that were
chosen is tried: the same rows are rounded with the statistics' moments, and their loss is compared with that of plain
encoding. Tensors are tried by what they cost, until most of the divergence is accounted for; the others are taken to
gain what these do on average.

Moments flatter: errors are fed on to where the text of the statistics has little, and another text has more of it
there. On other tokens of the same text the loss is about (1 + n/T) / (1 − n/T) times that, with n columns fitted to T
tokens; and on another text that is to be predicted 1.3 times more, the mean over the matrices of two models (1.2 to
1.6 each). Two streams of activations take back 15 %.

Source: Akaike, "Fitting autoregressive models for prediction", 1969, for the second.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggufkit.calibrate.costs import combined, error_cost, output_of, sampled, shares_of
from ggufkit.calibrate.gptq import SWEEPS, damp_for, rounded
from ggufkit.calibrate.products import Factor
from ggufkit.calibrate.statistics import Statistics
from ggufkit.errors import GgufkitError
from ggufkit.formats.codec import decode
from ggufkit.gguf.reader import GGUF

__all__ = ["after_gptq"]

_MOST = 0.8  # of the divergence that is tried
_ANOTHER_TEXT = 1.3
_TWO_STREAMS = 0.85
_WORK = 3e12  # multiply-adds that may go into factors; a tensor at least is tried


def after_gptq(
    model: GGUF,
    statistics: Statistics,
    chosen: Mapping[str, str],
    costs: Mapping[str, float],
    *,
    sweeps: int = SWEEPS,
    streams: bool = True,
    threads: int | None = None,
) -> float:
    """The KL divergence of the whole file, rounded by GPTQ, without what rounded activations cost.

    Parameters
    ----------
    chosen : tensor name → type.
    costs : tensor name → predicted divergence of its weights, encoded plainly.
    streams : as for `job.with_gptq`.
    """
    whole, output = sum(costs.values()), output_of(model)
    plain = gptq = work = 0.0
    factors: dict[str, Factor] = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        if plain and (plain >= _MOST * whole or work > _WORK):
            break
        tensor, shares = model.tensors[name], shares_of(name, statistics, output)
        key = name if len(shares) > 1 or name in statistics.metrics else statistics.inputs[name]
        try:
            if key not in factors:
                H = combined(shares)
                factors[key] = Factor(H, damp_for(statistics.tokens, len(H)), threads)
                work += len(H) ** 3 / 3
            sample = sampled(tensor, shares)
            blocks = rounded(sample.values, factors[key], chosen[name], sweeps, threads)
        except GgufkitError:  # it will be encoded plainly
            plain, gptq = plain + costs[name], gptq + costs[name]
            continue
        errors = decode(blocks, chosen[name], threads=threads) - sample.values
        others = error_cost(errors, sample, shares) * _elsewhere(tensor.cols, statistics.tokens)
        if streams and name not in statistics.metrics:
            others *= _TWO_STREAMS
        plain, gptq = plain + costs[name], gptq + min(others, costs[name])
    return whole * gptq / plain if plain else whole


def _elsewhere(columns: int, tokens: int) -> float:
    """By how much the loss on other tokens is above that on those that were fitted to."""
    share = min(columns / max(tokens, 1), 0.5)
    return _ANOTHER_TEXT * (1 + share) / (1 - share)
