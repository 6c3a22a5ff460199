"""Leave layers out of a model: the others close ranks.

Source: `remap_layer` in src/llama-quant.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ggufkit.errors import UsageError
from ggufkit.gguf.header import Value, ValueType

__all__ = ["pruned_metadata", "renumbered"]

_LAYER = re.compile(r"blk\.(\d+)\.")


def renumbered(names: Iterable[str], prune: Sequence[int]) -> dict[str, str]:
    """Name in the source → name in the output, without the tensors of the layers `prune`.

    Raises
    ------
    UsageError : a layer does not exist, or none would be left.
    """
    names = list(names)
    if not prune:
        return dict(zip(names, names, strict=True))
    layers = {int(found[1]) for name in names if (found := _LAYER.search(name))}
    for layer in prune:
        if layer not in layers:
            known = f"the layers are {min(layers)} to {max(layers)}" if layers else "the model has no layers"
            raise UsageError(f"layer {layer} cannot be left out: {known}")
    if layers <= set(prune):
        raise UsageError("no layer would be left; leave out fewer")
    new = {old: i for i, old in enumerate(sorted(layers - set(prune)))}
    result = {}
    for name in names:
        found = _LAYER.search(name)
        if found is None:
            result[name] = name
        elif int(found[1]) in new:
            result[name] = f"{name[: found.start(1)]}{new[int(found[1])]}{name[found.end(1) :]}"
    return result


def pruned_metadata(
    metadata: Mapping[str, Any], architecture: str, prune: Sequence[int], layers: int
) -> dict[str, Any]:
    """`metadata` with the new number of layers, at the end, and without the pruned layers' items in its arrays.

    Values that have one item a layer (`attention.head_count_kv` of some models) must match the layers; llama-quantize
    leaves them, and the file does not load.
    """
    result = dict(metadata)
    count_key = f"{architecture}.block_count"
    before = result.pop(count_key).value if count_key in result else None
    for key, value in result.items():
        per_layer = key.startswith(f"{architecture}.") and value.type is ValueType.ARRAY
        if per_layer and len(items := value.value) == before:
            kept = [item for i, item in enumerate(items) if i not in prune]
            result[key] = Value(ValueType.ARRAY, kept, value.item_type)
    result[count_key] = Value(ValueType.UINT32, layers)
    return result
