"""What a file says of the quantized checkpoint that it was made of: for people, and for the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ggufkit.checkpoint.packed.mlx import QUANTIZATION_KEY
from ggufkit.checkpoint.packed.registry import Unpacked
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Tensor

__all__ = ["described", "hints"]

# Where it is kept how the checkpoint was quantized: the layouts' names, and the settings as JSON.
_LAYOUT_KEY, _SETTINGS_KEY = "ggufkit.quantization.layout", "ggufkit.quantization.settings"
# Before the name of a tensor: where each of its inputs was in the checkpoint.
_ORDER_KEY = "ggufkit.quantization.order"
# Layouts of which there is nothing to keep, and of which llama.cpp's converter makes the same file.
_PLAIN = {"MXFP4", "FP8"}

# Of a mixture of many kinds the first are named.
_NAMED = 3


def hints(unpacked: Unpacked, tensors: Mapping[str, Tensor]) -> dict[str, Value]:
    """How the checkpoint was quantized: nothing that a runtime needs, but enough to make the same arrays again."""
    if set(unpacked.layouts) <= _PLAIN:
        return {}
    texts = {_LAYOUT_KEY: ", ".join(unpacked.layouts), _SETTINGS_KEY: unpacked.settings}
    if unpacked.mlx is not None:
        texts = {QUANTIZATION_KEY: unpacked.mlx}
    return {**{key: Value(ValueType.STRING, text) for key, text in texts.items()}, **_orders(tensors)}


def _orders(tensors: Mapping[str, Tensor]) -> dict[str, Value]:
    """The places that inputs had in the checkpoint, of matrices whose inputs have others."""
    return {
        f"{_ORDER_KEY}.{name}": Value(
            ValueType.ARRAY,
            list(tensor.origin.order),
            ValueType.UINT16 if len(tensor.origin.order) <= 1 << 16 else ValueType.UINT32,
        )
        for name, tensor in tensors.items()
        if tensor.origin is not None and tensor.origin.order
    }


def described(unpacked: Unpacked, tensors: Mapping[str, Tensor]) -> str:
    """ "GPTQ: 4 bits in groups of 128; exact: 210 of 212 matrices (210 as Q4_0, 2 rounded to Q8_0)", in one line."""
    kept = [(tensor.format.name, tensor.origin) for tensor in tensors.values() if tensor.origin is not None]
    kinds = "; ".join(unpacked.kinds[:_NAMED]) + ("; …" if unpacked.kinds[_NAMED:] else "")
    layouts = ", ".join(unpacked.layouts) + (f": {kinds}" if kinds and kinds not in unpacked.layouts else "")
    if not kept:
        return f"{layouts}; decoded, to be quantized anew"
    exact = Counter(name for name, origin in kept if origin.exact)
    rounded = Counter(name for name, origin in kept if not origin.exact and not origin.computed)
    computed = sum(origin.computed for _, origin in kept)
    what = [f"{count} as {format}" for format, count in exact.items()]
    what += [f"{count} rounded to {format}" for format, count in rounded.items()]
    if computed:
        what.append(f"{computed} multiplied by factors of the model, and so as weights that were not quantized")
    return f"{layouts}; exact: {sum(exact.values())} of {len(kept)} matrices ({', '.join(what)})"
