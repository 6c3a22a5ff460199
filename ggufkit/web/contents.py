"""What a page says of a model from its header or its plan alone: facts, tensors with reasons, metadata.

Everything is bounded, however large or hostile the file: so many tensors, so many characters of metadata; what is left
out is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GgufkitError
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.header import Field
from ggufkit.gguf.summary import FILE_TYPES, layer_of, summary
from ggufkit.gguf.writer import FileLayout

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF
    from ggufkit.jobs.plan import Plan

__all__ = ["MOST_TENSORS", "Shown", "metadata_of", "plan_contents", "tensors_of", "the_contents"]

MOST_TENSORS = 20_000
_CHARACTERS = 1 << 20  # of all metadata
_VALUE = 40_000  # of one value
_ITEMS = 200  # of an array
_KEYS = 20_000

_FILE_TYPE = "general.file_type"


@dataclass(frozen=True)
class Shown:
    """A tensor as the page lists it.

    Attributes
    ----------
    offset : in its file.
    reason : why it has this type; empty where nothing is known.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    nbytes: int
    offset: int
    reason: str = ""


def the_contents(model: GGUF) -> dict[str, Any]:
    """Facts, tensors and metadata of an open file."""
    reasons = _reasons(model)
    shown = [
        Shown(name, info.shape, info.format, info.nbytes, model.file_offset(name), reasons.get(name, ""))
        for name, info in model.info.items()
    ]
    facts = summary(model)
    facts |= {"version": model.version, "byteorder": model.byteorder, "alignment": model.alignment}
    return {
        "title": os.path.basename(model.path),
        "path": model.path,
        "planned": False,
        "facts": _plain(facts),
        **tensors_of(shown),
    }


def plan_contents(plan: Plan, path: str, name: str) -> dict[str, Any]:
    """The same of a file that is not there yet."""
    shown: list[Shown] = []
    for metadata, planned in plan.shards:
        layout = FileLayout(metadata, [(p.tensor.name, p.tensor.shape, p.format) for p in planned])
        offsets = {name: layout.file_offset(name) for name in layout.infos}
        shown += [
            Shown(p.tensor.name, p.tensor.shape, p.format, p.nbytes, offsets[p.tensor.name], p.reason) for p in planned
        ]
    values = {key: _value(value) for key, value in plan.shards[0][0].items() if not key.startswith("tokenizer.")}
    arch = values.get("general.architecture")
    facts = {
        "size": plan.size,
        "files": len(plan.shards),
        "architecture": arch,
        "name": values.get("general.name"),
        "file_type": name,
        "context_length": values.get(f"{arch}.context_length"),
        "embedding_length": values.get(f"{arch}.embedding_length"),
        "layers": values.get(f"{arch}.block_count"),
        "tensors": len(shown),
        "parameters": plan.weights,
        "bytes": plan.nbytes,
        "bits_per_weight": 8 * plan.nbytes / max(plan.weights, 1),
        "notes": "; ".join(plan.notes) or None,
    }
    return {
        "title": f"{os.path.basename(path.rstrip('/'))} as {name}",
        "path": path,
        "planned": True,
        "facts": _plain({key: value for key, value in facts.items() if value is not None}),
        **tensors_of(shown),
    }


def tensors_of(shown: Iterable[Shown]) -> dict[str, Any]:
    """Tensors as columns, the first of very many; types and reasons by number."""
    listed = list(shown)
    kept = listed[:MOST_TENSORS]
    reasons = list(dict.fromkeys(t.reason for t in kept))
    number = {reason: i for i, reason in enumerate(reasons)}
    types = list(dict.fromkeys(t.format.name for t in kept))
    return {
        "left_out": len(listed) - len(kept),
        "types": [
            {
                "name": name,
                "bits": FORMATS[name].bits_per_weight,
                "block": FORMATS[name].block_size,
                "bytes": FORMATS[name].type_size,
                "fields": " ".join(f"{n}:{count * int(code[1])}" for n, count, code in FORMATS[name].fields),
            }
            for name in types
        ],
        "reasons": reasons,
        "tensors": {
            "name": [t.name for t in kept],
            "shape": [list(reversed(t.shape)) for t in kept],
            "type": [types.index(t.format.name) for t in kept],
            "weights": [prod(t.shape) for t in kept],
            "bytes": [t.nbytes for t in kept],
            "offset": [t.offset for t in kept],
            "layer": [layer_of(t.name) for t in kept],
            "reason": [number[t.reason] for t in kept],
        },
    }


def metadata_of(fields: Mapping[str, Any]) -> list[list[str]]:
    """Key, type and value of each pair as texts; long values and arrays are cut, and say so."""
    rows, left = [], _CHARACTERS
    for key, given in islice(fields.items(), _KEYS):
        field = given if isinstance(given, Field) else None
        kind = field.describe() if field is not None else type(_value(given)).__name__
        text = _text(field, min(_VALUE, max(left, 200))) if field is not None else str(_value(given))[:_VALUE]
        left -= len(text)
        rows.append([key, kind, text])
    if len(fields) > _KEYS:
        rows.append(["…", "", f"{len(fields) - _KEYS} more keys are left out of this page"])
    return rows


def _text(field: Field, limit: int) -> str:
    if field.item_type is None:
        value = field.value
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        return text if len(text) <= limit else f"{text[:limit]} … ({len(text)} characters)"
    items: list[str] = []
    for item in field.items():
        if len(items) == _ITEMS or sum(map(len, items)) > limit:
            break
        items.append(str(item)[:limit])
    more = f", … ({len(field)} items)" if len(field) > len(items) else ""
    return f"[{', '.join(items)}{more}]"


def _value(given: Any) -> Any:
    return getattr(given, "value", given)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as numbers and texts; of a list (one value a layer) the different ones."""
    shown: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, (list, tuple)):
            shown[name] = ", ".join(str(v) for v in list(dict.fromkeys(value))[:8])
        else:
            shown[name] = value if isinstance(value, (int, float)) else str(value)[:500]
    return shown


def _reasons(model: GGUF) -> dict[str, str]:
    """Why each tensor of a file has its type: what llama-quantize's preset of that name says, and where it differs.

    A file says of its making only `general.file_type`; the policy is asked again, for tensors of these shapes.
    """
    from ggufkit.arch.registry import traits_of
    from ggufkit.policy.decide import decide
    from ggufkit.policy.hyperparameters import hyperparameters_of
    from ggufkit.policy.recipe import recipe_of

    number = model.fields[_FILE_TYPE].value if _FILE_TYPE in model.fields else None
    name = FILE_TYPES.get(number) if isinstance(number, int) else None
    if name is None or name == FILE_TYPES[0]:
        return {}
    try:
        recipe = recipe_of(name)
        values = {key: field.value for key, field in model.fields.items() if not key.startswith("tokenizer.")}
        traits = traits_of(str(values.get("general.architecture", "")))
        imatrix = any(key.startswith("quantize.imatrix.") for key in model.fields)
        hyper = hyperparameters_of(values, model.info, traits, imatrix)
        tensors = [(info.name, info.shape or (1,), info.format) for info in model.info.values()]
        decisions = decide(tensors, hyper, recipe)
    except (GgufkitError, ArithmeticError, ValueError, TypeError):
        return {}  # an odd file, of which the policy makes nothing: it is shown without reasons
    return {
        key: decision.reason
        if decision.format == model.info[key].format
        else f"not llama-quantize's {name}, which has {decision.format.name} here ({decision.reason})"
        for key, decision in decisions.items()
    }
