"""Are statistics of this model? Checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping

from ggufkit.calibrate.statistics import Statistics
from ggufkit.errors import PolicyError, printable
from ggufkit.tensors.tensor import Tensor

__all__ = ["check_model"]


def check_model(found: Statistics, tensors: Mapping[str, Tensor]) -> None:
    """Refuse statistics of another model.

    Parameters
    ----------
    tensors : of the model. Those of which the statistics know nothing, and the other way round, are let pass.

    Raises
    ------
    PolicyError : of a tensor they are of another shape, or of tokens that the model has not.
    """
    known = {name: tensors[name] for name in (*found.squares, *found.metrics) if name in tensors}
    for name, tensor in known.items():
        shapes = []
        if name in found.squares:
            shapes.append((found.squares[name].squares.shape[1], tensor.cols, "columns"))
        if name in found.fisher:
            shapes.append((found.fisher[name].size, tensor.rows, "rows"))
        if name in found.metrics:
            shapes.append((len(found.metrics[name]), tensor.cols, "columns"))
            shapes.append((len(found.frequencies[name]), tensor.rows, "rows"))
            if found.windows.size and not 0 <= found.windows.min() <= found.windows.max() < tensor.rows:
                bad = found.windows[(found.windows < 0) | (found.windows >= tensor.rows)].flat[0]
                raise PolicyError(
                    f"the statistics are of another model: token {bad} of their text is none of the "
                    f"{tensor.rows} of {printable(name)}"
                )
        for theirs, ours, what in shapes:
            if theirs != ours:
                raise PolicyError(
                    f"the statistics are of another model: of {printable(name)} they have {theirs} {what}, "
                    f"the model {ours}"
                )
