"""Pixtral, in Mistral Small 3.x and Ministral."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ggufkit.arch.fits import Longest, Patches
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import Projector, named_activation, of_vision, projector, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, RowEnds, Tower
from ggufkit.arch.transforms import permute_rope, rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows

_ROW_END = "[IMG_BREAK]"


def _row_end(config: Config) -> int:
    """The id of the token behind each row of patches."""
    settings, described = (_json(config, name) for name in ("tokenizer_config.json", "tokenizer.json"))
    decoder = settings.get("added_tokens_decoder")
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and entry.get("content") == _ROW_END and str(token).isdigit():
            return int(token)
    for entry in described.get("added_tokens") or ():
        if isinstance(entry, dict) and entry.get("content") == _ROW_END and type(entry.get("id")) is int:
            result: int = entry["id"]
            return result
    raise CheckpointError(f"the tokenizer has no {_ROW_END}, which Pixtral puts behind each row of an image")


def _json(config: Config, name: str) -> dict[str, Any]:
    try:
        value = json.loads(config.text(name) or "{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _embedding_of_row_end(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Of the language model's embeddings only that of the token behind each row."""
    import numpy as np

    token = _row_end(config)
    for tensor in tensors:
        if not tensor.name.endswith("embed_tokens.weight"):
            yield tensor
        elif token >= tensor.rows:
            raise CheckpointError(f"{printable(tensor.name)} has {tensor.rows} rows, {_ROW_END} is {token}")
        else:
            yield take_rows(tensor, np.array([token]), (tensor.cols,)).renamed("v.token_embd.img_break")


_KIND, _LIGHT_ON = projector("pixtral"), projector("lightonocr")

_PIXTRAL = Projector(
    models=("LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"),
    keys=(
        *vision_keys(),
        _KIND,
        real("/clip.vision.attention.layer_norm_epsilon", of_vision("layer_norm_eps", default=1e-5)),
        named_activation("Pixtral"),
        uint("/clip.vision.spatial_merge_size", lambda config: config.get("spatial_merge_size")),
    ),
    kept=r"^(multi_modal_projector|vision_tower|vision_encoder|vision_language_adapter|patch_merger)\."
    r"|^pre_mm_projector_norm|embed_tokens\.weight",
    transforms=(
        permute_rope("q_proj", lambda config: config.vision.integer("num_attention_heads")),
        permute_rope("k_proj", lambda config: config.vision.integer("num_attention_heads")),
        _embedding_of_row_end,
    ),
    when=lambda config: config.vision.get("model_type") == "pixtral",
)

PROJECTORS = (
    _PIXTRAL,
    replace(
        _PIXTRAL,
        models=("LightOnOCRForConditionalGeneration",),
        keys=tuple(_LIGHT_ON if key is _KIND else key for key in _PIXTRAL.keys),
        kept=r"^(model\.)?(multi_modal_projector|vision_tower|vision_encoder|vision_projection)\.",
        transforms=(
            rename(
                (r"^model\.vision_encoder\.", "vision_tower."),
                (r"^model\.vision_projection\.", "multi_modal_projector."),
            ),
            *_PIXTRAL.transforms[:-1],  # there are no row ends
        ),
    ),
)

TOWERS = {
    "pixtral": Tower(
        fit=Patches("bicubic", tokens=(8, 1024)),
        norm="rms",
        rope="neighbours",
        merge_key="spatial_merge_size",
        project=(
            Normalize("mm.input_norm", "rms", optional=True),
            Join("channels"),
            Matrix("mm.patch_merger", optional=True),
            Matrix("mm.1"),
            Activate("gelu"),
            Matrix("mm.2"),
            RowEnds("v.token_embd.img_break"),
        ),
        end="[IMG_END]",
    ),
}
TOWERS["lightonocr"] = replace(
    TOWERS["pixtral"],
    fit=Longest("bicubic"),
    project=TOWERS["pixtral"].project[:-1],
    begin="<|im_start|>",
    end="<|im_end|>",
)
