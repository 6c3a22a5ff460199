"""GPT-2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ggufkit.arch.export import COMMON, Export, Setting, key, transposed_back
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import transpose
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import reshaped, stacked
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

# GPT-2's words for what config.json says, and its names; StarCoder has them from it.
SETTINGS: dict[str, Setting] = {
    "n_layer": COMMON["num_hidden_layers"],
    "n_positions": key("context_length"),
    "n_embd": lambda s: s.width,
    "n_head": lambda s: s.heads,
    "layer_norm_epsilon": key("attention.layer_norm_epsilon"),
    **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")},
}
NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{bid}.attn_norm": "transformer.h.{bid}.ln_1",
    "blk.{bid}.attn_qkv": "transformer.h.{bid}.attn.c_attn",
    "blk.{bid}.attn_output": "transformer.h.{bid}.attn.c_proj",
    "blk.{bid}.ffn_norm": "transformer.h.{bid}.ln_2",
    "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.c_fc",
    "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.c_proj",
}

_TRANSPOSED = tuple(f"blk.{{bid}}.{part}" for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))

_EXPORT = Export(
    "gpt2",
    "GPT2LMHeadModel",
    common=False,
    config={**SETTINGS, "n_ctx": key("context_length"), "activation_function": lambda s: "gelu_new"},
    names=NAMES,
    undo={part.removeprefix("blk.{bid}"): transposed_back for part in _TRANSPOSED},
    mlx=Mlx(
        names={part: name.replace("transformer.", "model.") for part, name in NAMES.items()},
    ),
)

_PROJECTION = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")


def _fused_qkv(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Queries, keys and values as one, where the last of them stood."""
    waiting: dict[tuple[str, str], dict[str, Tensor]] = {}
    for tensor in tensors:
        if (match := _PROJECTION.fullmatch(tensor.name)) is None:
            yield tensor
            continue
        parts = waiting.setdefault((match[1], match[3]), {})
        parts[match[2]] = tensor
        if len(parts) == 3:
            found = [waiting[match[1], match[3]][part] for part in "qkv"]
            name = f"blk.{match[1].rpartition('.')[2]}.attn_qkv.{match[3]}"
            shape = (sum(tensor.shape[0] for tensor in found), *found[0].shape[1:])
            yield reshaped(stacked(name, found, (sum(tensor.rows for tensor in found), found[0].cols)), shape)
            del waiting[match[1], match[3]]
    for (module, _), parts in waiting.items():
        raise CheckpointError(f"{printable(module)} has {', '.join(sorted(parts))} of q, k and v only")


SPECS = (
    Architecture(
        name="gpt2",
        exports=(_EXPORT,),
        models={
            "GPT2LMHeadModel": {
                "n_ctx": lambda config: config.get("n_positions", default=1024),
                "layer_norm_epsilon": 1e-5,
            }
        },
        metadata=(
            LAYERS,
            uint("context_length", "n_ctx"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", lambda config: 4 * config.width),
            uint("attention.head_count", "n_head"),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        transforms=(transpose(r"\.(c_attn|c_proj|c_fc)\.weight$"),),
        skip=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
    Architecture(
        name="gpt2",
        models={"RuGPT3XLForCausalLM": {}},
        metadata=BASE,
        vocabulary=bpe,
        transforms=(_fused_qkv,),
    ),
)
