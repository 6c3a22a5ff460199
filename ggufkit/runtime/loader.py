"""Takes a model's tensors by name, checks their shapes, and remembers which were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ggufkit.arch.graph import Graph
from ggufkit.arch.hyperparameters import Hyperparameters
from ggufkit.errors import ArchitectureError, printable
from ggufkit.runtime.lora import Adapters
from ggufkit.runtime.ops import Linear, Norm, Ops
from ggufkit.tensors.tensor import Tensor

__all__ = ["Loader", "Tensors"]


class Tensors:
    """A file's tensors, and the operations that they will run on.

    A fused matrix is cut into its parts here: rows of a tensor are a tensor.
    """

    def __init__(self, path: str, tensors: Mapping[str, Tensor], ops: Ops, adapters: Adapters | None = None):
        self.adapters = adapters or Adapters()
        self.path, self.tensors, self.ops = path, tensors, ops
        self.taken: set[str] = set()

    def fail(self, message: str) -> ArchitectureError:
        return ArchitectureError(f"{printable(self.path)}: {message}")

    def has(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape; -1 stands for any number. Dimensions of 1 in front may be missing, or too many."""
        if (tensor := self.tensors.get(name)) is None:
            raise self.fail(f"the tensor {printable(name)} is missing; the model cannot be run without it")
        found = (1,) * (len(shape) - len(tensor.shape)) + tensor.shape
        while len(found) > len(shape) and found[0] == 1:
            found = found[1:]
        if len(found) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, found, strict=True)):
            wanted = " × ".join("any" if n < 0 else str(n) for n in shape)
            raise self.fail(f"{printable(name)} has the shape {' × '.join(map(str, found))}, not {wanted}")
        if 0 in found:
            raise self.fail(f"{printable(name)} has the shape {' × '.join(map(str, found))}: it is empty")
        self.taken.add(name)
        return replace(tensor, shape=found)

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """A small tensor of this shape, as NumPy's float32."""
        tensor = self.tensor(name, *shape)
        return tensor.floats().reshape(tensor.shape)

    def vector(self, name: str, size: int) -> np.ndarray:
        return self.tensor(name, size).floats().reshape(size)

    def norm_of(self, kind: str, name: str, size: int, epsilon: float) -> Norm | None:
        """A norm of another kind than the architecture's, with its bias, if any; None where there is none."""
        if not self.has(f"{name}.weight"):
            return None
        weight, bias = self.vector(f"{name}.weight", size), None
        if self.has(f"{name}.bias"):
            bias = self.ops.vector(self.vector(f"{name}.bias", size).reshape(1, size))
        return Norm(kind, epsilon, size, self.ops.vector(weight.reshape(1, size)), bias)

    def linear(self, name: str, rows: int, cols: int, experts: int = 0, *, scaled: bool = True) -> Linear:
        """A matrix, or a stack of `experts` matrices, with its bias and, if `scaled`, factors."""
        stack = (experts,) if experts else ()
        tensor = self.tensor(f"{name}.weight", *stack, rows, cols)
        bias = None
        if self.has(f"{name}.bias"):
            values = self.tensor(f"{name}.bias", *stack, rows).floats()
            bias = self.ops.vector(values.reshape(*stack, rows))
        factor = None
        if scaled and self.has(f"{name}.scale"):
            values = self.tensor(f"{name}.scale", experts or 1).floats()
            factor = self.ops.vector(values.reshape(experts, 1) if experts else values.reshape(1))
        pairs = self.adapters.of(tensor.name, self.ops)
        return Linear(self.ops.weight(tensor), tensor.name, tensor.shape[-2], tensor.shape[-1], bias, factor, pairs)

    def stacked_parts(self, name: str, rows: Sequence[int], cols: int, experts: int) -> list[Linear]:
        """A stack of fused matrices as stacks of their parts, each of so many rows."""
        tensor = self.tensor(f"{name}.weight", experts, sum(rows), cols)
        found, start = [], 0
        for count in rows:
            part = _stacked_part(tensor, start, count)
            pairs = self.adapters.of(tensor.name, self.ops, start, count)
            found.append(Linear(self.ops.weight(part), tensor.name, count, cols, low_rank=pairs))
            start += count
        return found

    def parts(self, name: str, rows: Sequence[int], cols: int) -> list[Linear]:
        """A fused matrix as its parts, each of so many rows."""
        tensor = self.tensor(f"{name}.weight", sum(rows), cols)
        factor = self.ops.vector(self.vector(f"{name}.scale", 1)) if self.has(f"{name}.scale") else None
        bias = self.vector(f"{name}.bias", sum(rows)) if self.has(f"{name}.bias") else None
        found, start = [], 0
        for count in rows:
            part = _part(tensor, start, count)
            own = None if bias is None else self.ops.vector(bias[start : start + count].copy())
            pairs = self.adapters.of(tensor.name, self.ops, start, count)
            found.append(Linear(self.ops.weight(part), tensor.name, count, cols, own, factor, pairs))
            start += count
        return found


class Loader(Tensors):
    """A model's tensors, its hyperparameters and traits, and the operations that it will run on."""

    def __init__(
        self,
        path: str,
        tensors: Mapping[str, Tensor],
        hyper: Hyperparameters,
        graph: Graph,
        ops: Ops,
        adapters: Adapters | None = None,
    ):
        super().__init__(path, tensors, ops, adapters)
        self.hyper, self.graph = hyper, graph
        self.vocabulary, self.prefix = 0, ""

    def under(self, prefix: str) -> Loader:
        """The tensors whose names begin so, by the rest of their names. What is taken of them `take` takes here."""
        tensors = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        part = Loader(self.path, tensors, self.hyper, self.graph, self.ops, self.adapters)
        part.vocabulary, part.prefix = self.vocabulary, prefix
        return part

    def take(self, part: Loader) -> None:
        """What a part of the tensors was taken for is taken."""
        self.taken |= {f"{part.prefix}{name}" for name in part.taken}

    def norm(
        self, name: str, size: int, heads: int = 1, kind: tuple[str, float] | None = None, apart: bool = False
    ) -> Norm | None:
        """The norm of this name, or None. Of heads it is over each, with weights of its own or not, or over all.

        `kind` is another than the architecture's, with its epsilon. A norm as long as all heads is over each if they
        are `apart`.
        """
        full = f"{name}.weight" if self.has(f"{name}.weight") else name  # some converters left the ending out
        if not self.has(full):
            return None
        shape = self.tensors[full].shape
        together = heads > 1 and shape == (heads * size,)
        if together and not apart:
            size = heads * size
        which, epsilon = kind or (self.graph.norm, self.hyper.epsilon)
        if heads > 1 and shape == (heads, 1):  # a number for each head
            weight = np.ascontiguousarray(np.broadcast_to(self.numbers(full, heads, 1), (heads, size)))
            return Norm(which, epsilon, size, self.ops.vector(weight), None, full)
        rows = heads if shape == (heads, size) or (together and apart) else 1
        flat = (rows * size,) if together and apart else (rows, size)
        weight, bias = self.numbers(full, *flat).reshape(rows, size), None
        if (which == "layer" or self.graph.biased_norms) and self.has(f"{name}.bias"):
            bias = self.ops.vector(self.numbers(f"{name}.bias", *flat).reshape(rows, size))
        return Norm(which, epsilon, size, self.ops.vector(weight), bias, full)

    def block_norm(self, name: str) -> Norm | None:
        """The norm of the stream x, or of parts of it; of architectures with norms without weights one of those."""
        width = self.hyper.width
        if self.graph.bare_norms:
            return self.plain_norm(width, self.graph.norm)
        groups = self.hyper.keys.count("attention.group_norm_groups", 1, least=0) or 1
        if width % groups:
            raise self.hyper.keys.fail("attention.group_norm_groups", f"is {groups}, which does not divide {width}")
        return self.norm(name, width // groups, groups, apart=True)

    def plain_norm(self, size: int, kind: str = "rms") -> Norm:
        """A norm without weights."""
        return Norm(kind, self.hyper.epsilon, size, self.ops.vector(np.ones((1, size), np.float32)))


def _stacked_part(tensor: Tensor, start: int, count: int) -> Tensor:
    experts, rows, cols = tensor.shape

    def read(lo: int, hi: int) -> np.ndarray:
        first, last = lo // count, max(-(-hi // count), lo // count + 1)
        parts = [tensor.read(e * rows + start, e * rows + start + count) for e in range(first, last)]
        return np.concatenate(parts)[lo - first * count : hi - first * count]

    return replace(tensor, shape=(experts, count, cols), read=read)


def _part(tensor: Tensor, start: int, count: int) -> Tensor:
    def read(lo: int, hi: int) -> np.ndarray:
        return tensor.read(start + lo, start + hi)

    return replace(tensor, shape=(count, tensor.cols), read=read)
