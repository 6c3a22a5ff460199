"""llama.cpp's graph of one pass over n tokens, from what the tensors of a model say of its layers.

    tokens → embedding ─┬─ norm ─ mixers ─ + ─┬─ norm ─ FFN ─ + ─ …   norm ─ output
                        └─────────────────────┘└───────────────┘

Only sizes, sources and order matter, so what is done in place is left out where it changes none of them.

Source: src/llama-graph.cpp and src/models/*.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ggufkit.errors import ArchitectureError, printable
from ggufkit.memory.cache import cells, streams
from ggufkit.memory.ggml.graph import Graph, Tensor
from ggufkit.memory.ggml.mixture import Mixture
from ggufkit.memory.ggml.states import States
from ggufkit.memory.model import Layer, Model
from ggufkit.memory.setup import Setup
from ggufkit.runtime.kv.types import CacheType, type_named

__all__ = ["Pass", "pass_graph"]


def pass_graph(
    model: Model, setup: Setup, tokens: int, layers: Sequence[int], *, embedding: bool = True, output: bool = True
) -> Graph:
    """The graph of some layers of a model.

    Parameters
    ----------
    tokens : that go through together.
    layers : their numbers.
    embedding, output : whether the pass begins with token ids, and ends with logits.
    """
    return Pass(model, setup, tokens).build(layers, embedding, output)


class Pass:
    """One pass: its graph while it is built.

    Attributes
    ----------
    graph : so far.
    model, setup : of what.
    n : tokens; of how many of them logits are wanted, `outputs`.
    shapes : of the model's tensors by name.
    cached : attention reads the cache, and not only the tokens of the pass.
    """

    def __init__(self, model: Model, setup: Setup, tokens: int):
        self.graph, self.model, self.setup, self.n = Graph(), model, setup, tokens
        asked = min(setup.ubatch, setup.batch, setup.context * (1 if setup.unified else setup.slots))
        self.outputs = min(asked, setup.outputs or asked) if model.causal else tokens
        self.shapes = {matrix.name: matrix.shape for matrix in model.matrices}
        self.cached = model.cached and model.causal
        self._kinds: dict[bool, Shared] = {}

    def has(self, name: str) -> bool:
        return name in self.shapes

    def rows(self, name: str) -> int:
        """Rows of a matrix, or of each of a stack; 0 where there is none."""
        shape = self.shapes.get(f"{name}.weight", ())
        return shape[-2] if len(shape) > 1 else 0

    def columns(self, name: str) -> int:
        """The row length of a tensor without which a layer cannot be computed.

        Raises
        ------
        ArchitectureError : it is missing, or empty.
        """
        shape = self.shapes.get(name, ())
        if not shape or not shape[-1]:
            path = printable(self.model.path)
            raise ArchitectureError(f"{path}: the tensor {printable(name)} is missing or empty")
        return shape[-1]

    # -- parts ------------------------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A matrix's product with x, and its bias."""
        y = self.graph.op("product", (self.rows(name), *x.shape[1:]), x)
        return self.graph.same("add", y) if self.has(f"{name}.bias") else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A norm, where there is one of this name."""
        if not (self.has(f"{name}.weight") or self.has(name)):
            return x
        # A norm with a mean has a bias, and never takes its input's place.
        y = self.graph.same("layer norm" if self.has(f"{name}.bias") else "norm", x)
        return self.graph.same("mul", y)

    def copied(self, x: Tensor) -> Tensor:
        return self.graph.op("copy", x.shape, x)

    @cached_property
    def position(self) -> Tensor:
        return self.graph.input(self.n * self.model.positions)

    # -- the whole --------------------------------------------------------------------------------------------

    def build(self, layers: Sequence[int], embedding: bool, output: bool) -> Graph:
        graph = self.graph
        x = self._embedded() if embedding else graph.input(self.model.width, self.n)
        chosen = graph.input(self.outputs)
        for number in layers:
            last = output and number == len(self.model.layers) - 1
            x = self._layer(number, x, chosen if last else None)
        if output:
            bare = self.model.causal and not self.has("output_norm.weight")
            x = graph.same("norm", x) if bare else self.norm("output_norm", x)
            x.output = True
            if self.model.causal:
                x = graph.op("product", (self.model.vocabulary, self.outputs), x)
                x.output = True
        graph.expand(x)
        return graph

    def _embedded(self) -> Tensor:
        """Tokens' vectors. Beside the ids, vectors may come in, or both: room is made for each way."""
        graph, n, width = self.graph, self.n, self.model.width
        x = graph.expand(graph.op("rows", (width, n), graph.input(n)))
        mixed = graph.expand(graph.op("rows", (width, n), graph.input(n)))
        graph.expand(graph.input(width, n))
        copy = graph.op("copy", (width, n), graph.input(width, n))
        graph.expand(graph.store(copy, mixed, graph.input(n, element=8)))
        if self.has("position_embd.weight"):
            x = graph.same("add", x, graph.op("rows", (width, n), self.position))
        return graph.expand(self.norm("token_embd_norm", x))

    def _layer(self, number: int, x: Tensor, chosen: Tensor | None) -> Tensor:
        at, graph, layer = f"blk.{number}.", self.graph, self.model.layers[number]
        normed = self.norm(f"{at}attn_norm", x)
        beside = self.has(f"{at}ffn_up.weight") and not self._sums(at)  # FFN and mixers read the same x
        second = beside and self.has(f"{at}attn_norm_2.weight")
        mixed = self._mixed(layer, at, self.norm(f"{at}attn_norm_2", x) if second else normed)
        if chosen is not None:
            mixed = None if mixed is None else self._some(mixed, chosen)
            x, normed = self._some(x, chosen), self._some(normed, chosen) if beside else normed
        if beside and mixed is not None:
            y = graph.same("add", self._fed(layer, at, normed), mixed)
            return graph.same("add", y, x)
        if mixed is not None:
            mixed = self.norm(f"{at}post_attention_norm", mixed) if self.has(f"{at}ffn_norm.weight") else mixed
            x = self.norm(f"{at}attn_output_norm", graph.same("add", mixed, x))
        if not (self.rows(f"{at}ffn_up") or layer.experts):
            return x
        before = f"{at}ffn_norm" if self.has(f"{at}ffn_norm.weight") else f"{at}post_attention_norm"
        y = self.norm(f"{at}post_ffw_norm", self._fed(layer, at, self.norm(before, x)))
        x = graph.same("add", y, x)
        return self.norm(f"{at}layer_output_norm", x)

    def _sums(self, at: str) -> bool:
        """Whether the mixers' result is added to x before the FFN reads it."""
        own = ("ffn_norm", "post_attention_norm", "attn_output_norm", "post_ffw_norm")
        return any(self.has(f"{at}{name}.weight") for name in own)

    def _some(self, x: Tensor, chosen: Tensor) -> Tensor:
        return self.graph.op("rows", (x.shape[0], self.outputs), x, chosen)

    def _mixed(self, layer: Layer, at: str, x: Tensor) -> Tensor | None:
        found = []
        if layer.kind == "latent":
            found.append(Latent(self).run(layer, at, x))
        elif layer.kind:
            found.append(Attention(self).run(layer, at, x))
        if layer.convolution or layer.state:
            found.append(self.states.run(layer, at, x))
        if not found:
            return None
        return found[0] if len(found) == 1 else self.graph.same("add", *found)

    @cached_property
    def states(self) -> States:
        return States(self)

    def shared(self, layer: Layer) -> Shared:
        """What the layers share that have a window like this one, or have none."""
        return self._kinds.setdefault(bool(layer.window), Shared(self, layer))

    def _fed(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        if not layer.experts:
            return self.dense(f"{at}ffn_", "", x)
        return Mixture(self).run(layer, at, x)

    def dense(self, at: str, suffix: str, x: Tensor) -> Tensor:
        """A feed-forward network: gated, fused, or plain."""
        graph, up = self.graph, self.linear(f"{at}up{suffix}", x)
        wide = self.columns(f"{at}down{suffix}.weight")
        if self.has(f"{at}gate{suffix}.weight"):
            y = graph.op("glu", up.shape, self.linear(f"{at}gate{suffix}", x), up)
        elif up.shape[0] != wide:
            y = graph.op("glu", (wide, *up.shape[1:]), up)
        else:
            y = graph.same("unary", up)
        return self.linear(f"{at}down{suffix}", self.norm(f"{at}sub_norm", y))


class _Attention:
    """What all attention shares: masks, the cache, scores."""

    def __init__(self, whole: Pass):
        self.whole, self.graph, self.n = whole, whole.graph, whole.n

    def attend(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, value: int) -> Tensor:
        """q (head, heads, n), with what is in the cache after k and v are put into it: (heads × value, n)."""
        graph, whole, setup = self.graph, self.whole, self.whole.setup
        shared = whole.shared(layer)
        if whole.cached:
            q, k, v = shared.turned(q, keys=True), shared.turned(k, keys=True), shared.turned(v, keys=False)
        for part in (q, v, k) if whole.cached else (q, k, v):
            graph.expand(part)
        sources: list[Tensor] = []
        if whole.cached:
            if layer.kind != "shared":
                graph.expand(graph.store(graph.weight(), k.view(*k.shape), shared.key_places))
                if layer.kind != "latent":
                    graph.expand(graph.store(graph.weight(), v.view(*v.shape), shared.value_places))
            keys = values = graph.weight()
        elif setup.flash:
            keys, values = (graph.op("cast", part.shape, part.view(*part.shape), element=2) for part in (k, v))
        else:
            keys, values = k.view(*k.shape), v.view(*v.shape)
        parts = shared.streams
        q = q.view(*q.shape[:2], self.n // parts, parts).view(*q.shape, whole=False)
        if setup.flash:
            sources = [q, keys, values, shared.mask]
            y = graph.op("flash attention", (value, layer.heads, self.n // parts, parts), *sources)
        else:
            y = self._scored(layer, q, keys, values, shared, value)
        if layer.kind == "latent":
            made = whole.rows(f"{shared.at}attn_v_b")
            y = graph.op("product", (made, self.n, layer.heads), y.view(*y.shape, whole=False))
            value = made
            y = self.whole.copied(y.view(*y.shape, whole=False)) if setup.flash else y
        if not setup.flash:
            y = graph.op("copy", (value * layer.heads, self.n), y.view(*y.shape, whole=False))
        y = graph.expand(y.view(value * layer.heads, self.n))
        return shared.turned(y, keys=False) if whole.cached else y

    def _scored(self, layer: Layer, q: Tensor, keys: Tensor, values: Tensor, shared: Shared, value: int) -> Tensor:
        graph, parts = self.graph, shared.streams
        scores = graph.op("product", (shared.cells, self.n // parts, layer.heads, parts), keys, q)
        scores = graph.same("softmax", scores, shared.mask)
        if not values.outside:
            values = self.whole.copied(values.view(*values.shape, whole=False))
        return graph.op("product", (value, self.n // parts, layer.heads, parts), values, scores)


class Attention(_Attention):
    """Attention with keys and values for each head, or for some."""

    def run(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        whole, graph, n = self.whole, self.graph, self.n
        sizes = ((layer.head_k, layer.heads), (layer.head_k, layer.kv_heads), (layer.head_v, layer.kv_heads))
        if whole.has(f"{at}attn_qkv.weight"):
            fused = whole.linear(f"{at}attn_qkv", x)
            q, k, v = (fused.view(*size, n, whole=False) for size in sizes)
            gate = None
        else:
            q, k, v = (self._projected(f"{at}attn_{name}", x, size) for name, size in zip("qkv", sizes, strict=True))
            gate = None
            if whole.rows(f"{at}attn_q") == 2 * layer.heads * layer.head_k:  # a gate beside each query
                gate = whole.copied(q.view(*sizes[0], n, whole=False))
                q = q.view(*sizes[0], n, whole=False)
        q, k = (self._placed(f"{at}attn_{name}", part) for name, part in (("q", q), ("k", k)))
        y = self.attend(layer, q, k, v, layer.head_v)
        if gate is not None:
            y = graph.same("mul", y, graph.same("unary", gate.view(*y.shape)))
        y = whole.norm(f"{at}attn_sub_norm", y)
        return whole.linear(f"{at}attn_output", y)

    def _projected(self, name: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.whole.has(f"{name}.weight"):
            return self.graph.weight()
        y = self.whole.linear(name, x)
        norm = self.whole.shapes.get(f"{name}_norm.weight", ())
        if norm and norm[-1] == y.shape[0] != size[0]:  # over all heads
            y = self.whole.norm(f"{name}_norm", y)
        return y.view(*size, self.n) if y.shape[0] == size[0] * size[1] else y

    def _placed(self, name: str, x: Tensor) -> Tensor:
        """Normalised, head by head, and turned."""
        norm = self.whole.shapes.get(f"{name}_norm.weight", ())
        if norm and len(x.shape) == 3 and norm[-1] == x.shape[0]:
            x = self.whole.norm(f"{name}_norm", x)
        return x if x.outside else self.graph.same("rope", x, self.whole.position)


class Latent(_Attention):
    """Multi-head latent attention, with the matrices of keys on the side of the queries."""

    def run(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        whole, graph, n = self.whole, self.graph, self.n
        name = f"{at}attn_q"
        if whole.has(f"{at}attn_q_a.weight"):
            q = whole.norm(f"{at}attn_q_a_norm", whole.linear(f"{at}attn_q_a", x))
            name = f"{at}attn_q_b"
        else:
            q = x
        q = whole.linear(name, q)
        head, rank = q.shape[0] // layer.heads, layer.head_v
        turned = layer.head_k - rank
        q = q.view(head, layer.heads, n)
        both = whole.linear(f"{at}attn_kv_a_mqa", x)
        key = graph.same("rope", both.view(turned, 1, n, whole=False), whole.position)
        latent = whole.norm(f"{at}attn_kv_a_norm", both.view(rank, n, whole=False))
        short = q.view(head - turned, layer.heads, n, whole=False).view(head - turned, n, layer.heads, whole=False)
        place = graph.same("rope", q.view(turned, layer.heads, n, whole=False), whole.position)
        absorbed = graph.op("product", (rank, n, layer.heads), short).view(rank, layer.heads, n, whole=False)
        query = graph.op("concat", (layer.head_k, layer.heads, n), absorbed, place)
        latent = latent.view(rank, 1, n)
        keys = graph.op("concat", (layer.head_k, 1, n), latent, key)
        whole.shared(layer).at = at
        y = self.attend(layer, query, keys, latent, rank)
        return whole.linear(f"{at}attn_output", y)


class Shared:
    """What layers of a kind share: the mask, the places in the cache, rotations.

    Attributes
    ----------
    cells, streams : of the cache; without one, the tokens of the pass.
    at : the layer's prefix, where the value matrix of latent attention is.
    """

    def __init__(self, whole: Pass, layer: Layer):
        graph, setup, n = whole.graph, whole.setup, whole.n
        self.graph, self.n, self.at = graph, n, ""
        cached = whole.cached
        self.cells = cells(setup, layer.window) if cached else n
        self.streams = streams(setup) if cached else 1
        self.mask = graph.input(self.cells, n // self.streams, 1, self.streams, element=2 if setup.flash else 4)
        self.key_places = graph.input(n, element=8)
        wide = max(other.kv_heads * other.head_v for other in whole.model.layers)
        self.value_places = graph.input(n if setup.flash else n * wide, element=8)
        like = [other for other in whole.model.layers if other.kind and bool(other.window) == bool(layer.window)]
        self._turns = {
            True: self._turn(type_named(setup.keys), {other.head_k for other in like}, keys=True),
            False: self._turn(type_named(setup.values), {other.head_v for other in like}, keys=False),
        }

    def _turn(self, kind: CacheType, heads: set[int], *, keys: bool) -> Tensor | None:
        """The matrix that rotates what is kept in blocks, as large as the heads allow; None where nothing turns."""
        if not kind.quantized or len(heads) != 1 or next(iter(heads)) % 64:
            return None
        head = next(iter(heads))
        size = head & -head if keys else 64
        return self.graph.input(size, size)

    def turned(self, x: Tensor, *, keys: bool) -> Tensor:
        matrix = self._turns[keys]
        if matrix is None or x.outside:
            return x
        return self.graph.op("product", x.shape, matrix, x.view(*x.shape)).view(*x.shape)
