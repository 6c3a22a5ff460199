"""How far a model's predictions are from those of another, token by token, and what is said of that.

    KL divergence       Σ p_base ln(p_base / p) of each predicted token
    same top            whether both find the same token most likely

Source: tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["KLD_ROWS", "P_ROWS", "Divergence", "mean_and_error", "standard_error"]

# Llama-perplexity's rows: label, fraction of the sorted values.
KLD_ROWS = (
    ("Maximum", 1.0),
    ("99.9%  ", 0.999),
    ("99.0%  ", 0.99),
    ("95.0%  ", 0.95),
    ("90.0%  ", 0.9),
    ("Median ", 0.5),
    ("10.0%  ", 0.1),
    (" 5.0%  ", 0.05),
    (" 1.0%  ", 0.01),
    (" 0.1%  ", 0.001),
    ("Minimum", 0.0),
)
P_ROWS = (*KLD_ROWS[:5], ("75.0%  ", 0.75), KLD_ROWS[5], ("25.0%  ", 0.25), *KLD_ROWS[6:])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; an error of 0 for ten values or fewer."""
    n = len(values)
    if not n:
        return 0.0, 0.0
    mean = float(values.mean(dtype=np.float64))
    return mean, standard_error(mean, float((values.astype(np.float64) ** 2).mean()), n)


def standard_error(mean: float, square: float, n: int) -> float:
    """The standard error of the mean of `n` values, from that and the mean of their squares; 0 for ten or fewer."""
    variance = square - mean * mean
    return math.sqrt(variance / (n - 1)) if variance > 0 and n > 10 else 0.0


@dataclass(frozen=True)
class Divergence:
    """What each predicted token tells of two models: arrays of shape (n,).

    Attributes
    ----------
    nll, base_nll : −ln p of the text's token.
    kld : KL divergence from the base.
    same_top : whether both find the same token most likely.
    """

    nll: np.ndarray
    base_nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray

    @classmethod
    def of(cls, facts: np.ndarray) -> Divergence:
        """From what `compared` finds: (n, 4)."""
        nll, base_nll, kld, same = facts.T
        return cls(nll, base_nll, kld, same > 0)

    @property
    def p_difference(self) -> np.ndarray:
        """p − p_base of the text's token."""
        result: np.ndarray = np.exp(-self.nll) - np.exp(-self.base_nll)
        return result

    def facts(self) -> dict[str, Any]:
        """All numbers of llama-perplexity, by name, each with its standard error where it has one."""
        nll, base, n = mean_and_error(self.nll), mean_and_error(self.base_nll), len(self.nll)
        covariance = 0.0
        if n >= 10:
            covariance = float((self.nll * self.base_nll).mean() - self.nll.mean() * self.base_nll.mean()) / (n - 1)
        ppl, base_ppl = _exp(nll[0]), _exp(base[0])
        log_error = math.sqrt(max(0.0, nll[1] ** 2 + base[1] ** 2 - 2 * covariance))
        ratio = _exp(nll[0] - base[0])
        errors = ppl * nll[1], base_ppl * base[1]
        difference = math.sqrt(max(0.0, errors[0] ** 2 + errors[1] ** 2 - 2 * ppl * base_ppl * covariance))
        p = self.p_difference
        square = mean_and_error(p * p)
        rms, same = math.sqrt(square[0]), float(self.same_top.mean())
        return {
            "tokens": n,
            "perplexity": [ppl, errors[0]],
            "base_perplexity": [base_ppl, errors[1]],
            "correlation": covariance / (nll[1] * base[1]) if nll[1] and base[1] else 1.0,
            "log_ratio": [nll[0] - base[0], log_error],
            "ratio": [ratio, ratio * log_error],
            "difference": [ppl - base_ppl, difference],
            "kld": list(mean_and_error(self.kld)),
            "kld_quantiles": {name.strip(): _quantile(self.kld, at) for name, at in KLD_ROWS},
            "p_difference": list(mean_and_error(p)),
            "p_difference_quantiles": {name.strip(): _quantile(p, at) for name, at in P_ROWS},
            "p_difference_rms": [rms, 0.5 / rms * square[1] if rms else 0.0],
            "same_top": [same, float(np.sqrt(same * (1 - same) / max(1, n - 1)))],
        }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _quantile(values: np.ndarray, at: float) -> float:
    return float(np.quantile(values, at))
