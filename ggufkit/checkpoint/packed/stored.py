"""What layouts are given to read from, and what they say: the contract of a file in this folder.

A layout is a module with

    def read(source: Source) -> Reading | None

which looks at names, dtypes and settings, checks the shapes that it relies on, and reads no codes. None means that
the checkpoint, or what other layouts left of it, is not of its kind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# The part of them that is read for the same rows.
_STRIP = 0.8
# Bytes that one thread reads of them at a time: enough for the system to use large pages.
_PART = 1 << 23


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
    settings : its `quantization_config`, or `quantize_config.json`; {} where there is neither.
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
        if not isinstance(settings, dict):
            settings = json("quantize_config.json")
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
        return self.derived(tensor.name, lambda: _numbers(tensor, 0, tensor.rows).reshape(tensor.shape), "whole")

    def derived(self, name: str, make: Callable[[], np.ndarray], what: str = "derived") -> np.ndarray:
        """What `make` makes of a stored tensor, kept while it is used. what: tells several of one tensor apart."""
        return self._kept.get((what, name), [make])[0]

    def columns(self, tensor: Tensor, lo: int, hi: int) -> np.ndarray:
        """Columns lo:hi of a matrix: array of shape (rows, hi - lo)."""
        import numpy as np

        pieces = []
        for begin, parts in self.strips(tensor, lo, hi):
            found = [part[:, max(lo - begin, 0) : hi - begin] for part in parts]
            pieces.append(found[0] if len(found) == 1 else np.concatenate(found))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, axis=1) if pieces else _numbers(tensor, 0, 0)[:, :0]

    def strips(self, tensor: Tensor, lo: int, hi: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """The strips of a matrix that columns lo:hi lie in: the first column of each, and its rows in a few arrays.

        The matrix is one strip, or several where it is large, and stays in memory while it is used. All but the last
        array have multiples of 64 rows. Threads that wait for a strip read parts of it.
        """
        count = -(tensor.nbytes // -int(_STRIP * self._kept.limit)) or 1
        wide = -(tensor.cols // -count) or 1
        step = max(64, _PART // max(tensor.row_bytes, 1) // 64 * 64)
        starts = range(0, max(tensor.rows, 1), step)
        for begin in range(lo // wide * wide, hi, wide):
            end = min(begin + wide, tensor.cols)
            makers = [partial(_strip, tensor, at, min(at + step, tensor.rows), begin, end) for at in starts]
            yield begin, self._kept.get((tensor, begin, end), makers)


class _Kept:
    """What was read last, up to a number of bytes."""

    def __init__(self) -> None:
        self.limit = _KEPT
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, makers: Sequence[Callable[[], np.ndarray]]) -> list[np.ndarray]:
        """What each of `makers` makes, once. Whoever asks meanwhile makes a part that nobody has begun, or waits."""
        with self._lock:
            if (entry := self._entries.get(key)) is None:
                entry = self._entries[key] = _Entry(len(makers))
            self._entries.move_to_end(key)
        try:
            if entry.fill(makers):
                self._evict(key)
        except BaseException:
            with self._lock:
                self._entries.pop(key, None)  # who asks later tries again
            raise
        return entry.parts

    def _evict(self, newest: Any) -> None:
        with self._lock:
            known = [(key, entry.nbytes) for key, entry in self._entries.items() if entry.whole.is_set()]
            total = sum(size for _, size in known)
            for key, size in known:
                if total <= self.limit:
                    break
                if key != newest:
                    del self._entries[key]
                    total -= size


class _Entry:
    """Something in parts, made by several threads."""

    def __init__(self, count: int) -> None:
        self.parts: list[np.ndarray] = [None] * count  # type: ignore[list-item]
        self.whole = threading.Event()
        self.nbytes = 0
        self._left, self._next = count, iter(range(count))
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def fill(self, makers: Sequence[Callable[[], np.ndarray]]) -> bool:
        """Make parts until all are there; whether this thread made the last."""
        last = False
        while (part := self._taken()) is not None:
            try:
                made = makers[part]()
            except BaseException as e:
                self._failure = e
                self.whole.set()
                raise
            with self._lock:
                self.parts[part] = made
                self.nbytes += made.nbytes
                self._left -= 1
                last = not self._left
        if last:
            self.whole.set()
        self.whole.wait()
        if self._failure is not None:
            raise self._failure
        return last

    def _taken(self) -> int | None:
        with self._lock:
            return None if self._failure is not None else next(self._next, None)


def _numbers(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Rows lo:hi in the numbers that are stored, (hi - lo, cols)."""
    return tensor.read(lo, hi).view(tensor.format.dtype["x"])


def _strip(tensor: Tensor, lo: int, hi: int, begin: int, end: int) -> np.ndarray:
    """Columns begin:end of rows lo:hi."""
    if (begin, end) == (0, tensor.cols):
        return _numbers(tensor, lo, hi)
    import numpy as np

    return np.ascontiguousarray(_numbers(tensor, lo, hi)[:, begin:end])


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
