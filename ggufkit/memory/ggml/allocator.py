"""Where ggml puts the tensors of a graph, and how large the buffer becomes.

A tensor is given its place before it is computed, and its place is free again after the last that is made of it. It
takes the smallest free block that holds it, the last only if no other does; or the place of a source that nobody else
needs.

Source: ggml/src/ggml-alloc.c of llama.cpp, for one buffer in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.memory.ggml.graph import Graph, Tensor

__all__ = ["buffer_size"]

_ENDLESS = 1 << 62


class _Blocks:
    """Free blocks of a buffer, as [offset, size], in order.

    Attributes
    ----------
    size : of the buffer: the highest end that was ever in use.
    """

    def __init__(self, alignment: int):
        self.alignment, self.size = alignment, 0
        self._free = [[0, _ENDLESS]]

    def take(self, nbytes: int) -> int:
        """The offset of so many bytes."""
        nbytes = self.rounded(nbytes)
        best = -1
        for i, (_, size) in enumerate(self._free[:-1]):
            if size >= nbytes and (best < 0 or size <= self._free[best][1]):
                best = i
        block = self._free[best]  # -1: the last
        offset = block[0]
        block[0] += nbytes
        block[1] -= nbytes
        if not block[1]:
            self._free.remove(block)
        self.size = max(self.size, offset + nbytes)
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        """Take them back."""
        nbytes, free = self.rounded(nbytes), self._free
        at = next((i for i, block in enumerate(free) if block[0] > offset), len(free))
        free.insert(at, [offset, nbytes])
        if at + 1 < len(free) and offset + nbytes == free[at + 1][0]:
            free[at][1] += free.pop(at + 1)[1]
        if at and free[at - 1][0] + free[at - 1][1] == offset:
            free[at - 1][1] += free.pop(at)[1]

    def rounded(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment


@dataclass(slots=True)
class _State:
    """What is known of a tensor: who still needs it, and where it is."""

    children: int = 0
    views: int = 0
    own: bool = False
    offset: int = 0


def buffer_size(graph: Graph, alignment: int = 32) -> int:
    """Bytes of the buffer that holds all tensors of a graph."""
    return _Allocation(graph, alignment).run()


class _Allocation:
    def __init__(self, graph: Graph, alignment: int):
        self.graph, self.blocks = graph, _Blocks(alignment)
        self.states: dict[int, _State] = {}

    def of(self, tensor: Tensor) -> _State:
        return self.states.setdefault(id(tensor), _State())

    def run(self) -> int:
        for leaf in self.graph.leafs:
            self.place(leaf)
        for node in self.graph.nodes:
            if node.base is not None:
                self.of(node.base).views += 1
            for source in node.sources:
                self.of(source).children += 1
                if source.is_input:
                    self.place(source)
        for node in self.graph.nodes:
            for source in node.sources:
                self.place(source)
            self.place(node)
            for source in node.sources:
                self.done_with(source)
        return self.blocks.size

    def place(self, tensor: Tensor) -> None:
        state = self.of(tensor)
        if tensor.outside or tensor.base is not None or state.own:
            return
        state.own = True
        if tensor.in_place:
            for source in tensor.sources:
                found = self.of(source)
                # A view is never replaced: only what has a place of its own can be.
                free = found.own and not source.output and found.children == 1 and found.views == 0
                if free and source.layout == tensor.layout:
                    state.offset, found.own = found.offset, False
                    return
        state.offset = self.blocks.take(tensor.nbytes)

    def done_with(self, tensor: Tensor) -> None:
        state = self.of(tensor)
        state.children -= 1
        if state.children or state.views:
            return
        if (base := tensor.base) is not None:
            tensor, state = base, self.of(base)
            state.views -= 1
            if state.views or state.children:
                return
        if state.own and not tensor.output:
            self.blocks.give(state.offset, tensor.nbytes)
            state.own = False
