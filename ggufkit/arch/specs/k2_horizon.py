"""K2 Horizon: grouped norms, a softplus gate, and experts for the values of attention, too."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, Row, flag, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename, stack, stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _experts(config: Config) -> int:
    return config.count("num_experts")


def _dense(config: Config) -> int:
    """Layers at the beginning without experts."""
    if "num_dense_layers" in config:
        return config.count("num_dense_layers")
    dense = config.list("mlp_only_layers") if "mlp_only_layers" in config else []
    return next(layer for layer in range(len(dense) + 1) if layer not in dense)


def _length(config: Config) -> int:
    return config.integer("moe_intermediate_size")


def _shared(config: Config) -> int:
    return config.count("num_shared_experts")


def _of_experts(*rows: Row) -> tuple[Row, ...]:
    """Rows of models with experts."""

    def only(row: Row) -> Row:
        return lambda architecture, config: row(architecture, config) if _experts(config) > 0 else ()

    return tuple(map(only, rows))


def _values(config: Config) -> tuple[int, int] | None:
    """Experts for values, and how many of them a token has."""
    count, used = (config.count(f"mova_num_experts{end}") for end in ("", "_per_tok"))
    if used > count:
        raise ArchitectureError(f"config.json: {used} of {count} value experts for each token")
    return (count, used) if count > 0 and used > 0 else None


def _gate(architecture: str, config: Config) -> tuple[()]:
    if (kind := config.get("attention_gate_func")) not in (None, "softplus"):
        raise ArchitectureError(f"config.json: 'attention_gate_func' is {printable(repr(kind))}, not softplus")
    return ()


SPECS = (
    Architecture(
        name="k2-horizon",
        graph=Graph(rope="neox", router="sigmoid", router_normalized=False, gate="log2", norms_of_heads=True),
        models={"K2HorizonForCausalLM": {}},
        metadata=(
            *BASE,
            uint("attention.group_norm_groups", lambda config: config.get("layernorm_num_groups", default=1)),
            uint("rope.dimension_count", "rope_head_dim", need=OPTIONAL),
            *_of_experts(
                uint("expert_feed_forward_length", _length),
                uint("leading_dense_block_count", _dense),
                uint("moe_every_n_layers", lambda config: config.get("decoder_sparse_step", default=1)),
                uint("expert_shared_count", _shared),
                flag("expert_weights_norm", lambda config: bool(config.get("norm_topk_prob", default=False))),
                uint(
                    "expert_shared_feed_forward_length",
                    lambda config: _length(config) * _shared(config) if _shared(config) > 0 else None,
                ),
                real("expert_weights_scale", "router_scaling_factor", need=OPTIONAL),
            ),
            uint("attention.value_expert_count", lambda config: (_values(config) or (None,))[0]),
            uint("attention.value_expert_used_count", lambda config: (_values(config) or (None,))[-1]),
            _gate,
        ),
        vocabulary=bpe,
        transforms=(
            rename((r"^model\.layers\.(\d+)\.mlp\.gate\.bias$", r"blk.\1.exp_probs_b.bias")),
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
                ("down", "gate", "up"),
                "model.layers.{layer}.mlp.experts.{part}_proj.weight",
                lambda config: config.integer("num_experts"),
            ),
            stack(
                r"model\.layers\.(?P<layer>\d+)\.self_attn\.v_experts\.(?P<expert>\d+)\.weight",
                "model.layers.{layer}.self_attn.v_experts.weight",
                lambda config: config.integer("mova_num_experts"),
            ),
        ),
    ),
)
