"""Norms of batches: what a batch was normalised by becomes one factor and one bias of each channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.spec import Transform
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector

__all__ = ["BATCH_EPSILON", "batch_norms"]

BATCH_EPSILON = 1e-5  # PyTorch's

_PARTS = ("weight", "bias", "running_mean", "running_var")
_COUNT = "num_batches_tracked"


def batch_norms(module: str = ".conv.batch_norm.", counted: bool = True) -> Transform:
    """The two stand where the last part was.

    Parameters
    ----------
    module : the norm, between the name of its layer and that of a part.
    counted : the number of batches is a part, too.
    """
    names = {*_PARTS, _COUNT} if counted else set(_PARTS)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        import numpy as np

        seen: dict[str, dict[str, Tensor]] = {}
        for tensor in tensors:
            at, found, part = tensor.name.partition(module)
            if not found:
                yield tensor
                continue
            parts = seen.setdefault(at, {})
            parts[part] = tensor
            if len(parts) < len(names):
                continue
            if set(parts) != names or len({parts[name].size for name in _PARTS}) != 1:
                raise CheckpointError(f"{printable(at + module)} has not the parts of a norm of batches")
            weight, bias, mean, variance = (parts[name].floats().reshape(-1) for name in _PARTS)
            if not (variance >= 0).all():
                raise CheckpointError(f"{printable(at + module)}running_var has numbers below 0")
            factor = weight / np.sqrt(variance + np.float32(BATCH_EPSILON))
            yield vector(f"{at}{module}weight", factor)
            yield vector(f"{at}{module}bias", bias - mean * factor)

    return transform
