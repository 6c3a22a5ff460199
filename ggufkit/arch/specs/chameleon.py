"""Chameleon, without the tokenizer of its images."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, flag
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import drop, map_each
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import reshaped, take_columns, take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_DEFAULTS = {"rms_norm_eps": 1e-5}


def _of_all_heads(part: str) -> Transform:
    """A norm per head, of which all are the first: its numbers in pairs' order, repeated."""

    def repeated(tensor: Tensor, config: Config) -> Tensor:
        import numpy as np

        heads = config.heads if part == "q" else config.kv_heads
        head = config.width // heads
        if tensor.cols != head or head % 2:
            raise CheckpointError(f"{printable(tensor.name)} has {tensor.cols} numbers for each head, not {head}")
        matrix = reshaped(tensor, (tensor.size // head, head))
        first = take_rows(matrix, np.zeros(heads, np.int64), (heads, head))
        return take_columns(first, np.arange(head).reshape(2, -1).T.reshape(-1))

    return map_each(rf"\.{part}_norm\.(weight|bias)$", repeated)


SPECS = (
    Architecture(
        name="chameleon",
        graph=Graph(head_norm=("layer", 1e-5), silent=(4, 8196)),  # tokens of images
        models=dict.fromkeys(("ChameleonForCausalLM", "ChameleonForConditionalGeneration"), _DEFAULTS),
        metadata=(*BASE, flag("swin_norm", lambda config: config.get("swin_norm", default=False))),
        vocabulary=bpe,
        transforms=(drop(r"^model\.vqmodel"), *PERMUTED, _of_all_heads("q"), _of_all_heads("k")),
    ),
)
