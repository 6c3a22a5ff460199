"""What GPTQ will make of predicted divergences, before it runs.

Types are chosen by the errors of plain encoders, for all types of all tensors. What GPTQ gains with those that were
chosen is tried: the same rows are rounded with the statistics' moments, and their loss is compared with that of plain
encoding. Tensors are tried by what they cost, until most of the divergence is accounted for; the others are taken to
gain what these do on average.

Moments of few tokens flatter: feeding errors on fits a row's n columns to T tokens, and on other tokens the loss is
about (1 + n/T) / (1 − n/T) times that. The prediction is of other tokens, of text of the same kind.

Source: Akaike, "Fitting autoregressive models for prediction", 1969, for the last.
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
_WORK = 3e12  # multiply-adds that may go into factors; a tensor at least is tried


def after_gptq(
    model: GGUF,
    statistics: Statistics,
    chosen: Mapping[str, str],
    costs: Mapping[str, float],
    *,
    sweeps: int = SWEEPS,
    threads: int | None = None,
) -> float:
    """The KL divergence of the whole file, rounded by GPTQ, without what rounded activations cost.

    Parameters
    ----------
    chosen : tensor name → type.
    costs : tensor name → predicted divergence of its weights, encoded plainly.
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
        plain, gptq = plain + costs[name], gptq + min(others, costs[name])
    return whole * gptq / plain if plain else whole


def _elsewhere(columns: int, tokens: int) -> float:
    """By how much the loss on other tokens is above that on those that were fitted to."""
    share = min(columns / max(tokens, 1), 0.5)
    return (1 + share) / (1 - share)
