"""Classification heads: how well a document answers a query, or what kind of text it is.

    a token's state, or the mean ─ dense ─ activation ─ norm ─ out ─ (softmax)

Each of the steps may be missing. The token is an encoder's first, or the last where tokens see only what is before.

Source: `llm_graph_context::build_pooling` in src/llama-graph.cpp and `format_prompt_rerank` of llama.cpp's server.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.errors import printable
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Head", "load_head", "pair_tokens"]


def _gelu(x: np.ndarray) -> np.ndarray:
    turned = np.array([math.erf(v / math.sqrt(2)) for v in x.reshape(-1).tolist()]).reshape(x.shape)
    result: np.ndarray = (x * (1 + turned) / 2).astype(np.float32)
    return result


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": _gelu,
}


@dataclass(frozen=True)
class Head:
    """A model's.

    Attributes
    ----------
    pooling : ``"mean"``, ``"cls"`` or ``"last"``.
    dense, norm, out : or None.
    activation : of what `dense` gives.
    softmax : of what comes out.
    labels : names of the numbers that come out; none where the file has none.
    """

    pooling: str
    dense: Linear | None
    activation: str
    norm: Norm | None
    out: Linear | None
    softmax: bool
    labels: tuple[str, ...]

    def run(self, ops: Ops, states: np.ndarray) -> np.ndarray:
        """(n, width) of a text's tokens → (outputs,)."""
        x = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[self.pooling][None]
        if self.dense is not None:
            x = _ACTIVATIONS[self.activation](_through(ops, x, self.dense)).astype(np.float32)
            if self.norm is not None:
                x = ops.numpy(ops.norm(_array(ops, x), self.norm))
        if self.out is not None:
            x = _through(ops, x, self.out)
        scores: np.ndarray = x[0]
        if self.softmax:
            e = np.exp(scores - scores.max())
            scores = e / e.sum()
        return scores


def _array(ops: Ops, x: np.ndarray) -> Array:
    return ops.vector(np.ascontiguousarray(x, np.float32))


def _through(ops: Ops, x: np.ndarray, linear: Linear) -> np.ndarray:
    (y,) = ops.linear(_array(ops, x), linear)
    return ops.numpy(y)


def load_head(load: Loader) -> Head | None:
    """A model's head, its tensors checked and taken; None where it has none."""
    hyper, graph, keys = load.hyper, load.graph, load.hyper.keys
    dense = load.linear("cls", -1, hyper.width) if load.has("cls.weight") else None
    inner = hyper.width if dense is None else dense.rows
    out = load.linear("cls.output", -1, inner) if load.has("cls.output.weight") else None
    if dense is None and out is None:
        return None
    pooling = keys.count("classifier.pooling_type", {"mean": 1}.get(graph.head_pooling, 0), least=0, most=4)
    activation = keys.get("classifier.activation") or graph.head_activation
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise keys.fail("classifier.activation", f"must be one of {known}, not {printable(repr(activation))}")
    labels = keys.get("classifier.output_labels")
    names = tuple(labels) if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else ()
    outputs = (out or dense).rows  # type: ignore[union-attr]
    if names and len(names) != outputs:
        raise keys.fail("classifier.output_labels", f"are {len(names)}, and {outputs} numbers come out")
    return Head(
        pooling="mean" if pooling == 1 else "last" if hyper.causal else "cls",
        dense=dense,
        activation=activation,
        norm=load.norm_of("layer", "cls.norm", inner, hyper.epsilon),
        out=out,
        softmax=graph.head_softmax,
        labels=names,
    )


def pair_tokens(tokenizer: Tokenizer, query: str, document: str, template: Any = None) -> list[int]:
    """The tokens by which a head judges a document.

    Parameters
    ----------
    template : the file's chat template for this, with ``{query}`` and ``{document}`` in it; or None. Only what it says
        itself may be control tokens.
    """
    if isinstance(template, str):
        ids: list[int] = []
        for part in tokenizer.partition(template):
            if isinstance(part, int):
                ids.append(part)
                continue
            text = part.replace("{query}", query).replace("{document}", document)
            ids += tokenizer.encode(text, add_special=False, parse_special=False, first=not ids)
        return ids
    vocab = tokenizer.vocab
    first, second = (tokenizer.encode(text, add_special=False, parse_special=False) for text in (query, document))
    begins = [vocab.bos] if vocab.bos is not None and (vocab.add_bos or vocab.kind == "wordpiece") else []
    separator = [] if vocab.sep is None else [vocab.sep]
    if vocab.kind == "wordpiece":
        return [*begins, *first, *separator, *second, *separator]
    ends = ([vocab.eos] if vocab.eos is not None else separator) if vocab.add_eos else []
    return [*begins, *first, *ends, *(separator if vocab.add_sep else []), *second, *ends]
