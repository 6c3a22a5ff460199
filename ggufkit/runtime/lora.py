"""LoRA adapters beside a model's weights: y = W x + scale · B (A x), nothing merged.

    adapters = read_adapters([("style.gguf", 1.0), ("tone.gguf", 0.5)], model.gguf)

    GGUF adapter     <weight>.lora_a (rank, cols)      <weight>.lora_b (rows, rank)       each also (experts, …)
                     token_embd.weight.lora_a (vocabulary, rank): its rows are looked up

An adapter's factor is alpha / rank, times the scale that is asked for. Weights of norms in an adapter are passed over,
as llama.cpp does.

Source: `llama_adapter_lora_init_impl` in src/llama-adapter.cpp, `build_lora_mm` in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from ggufkit.errors import GGUFError, UsageError, printable
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.runtime.ops import Array, Linear, LowRank, Ops, Recorder
from ggufkit.tensors.tensor import Tensor

__all__ = ["AdaptedOps", "Adapter", "Adapters", "read_adapters"]

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Adapter:
    """One adapter's pairs.

    Attributes
    ----------
    name : of its file, without the ending.
    path : its file.
    scale : that was asked for.
    alpha : multiplies, divided by the rank; 0 for no such factor.
    pairs : name of a weight → its A and B.
    """

    name: str
    path: str
    scale: float
    alpha: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @cached_property
    def digest(self) -> str:
        """Tells adapters apart."""
        found = hashlib.sha256(f"{self.alpha}".encode())
        for name, (a, b) in sorted(self.pairs.items()):
            found.update(name.encode() + a.read(0, a.rows).tobytes() + b.read(0, b.rows).tobytes())
        return found.hexdigest()

    def factor(self, rank: int) -> float:
        return self.alpha / rank if self.alpha else 1.0


class Adapters:
    """What the loader of a model asks for the pairs of each matrix.

    Attributes
    ----------
    all : the adapters, in order.
    """

    def __init__(self, adapters: Sequence[Adapter] = ()):
        self.all = tuple(adapters)
        self._taken: set[tuple[int, str]] = set()

    def of(self, name: str, ops: Ops, start: int = 0, rows: int | None = None) -> tuple[LowRank, ...]:
        """The pairs of a weight, or of `rows` rows of it from `start` on."""
        found = []
        for number, adapter in enumerate(self.all):
            if name not in adapter.pairs or name == EMBEDDING:
                continue
            self._taken.add((number, name))
            a, b = adapter.pairs[name]
            if rows is not None and len(b.shape) == 2:
                b = _rows(b, start, rows)
            elif rows is not None:
                raise UsageError(f"{printable(adapter.path)}: {printable(name)} is fused here; it cannot be adapted")
            rank = a.shape[-2]
            found.append(LowRank(number, adapter.factor(rank), _linear(ops, a), _linear(ops, b)))
        return tuple(found)

    def embedding(self, ops: Ops) -> tuple[LowRank, ...]:
        """The pairs of the tokens' vectors; A is looked up."""
        found = []
        for number, adapter in enumerate(self.all):
            if EMBEDDING in adapter.pairs:
                self._taken.add((number, EMBEDDING))
                a, b = adapter.pairs[EMBEDDING]
                found.append(LowRank(number, adapter.factor(a.shape[-1]), _linear(ops, a), _linear(ops, b)))
        return tuple(found)

    def finish(self) -> None:
        """See that every pair found its matrix.

        Raises
        ------
        UsageError : one did not.
        """
        for number, adapter in enumerate(self.all):
            for name in adapter.pairs:
                if (number, name) not in self._taken:
                    raise UsageError(f"{printable(adapter.path)} adapts {printable(name)}, which no product reads")


class AdaptedOps:
    """The operations of a backend with adapters at certain scales; all else is the backend's.

    Parameters
    ----------
    ops : of the backend.
    scales : of each adapter.
    embedding : the matrix whose rows are tokens' vectors, and the pairs beside it.
    """

    def __init__(self, ops: Ops, scales: Sequence[float], embedding: tuple[Any, Sequence[LowRank]]):
        self._ops, self._scales = ops, tuple(scales)
        self._embedding, self._vectors = embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def recorder(self, caches: Sequence[Sequence[Any]], beside: Recorder | None = None) -> Recorder | None:
        found = self._ops.recorder(caches, beside)
        if found is not None:
            adapted = AdaptedOps(found.ops, self._scales, (self._embedding, self._vectors))
            found.ops = cast(Ops, adapted)  # type: ignore[misc]
        return found

    def linear(self, x: Array, *linears: Linear) -> Sequence[Array]:
        return [
            self._added(y, linear, lambda *one: self._ops.linear(x, *one)[0], lambda u, b: self._ops.linear(u, b)[0])
            for y, linear in zip(self._ops.linear(x, *linears), linears, strict=True)
        ]

    def each(self, x: Array, chosen: Array, *linears: Linear) -> Sequence[Array]:
        return [
            self._added(
                y, linear, lambda a: self._ops.each(x, chosen, a)[0], lambda u, b: self._ops.each(u, chosen, b)[0]
            )
            for y, linear in zip(self._ops.each(x, chosen, *linears), linears, strict=True)
        ]

    def embed(self, weight: Any, ids: np.ndarray) -> Array:
        y = self._ops.embed(weight, ids)
        if weight is self._embedding:
            for pair in self._vectors:
                if scale := self._scales[pair.adapter] * pair.factor:
                    (more,) = self._ops.linear(self._ops.embed(pair.a.weight, ids), pair.b)
                    y = self._ops.add(y, self._ops.scale(more, scale))
        return y

    def _added(self, y: Array, linear: Linear, first: Any, second: Any) -> Array:
        """y and what the pairs of a matrix give."""
        for pair in linear.low_rank:
            if scale := self._scales[pair.adapter] * pair.factor:
                y = self._ops.add(y, self._ops.scale(second(first(pair.a), pair.b), scale))
        return y


def read_adapters(wanted: Sequence[tuple[str | os.PathLike[str], float]], model: GGUF) -> Adapters:
    """Read GGUF adapters for a model.

    Parameters
    ----------
    wanted : files, and the scale of each.

    Raises
    ------
    FileError : a file cannot be read.
    GGUFError : it is no LoRA adapter, or is damaged.
    UsageError : it is of another model, or two have the same name.
    """
    found = [_read(path, scale, model) for path, scale in wanted]
    names = [adapter.name for adapter in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two adapters are called {printable(twice[0])}; give one once, or copy it to another name")
    return Adapters(found)


def _read(path: str | os.PathLike[str], scale: float, model: GGUF) -> Adapter:
    if not np.isfinite(scale):
        raise UsageError(f"the scale of {printable(os.fspath(path))} is {scale}; it must be a number")
    with open_gguf(path) as gguf:
        kind = gguf.get("general.type", str, None), gguf.get("adapter.type", str, None)
        if kind != ("adapter", "lora"):
            raise GGUFError("this is not a LoRA adapter", gguf.path, hint="convert one from its folder")
        ours, theirs = model.get("general.architecture", str), gguf.get("general.architecture", str)
        if ours != theirs:
            raise UsageError(
                f"{printable(gguf.path)} is an adapter for {printable(theirs)} models; the model is {printable(ours)}"
            )
        if "adapter.alora.invocation_tokens" in gguf.fields:
            raise UsageError(f"{printable(gguf.path)} begins at certain tokens (aLoRA); such adapters cannot be run")
        halves: dict[str, dict[str, Tensor]] = {}
        for tensor in gguf.tensors.values():
            name, dot, half = tensor.name.rpartition(".lora_")
            if dot and half in ("a", "b"):
                halves.setdefault(name, {})[half] = _kept(tensor)
            elif not tensor.name.endswith("_norm.weight"):
                raise GGUFError(f"{printable(tensor.name)} is no half of a LoRA", gguf.path)
        pairs = {name: _pair(name, found, model, gguf.path) for name, found in halves.items()}
        alpha = gguf.get("adapter.lora.alpha", float, None) or 0.0
        return Adapter(Path(gguf.path).stem, gguf.path, scale, alpha, pairs)


def _pair(name: str, halves: Mapping[str, Tensor], model: GGUF, path: str) -> tuple[Tensor, Tensor]:
    if set(halves) != {"a", "b"}:
        raise GGUFError(f"{printable(name)} has only one half, {', '.join(halves)}", path)
    a, b = halves["a"], halves["b"]
    if name not in model.info:
        raise UsageError(f"{printable(path)} adapts {printable(name)}, which the model does not have")
    shape = model.info[name].shape
    # A vector is looked up by its token, so the A of embeddings lies the other way round.
    expected = (*shape[:-1], a.shape[-1]) if name == EMBEDDING else (*shape[:-2], a.shape[-2], shape[-1])
    rank = expected[-1] if name == EMBEDDING else expected[-2]
    other = (shape[-1], rank) if name == EMBEDDING else (*shape[:-1], rank)
    if a.shape != expected or b.shape != other:
        raise UsageError(
            f"{printable(path)}: {printable(name)} is {_shown(shape)} in the model; A of {_shown(a.shape)} and B of "
            f"{_shown(b.shape)} do not fit it"
        )
    return a, b


def _shown(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _kept(tensor: Tensor) -> Tensor:
    """The tensor with its blocks in memory."""
    blocks = np.ascontiguousarray(tensor.read(0, tensor.rows))
    blocks.flags.writeable = False
    return replace(tensor, read=lambda lo, hi: blocks[lo:hi])


def _rows(tensor: Tensor, start: int, count: int) -> Tensor:
    return replace(tensor, shape=(count, tensor.shape[-1]), read=lambda lo, hi: tensor.read(start + lo, start + hi))


def _linear(ops: Ops, tensor: Tensor) -> Linear:
    return Linear(ops.weight(tensor), tensor.name, tensor.shape[-2], tensor.shape[-1])
