"""HRM-Text: two stacks of layers that texts go through several times, a slow one and a fast one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import ROPE_DIMENSIONS, base, flag, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _stack(config: Config) -> int:
    return config.integer("num_layers_per_stack", "num_hidden_layers")


def _passes(config: Config) -> int:
    """Places of the cache: every pass through a layer has its own."""
    passes = _stack(config) * config.integer("H_cycles") * (config.integer("L_cycles") + 1)
    if passes > 1 << 16:
        raise ArchitectureError(f"config.json: the cycles make {passes} layers, which are too many")
    return passes


def _one_behind_the_other(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The fast stack (L) first, then the slow one (H)."""
    for tensor in tensors:
        parts = tensor.name.split(".")
        if len(parts) > 4 and parts[1] in ("L_module", "H_module") and parts[3].isdecimal():
            layer = int(parts[3]) + (_stack(config) if parts[1] == "H_module" else 0)
            rest = ".".join(parts[4:])
            rest = "self_attn." + rest.removeprefix("attn.") if rest.startswith("attn.") else rest
            yield tensor.renamed(f"model.layers.{layer}.{rest}")
        else:
            yield tensor


SPECS = (
    Architecture(
        name="hrm_text",
        graph=Graph(rope="neox", bare_norms=True),
        models={"HrmTextForCausalLM": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}},
        metadata=(
            *base(uint("block_count", _passes)),
            ROPE_DIMENSIONS,
            real("embedding_scale", "embedding_scale"),
            uint("hrm.layers_per_stack", _stack),
            uint("hrm.h_cycles", "H_cycles"),
            uint("hrm.l_cycles", "L_cycles"),
            flag("hrm.prefix_lm", lambda config: bool(config.get("prefix_lm", default=False))),
        ),
        vocabulary=bpe,
        transforms=(
            _one_behind_the_other,
            split_rows(r"(?<=self_attn\.)gqkv_proj", "gate_proj", "q_proj", "k_proj", "v_proj"),
            split_rows(r"(?<=mlp\.)gate_up_proj", "gate_proj", "up_proj"),
        ),
        names={
            "model.layers.{bid}.self_attn.gate_proj.weight": "blk.{bid}.attn_gate.weight",
            "model.z_L_init": "hrm.z_l_init",
        },
        blocks=lambda config: 2 * _stack(config),
    ),
)
