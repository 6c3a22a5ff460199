"""What a page says of a model beside others: how it differs from another file, and where it lies in a comparison."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.gguf.diff import FieldDiff, TensorDiff
from ggufkit.web.contents import MOST_TENSORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufkit.gguf.header import Field

__all__ = ["difference", "read_results"]

_LARGEST = 16 << 20  # of a file of results
_KEYS = 2000


def difference(title: str, fields: Sequence[FieldDiff], tensors: Sequence[TensorDiff]) -> dict[str, Any]:
    """What `diff` says, as columns."""
    kept = tensors[:MOST_TENSORS]
    return {
        "title": title,
        "fields": [[f.key, _shown(f.a), _shown(f.b), f.items] for f in fields[:_KEYS]],
        "name": [t.name for t in kept],
        "status": [t.status for t in kept],
        "a": [None if t.a is None else t.a.format.name for t in kept],
        "b": [None if t.b is None else t.b.format.name for t in kept],
        "bytes_a": [0 if t.a is None else t.a.nbytes for t in kept],
        "bytes_b": [0 if t.b is None else t.b.nbytes for t in kept],
        "relative": [t.relative for t in kept],
        "rms": [t.rms for t in kept],
        "largest": [t.largest for t in kept],
    }


def _shown(field: Field | None) -> str | None:
    if field is None:
        return None
    return field.describe() if field.item_type is not None else f"{field.describe()} {str(field.value)[:500]}"


def read_results(path: str | os.PathLike[str], size: int, title: str) -> dict[str, Any]:
    """The points of what `ggufkit compare --json` printed: name, bytes, KLD and its error, same top, perplexity.

    Parameters
    ----------
    size, title : bytes and file name of the model to mark.

    Raises
    ------
    FileError : the file cannot be read.
    UsageError : it is not such a file.
    """
    with os_errors(path, "read"), open(path, "rb") as file:
        text = file.read(_LARGEST + 1)
    try:
        found = json.loads(text)
        points = [
            {
                "name": os.path.basename(str(model["path"])),
                "bytes": _number(model["bytes"]),
                "bpw": _number(model["bpw"]),
                "kld": _number(model["kld"][0]),
                "error": _number(model["kld"][1]),
                "same_top": _number(model["same_top"][0]),
                "perplexity": _number(model["perplexity"][0]),
            }
            for model in found["models"]
        ]
        base = {"name": os.path.basename(str(found["base"]["path"])), "bytes": _number(found["base"]["bytes"])}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise UsageError(f"{printable(os.fspath(path))} is not a comparison as JSON") from None
    for point in points:
        point["this"] = point["name"] == title and point["bytes"] == size
    return {"base": base, "points": points}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
