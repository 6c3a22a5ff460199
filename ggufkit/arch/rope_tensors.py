"""Rope scaling that a GGUF holds as tensors: llama3's divisors of frequencies, longrope's factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.metadata import rope_parameters
from ggufkit.arch.rope import llama3_divisors
from ggufkit.arch.spec import Transform
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector

__all__ = ["rope_factors", "rope_freqs"]


def rope_freqs(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Put llama3's rope scaling in front as `rope_freqs.weight`: a divisor for each of the head's frequencies.

    Wavelengths shorter than `original / high_freq_factor` stay, those longer than `original / low_freq_factor`
    are divided by `factor`, and between the two the divisor blends smoothly. Source: Llama 3.1's `apply_scaling`.
    """
    scaling = rope_parameters(config)
    if scaling["rope_type"] == "llama3":
        yield vector("rope_freqs.weight", llama3_divisors(scaling, config.head_dim))
    yield from tensors


def rope_factors(dimensions: Callable[[Config], int]) -> Transform:
    """Put longrope's divisors in front: `rope_factors_long.weight` and `rope_factors_short.weight`.

    Parameters
    ----------
    dimensions : the rotated part of a head; there is a divisor for every two.
    """

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        scaling = rope_parameters(config)
        for kind in ("long", "short") if scaling.get("long_factor") or scaling.get("short_factor") else ():
            numbers, expected = scaling.get(f"{kind}_factor"), dimensions(config) // 2
            if not isinstance(numbers, list) or len(numbers) != expected:
                found = len(numbers) if isinstance(numbers, list) else "none"
                raise ArchitectureError(
                    f"config.json: rope_scaling needs {expected} numbers as {kind}_factor, it has {found}"
                )
            if any(type(number) not in (int, float) or not 0 < number < 1e38 for number in numbers):
                raise ArchitectureError(f"config.json: rope_scaling's {kind}_factor must be positive numbers")
            yield vector(f"rope_factors_{kind}.weight", numbers)
        yield from tensors

    return transform
