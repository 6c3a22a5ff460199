"""gpt-oss: experts in MXFP4, which keep their bits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ggufkit.arch.export import Export, Source, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.pieces import decoded
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import interleaved, rename, transpose
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, each_matrix, take_columns, take_rows, transposed
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

if TYPE_CHECKING:
    import numpy as np


def _in_turns(s: Source, tensor: Tensor) -> Tensor:
    """Rows of gate, then of up, of each expert → in turns; of biases, numbers."""
    import numpy as np

    def order(count: int) -> np.ndarray:
        return np.arange(count).reshape(2, -1).T.reshape(-1)

    if tensor.name.endswith("bias"):
        return take_columns(tensor, order(tensor.cols))
    experts, rows, _ = tensor.shape
    return _as_stored(s, take_rows(tensor, each_matrix(order(rows), experts, rows), tensor.shape))


def _as_stored(s: Source, tensor: Tensor) -> Tensor:
    """Experts in MXFP4 stay as they are, all others are numbers, (in, out)."""
    whole = len(tensor.shape) == 3 and tensor.format.name != "MXFP4"
    return transposed(decoded(tensor), LastMatrices(1)) if whole else tensor


_STACK = re.compile(r"(?<=\.mlp\.experts\.)(gate_up|down)_proj\.(weight|bias)$")


def _called(s: Source, tensor: Tensor) -> str:
    """Stacks of numbers have names of their own."""
    number = "" if tensor.format.name != "MXFP4" else ".weight"
    return _STACK.sub(lambda match: f"{match[1]}_proj" + ("_bias" if match[2] == "bias" else number), tensor.name)


_EXPORT = Export(
    "gpt_oss",
    "GptOssForCausalLM",
    config={
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "experts_per_token": key("expert_used_count"),
        "intermediate_size": key("expert_feed_forward_length"),
        "sliding_window": key("attention.sliding_window"),
        "layer_types": lambda s: [f"{'full' if i % 2 else 'sliding'}_attention" for i in range(s.layers)],
        "mlp_bias": None,
        "rope_scaling": lambda s: None if (scaling := rope_scaling(s)) is None else {**scaling, "truncate": False},
    },
    names={
        "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
        "blk.{bid}.attn_sinks.weight": "model.layers.{bid}.self_attn.sinks",
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.router",
        "blk.{bid}.ffn_down_exps": "model.layers.{bid}.mlp.experts.down_proj",
    },
    fused={"model.layers.{bid}.mlp.experts.gate_up_proj": ("blk.{bid}.ffn_gate_exps", "blk.{bid}.ffn_up_exps")},
    undo={".ffn_down_exps": _as_stored, ".gate_up_proj": _in_turns},
    called=_called,
    wide=True,
    layout="mxfp4",
    mlx=Mlx(
        names={
            f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.mlp.experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
        called=lambda s, tensor: tensor.name,
    ),
)

SPECS = (
    Architecture(
        name="gpt-oss",
        exports=(_EXPORT,),
        models={
            "GptOssForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150000.0,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 32.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "original_max_position_embeddings": 4096,
                },
                "num_key_value_heads": 8,
                "head_dim": 64,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "sliding_window": 128,
            }
        },
        metadata=(
            *BASE,
            uint("attention.sliding_window", "sliding_window"),
            uint("expert_feed_forward_length", "intermediate_size"),
        ),
        vocabulary=bpe,
        graph=Graph(
            rope="neox", activation="swiglu_oai", ffn_norm="post_attention_norm", window_period=2, router="top"
        ),
        transforms=(
            rename(
                (r"\.sinks$", ".sinks.weight"),
                (r"(\.mlp\.experts\.(gate_up|down)_proj)_bias$", r"\1.bias"),
            ),
            # Checkpoints that were trained further have 16-bit experts, stored (in, out).
            transpose(r"\.mlp\.experts\.(gate_up|down)_proj$"),
            rename((r"(\.mlp\.experts\.(gate_up|down)_proj)$", r"\1.weight")),
            interleaved(r"gate_up_proj(?=\.(weight|bias)$)", "gate_proj", "up_proj"),
        ),
    ),
)
