"""A graph of tensors without contents: sizes, and what is made of what.

Source: `ggml_build_forward_impl` and `ggml_visit_parents_graph` in ggml/src/ggml.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["Graph", "Tensor"]

# Operations whose result may take the place of a source of the same layout.
# Source: `ggml_op_can_inplace` in ggml/src/ggml-alloc.c.
_IN_PLACE = frozenset({"add", "mul", "div", "scale", "norm", "rope", "unary", "clamp", "softmax", "add_id"})


class Tensor:
    """A node, or a leaf where it has no operation.

    Attributes
    ----------
    shape : GGML's order, the row length first.
    layout : what tensors have in common that may take each other's place.
    nbytes : bytes of its own; a view has none.
    sources : what it is made of.
    base : what it is a view of, or None.
    outside : it lies elsewhere: a weight, a cache, or a view of one.
    output : it is kept to the end.
    """

    __slots__ = ("base", "in_place", "is_input", "layout", "leaf", "nbytes", "output", "outside", "shape", "sources")

    def __init__(self, shape: tuple[int, ...], sources: Sequence[Tensor] = (), element: int = 4, op: str = ""):
        self.shape = shape
        self.layout: object = (shape, element)
        self.nbytes = prod(shape) * element
        self.sources = tuple(sources)
        self.base: Tensor | None = None
        self.leaf = not op
        self.in_place = op in _IN_PLACE
        self.outside = self.output = self.is_input = False

    def view(self, *shape: int, whole: bool = True) -> Tensor:
        """A view of it; of another layout unless it is `whole`, the same numbers in the same order."""
        found = Tensor(shape, (self,), op="view")
        found.base = self.base if self.base is not None else self
        found.outside = found.base.outside
        if not whole:
            found.layout = object()
        return found


class Graph:
    """Tensors in the order in which they are computed.

    Attributes
    ----------
    nodes, leafs : in order.
    """

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()
        self._all: list[Tensor] = []  # so that ids stay theirs

    def input(self, *shape: int, element: int = 4) -> Tensor:
        """What is set before each pass."""
        found = Tensor(shape, element=element)
        found.is_input = True
        return found

    def weight(self) -> Tensor:
        """What lies in the model or in the cache."""
        found = Tensor(())
        found.outside = True
        return found

    def op(self, name: str, shape: tuple[int, ...], *sources: Tensor, element: int = 4) -> Tensor:
        """The result of an operation."""
        return Tensor(shape, sources, element, name)

    def same(self, name: str, *sources: Tensor) -> Tensor:
        """The result of an operation, as large as its first source."""
        return Tensor(sources[0].shape, sources, op=name)

    def store(self, target: Tensor, *sources: Tensor) -> Tensor:
        """A copy into the cache: a view of it, to be computed."""
        found = Tensor(target.shape, (target, *sources), op="store")
        found.base = target.base if target.base is not None else target
        found.outside = True
        return found

    def expand(self, tensor: Tensor) -> Tensor:
        """Compute a tensor, after everything that it is made of and that is not computed yet."""
        if id(tensor) in self._seen:
            return tensor
        stack: list[tuple[Tensor, int]] = [(tensor, 0)]
        self._seen.add(id(tensor))
        while stack:
            node, at = stack.pop()
            if at < len(node.sources):
                stack.append((node, at + 1))
                source = node.sources[at]
                if id(source) not in self._seen:
                    self._seen.add(id(source))
                    stack.append((source, 0))
                continue
            self._all.append(node)
            (self.leafs if node.leaf else self.nodes).append(node)
        return tensor
