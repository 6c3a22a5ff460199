"""What layouts are given to read from, and what they say: the contract of a file in this folder.

A layout is a module with

    def read(source: Source) -> Reading | None

which looks at names, dtypes and settings, checks the shapes that it relies on, and reads no codes. None means that
the checkpoint, or what other layouts left of it, is not of its kind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, cast

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
# A matrix up to this share of it each thread keeps for itself.
_OWN_SHARE = 5


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
        self._last = threading.local()

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
        return self._kept.get((what, name), 1, lambda _: make())[0]

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

    def strips(self, tensor: Tensor, lo: int, hi: int, own: bool = False) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        """The strips of a matrix that columns lo:hi lie in: the first column of each, and its rows in a few arrays.

        The matrix is one strip, or several where it is large, and stays in memory while it is used. All but the last
        array have multiples of 64 rows. Threads that wait for a strip read parts of it. With `own` a matrix that is not
        large belongs to the thread, which keeps the last: for one that asks for most of its columns in their order.
        """
        if own and (parts := self._own(tensor)):
            yield 0, parts
            return
        count = -(tensor.nbytes // -int(_STRIP * self._kept.limit)) or 1
        wide = -(tensor.cols // -count) or 1
        rows = max(tensor.rows, 1)
        step = max(64, _PART // max(tensor.row_bytes, 1) // 64 * 64)
        for begin in range(lo // wide * wide, hi, wide):
            end = min(begin + wide, tensor.cols)
            part = partial(_strip, tensor, step, begin, end)
            yield begin, self._kept.get((tensor.name, begin, end), -(rows // -step), part)

    def _own(self, tensor: Tensor) -> Sequence[np.ndarray]:
        """A whole matrix, the last that this thread has read; () where it, or what all threads have, is large."""
        last: _Own | None = getattr(self._last, "own", None)
        if last is None or last.name != tensor.name:
            self._last.own = last = None  # memory that is read into again
            if not self._kept.lend(tensor.nbytes):
                return ()
            self._last.own = last = _Own(tensor, self._kept)
            last.parts = (_numbers(tensor, 0, tensor.rows),)
        return last.parts


class _Own:
    """A matrix of one thread, until the thread lets go of it or ends."""

    def __init__(self, tensor: Tensor, kept: _Kept):
        self.name, self.parts = tensor.name, cast("Sequence[np.ndarray]", ())
        self._nbytes, self._kept = tensor.nbytes, kept

    def __del__(self) -> None:
        self._kept.take_back(self._nbytes)


class _Kept:
    """What was read last, up to a number of bytes."""

    def __init__(self) -> None:
        self.limit = _KEPT
        self._nbytes = 0  # of the entries that are whole
        self._lent = deque[int]()
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, count: int, make: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        """What `make` makes of each number below `count`, once.

        Whoever asks meanwhile makes a part that nobody has begun, or waits.
        """
        with self._lock:
            if (entry := self._entries.get(key)) is None:
                entry = self._entries[key] = _Entry(count)
            self._entries.move_to_end(key)
        try:
            if entry.fill(make):
                self._keep(entry)
        except BaseException:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]  # who asks later tries again
            raise
        return entry.parts

    def lend(self, nbytes: int) -> bool:
        """Leave a thread room for a matrix of its own, if that is not much and they have not much already."""
        fits = nbytes <= self.limit // _OWN_SHARE and sum(self._lent) + nbytes <= self.limit * 3 // 5
        if fits:
            self._lent.append(nbytes)
        return fits

    def take_back(self, nbytes: int) -> None:
        self._lent.remove(nbytes)  # and no lock, for Python may call this anywhere

    def _keep(self, entry: _Entry) -> None:
        """Count an entry that is whole now; forget older ones until all are below the limit."""
        with self._lock:
            entry.counted = True
            self._nbytes += entry.nbytes
            while self._nbytes + sum(self._lent) > self.limit:
                old = next((key for key, e in self._entries.items() if e.counted and e is not entry), None)
                if old is None:
                    break
                self._nbytes -= self._entries.pop(old).nbytes


class _Entry:
    """Something in parts, made by several threads."""

    def __init__(self, count: int) -> None:
        self.parts: list[np.ndarray] = [None] * count  # type: ignore[list-item]
        self.nbytes = 0
        self.counted = False
        self._whole = threading.Event()
        self._left, self._next = count, iter(range(count))
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def fill(self, make: Callable[[int], np.ndarray]) -> bool:
        """Make parts until all are there; whether this thread made the last."""
        last = False
        while not self._whole.is_set() and (part := self._taken()) is not None:
            try:
                made = make(part)
            except BaseException as e:
                self._failure = e
                self._whole.set()
                raise
            with self._lock:
                self.parts[part] = made
                self.nbytes += made.nbytes
                self._left -= 1
                last = not self._left
        if last:
            self._whole.set()
        self._whole.wait()
        if self._failure is not None:
            raise self._failure
        return last

    def _taken(self) -> int | None:
        with self._lock:
            return None if self._failure is not None else next(self._next, None)


def _numbers(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Rows lo:hi in the numbers that are stored, (hi - lo, cols)."""
    return tensor.read(lo, hi).view(tensor.format.dtype["x"])


def _strip(tensor: Tensor, step: int, begin: int, end: int, part: int) -> np.ndarray:
    """Columns begin:end of the rows of a part, `step` each."""
    lo, hi = part * step, min((part + 1) * step, tensor.rows)
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
