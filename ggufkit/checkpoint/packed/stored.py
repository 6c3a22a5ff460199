"""What layouts are given to read from, and what they say: the contract of a file in this folder.

A layout is a module with

    def read(source: Source) -> Reading | None

which looks at names, dtypes and settings, checks the shapes that it relies on, and reads no codes. None means that
the checkpoint, or what other layouts left of it, is not of its kind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.matrix import Numbers
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Matrix", "Reading", "Source", "natural", "parts_of", "require"]

# Bytes of matrices that lie the other way round, kept while their rows are asked for: at most, and as a share of the
# memory that is allowed.
_KEPT, _KEPT_SHARE = 160_000_000, 3
# The part of them that is read at a time.
_STRIP = 0.8


@dataclass(frozen=True)
class Matrix:
    """One quantized weight.

    Attributes
    ----------
    name : of the weight, as the model that is not quantized has it: "model.layers.0.mlp.up_proj.weight".
    what : for people: "GPTQ, 4 bits in groups of 128".
    numbers : what it holds.
    """

    name: str
    what: str
    numbers: Numbers


@dataclass
class Reading:
    """What a layout found.

    Attributes
    ----------
    layout : its name, for people.
    matrices : name of a stored tensor → the matrix that stands in its place.
    parts : names of all stored tensors that are used up.
    other : stored tensors under another name or with other contents.
    first : the matrices come before all other tensors.
    """

    layout: str
    matrices: dict[str, Matrix] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    other: dict[str, Tensor] = field(default_factory=dict)
    first: bool = False

    def add(self, anchor: str, matrix: Matrix, parts: Iterable[str]) -> None:
        self.matrices[anchor] = matrix
        self.parts.update((anchor, *parts))


class Source:
    """A checkpoint as layouts see it.

    Attributes
    ----------
    tensors : name → what is stored.
    config : `config.json`.
    settings : its `quantization_config`; {} where there is none.
    json : the JSON object in a file beside it by its name, or None.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        json: Callable[[str], dict[str, Any] | None] = lambda name: None,
    ):
        self.tensors, self.config, self.json = dict(tensors), config, json
        settings = config.get("quantization_config")
        if not isinstance(settings, dict):
            part = config.get("text_config")
            settings = part.get("quantization_config") if isinstance(part, dict) else None
        self.settings: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
        self._kept = _Kept()

    def within(self, memory: int) -> int:
        """Keep no more than is allowed; the bytes of `memory` that are left."""
        self._kept.limit = max(1 << 20, min(_KEPT, memory // _KEPT_SHARE))
        return max(1, memory - self._kept.limit)

    @property
    def method(self) -> str:
        """`quant_method`, in small letters; "" where there is none."""
        method = self.settings.get("quant_method")
        return method.lower() if isinstance(method, str) else ""

    def whole(self, tensor: Tensor) -> np.ndarray:
        """All of a small tensor in its own numbers, read once: array of its shape."""
        return self._kept.get((tensor, 0), lambda: _numbers(tensor, 0, tensor.rows).reshape(tensor.shape))

    def derived(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` makes of a stored tensor, kept while it is used."""
        return self._kept.get(("derived", name), make)

    def columns(self, tensor: Tensor, lo: int, hi: int) -> np.ndarray:
        """Columns lo:hi of a matrix: array of shape (rows, hi - lo).

        The matrix is read as a whole, or strip by strip where it is large, and stays in memory while it is used.
        """
        strips = -(tensor.nbytes // -int(_STRIP * self._kept.limit)) or 1
        wide = -(tensor.cols // -strips) or 1
        pieces = []
        for strip in range(lo // wide, -(hi // -wide)):
            begin, end = strip * wide, min((strip + 1) * wide, tensor.cols)
            data = self._kept.get((tensor, strip), partial(_strip, tensor, begin, end))
            pieces.append(data[:, max(lo, begin) - begin : min(hi, end) - begin])
        if len(pieces) == 1:
            return pieces[0]
        import numpy as np

        return np.concatenate(pieces, axis=1) if pieces else _numbers(tensor, 0, 0)[:, :0]


class _Kept:
    """What was read last, up to a number of bytes; each thing is read by one thread while the others wait for it."""

    def __init__(self) -> None:
        self.limit = _KEPT
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.data is None:
                entry.data = make()
                self._evict(key)
            return entry.data

    def _evict(self, newest: Any) -> None:
        with self._lock:
            known = [(key, entry.data.nbytes) for key, entry in self._entries.items() if entry.data is not None]
            total = sum(size for _, size in known)
            for key, size in known:
                if total <= self.limit:
                    break
                if key != newest:
                    del self._entries[key]
                    total -= size


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: np.ndarray | None = None


def _numbers(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Rows lo:hi in the numbers that are stored, (hi - lo, cols)."""
    return tensor.read(lo, hi).view(tensor.format.dtype["x"])


def _strip(tensor: Tensor, begin: int, end: int) -> np.ndarray:
    import numpy as np

    if (begin, end) == (0, tensor.cols):
        return _numbers(tensor, 0, tensor.rows)
    found = np.empty((tensor.rows, end - begin), tensor.format.dtype["x"])
    step = max(1, (1 << 22) // max(tensor.row_bytes, 1))
    for lo in range(0, tensor.rows, step):
        hi = min(lo + step, tensor.rows)
        found[lo:hi] = _numbers(tensor, lo, hi)[:, begin:end]
    return found


# -- checks ---------------------------------------------------------------------------------------------------------


def require(tensors: Mapping[str, Tensor], name: str, formats: str | tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    """The stored tensor `name`, of one of these formats and of this shape; -1 in it stands for any number.

    Raises
    ------
    CheckpointError : it is missing or another.
    """
    formats = (formats,) if isinstance(formats, str) else formats
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"{printable(name)} is missing, and without it a quantized matrix cannot be read")
    fits = len(tensor.shape) == len(shape) and all(
        want in (-1, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if tensor.format.name not in formats or not fits:
        wanted = " × ".join("any" if size < 0 else str(size) for size in shape)
        raise CheckpointError(
            f"{printable(name)} is {tensor.format.name} {list(tensor.shape)}, expected {' or '.join(formats)} of "
            f"{wanted}; are the quantization settings those of these weights?"
        )
    return tensor


def natural(value: Any, what: str, least: int = 1, most: int = 1 << 31) -> int:
    """A whole number of the settings.

    Raises
    ------
    CheckpointError : it is none, or out of range. what: what it is called then.
    """
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(f"{what} must be a whole number from {least} to {most}, not {printable(repr(value))}")
    return value


def parts_of(tensors: Iterable[str], ending: str) -> list[str]:
    """The modules that have a stored tensor of this ending, ".qweight", in the order of the checkpoint."""
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def rows_of(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])
