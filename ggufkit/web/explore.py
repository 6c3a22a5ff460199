"""`ggufkit explore`: one page about one model, beside another, or about one that is only planned.

contents       facts, tensors, reasons, metadata
samples        histograms, heat maps and opened blocks of the weights
vocabulary     tokens, and what cuts a text into them
conversation   the chat template on samples
sliders        memory
others         another file, and the results of `compare`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GgufkitError
from ggufkit.storage.source import is_address
from ggufkit.web.contents import MOST_TENSORS, metadata_of, plan_contents, the_contents
from ggufkit.web.conversation import conversations_of
from ggufkit.web.others import difference, read_results
from ggufkit.web.page import assemble, pack
from ggufkit.web.vocabulary import vocabulary_of

if TYPE_CHECKING:
    from ggufkit.gguf.diff import FieldDiff, TensorDiff
    from ggufkit.gguf.reader import GGUF
    from ggufkit.jobs.plan import Plan
    from ggufkit.memory import Model

__all__ = ["beside", "explorer", "model_data", "plan_data"]

StrPath = str | os.PathLike[str]

_STYLES = ("page.css", "chart.css", "explore.css")
_SCRIPTS = (
    "page.js",
    "chart.js",
    "list.js",
    "maps.js",
    "tensors.js",
    "tokenize.js",
    "vocabulary.js",
    "memory.js",
    "others.js",
    "explore.js",
)


def explorer(data: dict[str, Any]) -> str:
    """The page of `model_data` or `plan_data`."""
    return assemble(data["model"]["title"], "explore.html", styles=_STYLES, scripts=_SCRIPTS, data=data)


def model_data(
    model: GGUF,
    *,
    weights: bool = True,
    results: StrPath | None = None,
    advance: Callable[[int, str], object] = lambda count, name: None,
) -> dict[str, Any]:
    """All that the page says of an open file.

    Parameters
    ----------
    weights, results : see `explore`.
    advance : called with 1 and its name after each tensor that was looked at.
    """
    from ggufkit.web.samples import samples_of

    contents = the_contents(model)
    data: dict[str, Any] = {
        "model": contents,
        "metadata": metadata_of(model.fields),
        "memory": _memory(lambda: _described(model)),
        **_words(model),
    }
    if weights and not is_address(model.path):
        tensors = [model.tensors[name] for name in contents["tensors"]["name"]]
        data["samples"] = samples_of(tensors, advance)
    if results is not None:
        data["results"] = read_results(results, model.size, contents["title"])
    return data


def plan_data(plan: Plan, path: str, name: str) -> dict[str, Any]:
    """All that the page says of a plan."""
    from ggufkit.memory import model_of_plan

    return {
        "model": plan_contents(plan, path, name),
        "metadata": metadata_of(plan.shards[0][0]),
        "memory": _memory(lambda: model_of_plan(plan, path)),
    }


def beside(other: GGUF, fields: Sequence[FieldDiff], tensors: Sequence[TensorDiff]) -> dict[str, Any]:
    """What the page says of the other model; differences are from it to the model."""
    return {"model": the_contents(other), **difference(os.path.basename(other.path), fields, tensors[:MOST_TENSORS])}


def _words(model: GGUF) -> dict[str, Any]:
    """Vocabulary and template, packed: the one is most of a header, and not to be kept beside the weights."""
    from ggufkit.tokenizer.run.vocab import read_vocab

    try:
        vocab = read_vocab(model)
    except GgufkitError as e:
        return {name: {"missing": e.message} for name in ("vocabulary", "conversation")}
    return {"conversation": conversations_of(model, vocab), "vocabulary": pack(vocabulary_of(vocab))}


def _described(model: GGUF) -> Model:
    from ggufkit.memory import model_of

    return model_of(model)


def _memory(described: Callable[[], Model]) -> dict[str, Any]:
    from ggufkit.web.sliders import sliders_of

    try:
        return sliders_of(described())
    except GgufkitError as e:
        return {"missing": e.message}
