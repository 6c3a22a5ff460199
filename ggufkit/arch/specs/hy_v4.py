"""Hy 4: attention with latent keys and values, sinks and gates, hyper-connections, an index that layers share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import Row, flags, real, reals, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.deepseek2 import INDEXER, MLA_DEFAULTS, absorbed, mla_keys
from ggufkit.arch.transforms import drop, mlp_experts, rename, untied
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_SPARSE = ("sparse_attention", "deepseek_sparse_attention")


def _dense(config: Config) -> int:
    """Leading layers without experts, which configs say in two ways."""
    explicit, derived = config.get("first_k_dense_replace"), None
    if "mlp_layer_types" in config:
        kinds = config.list("mlp_layer_types")
        derived = next((layer for layer, kind in enumerate(kinds) if kind != "dense"), len(kinds))
        if "dense" in kinds[derived:]:
            raise ArchitectureError("config.json: layers without experts come first, or not at all")
    if explicit is None and derived is None:
        raise ArchitectureError("config.json has no 'first_k_dense_replace' nor 'mlp_layer_types'; it is not guessed")
    if None not in (explicit, derived) and explicit != derived:
        raise ArchitectureError(
            f"config.json: 'first_k_dense_replace' is {explicit}, but {derived} of 'mlp_layer_types' are dense"
        )
    result: int = derived if explicit is None else explicit  # type: ignore[assignment]
    return result


def _own_index(config: Config) -> list[bool] | None:
    """Which layers have an index of their own; None for models without."""
    if "indexer_types" in config:
        kinds = config.list("indexer_types")[: config.layers]
        if len(kinds) < config.layers or set(kinds) - {"full", "shared"} or kinds[0] != "full":
            raise ArchitectureError("config.json: 'indexer_types' must be full or shared for each layer, first full")
        return [kind == "full" for kind in kinds]
    kinds = config.get("layer_types", default=[])
    if not any(kind in _SPARSE for kind in kinds):
        return None
    return [kind in _SPARSE for kind in config.list("layer_types", config.layers)]


def _ungrouped(key: str) -> Row:
    """A model of one group of experts has no groups."""

    def grouped(config: Config) -> bool:
        return (config.get("n_group"), config.get("topk_group")) != (1, 1)

    name = "n_group" if key == "expert_group_count" else "topk_group"
    return uint(key, lambda config: config.get(name) if grouped(config) else None)


def _limits(config: Config) -> list[float] | None:
    limit = float(config.number("swiglu_limit", default=0.0))
    return [limit] * config.layers if limit > 0 else None


def _checked_index(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    owners = _own_index(config) or [False] * config.layers
    seen = set()
    for tensor in tensors:
        parts = tensor.name.split(".")
        if ".self_attn.indexer." in tensor.name and parts[2].isdecimal():
            seen.add(int(parts[2]))
        yield tensor
    expected = {layer for layer, own in enumerate(owners) if own}
    if seen != expected:
        layer = min(seen ^ expected)
        raise CheckpointError(f"layer {layer} has {'no' if layer in expected else 'an'} index, against config.json")


def _if_indexed(row: Row) -> Row:
    return lambda architecture, config: row(architecture, config) if _own_index(config) is not None else ()


_REPLACED: dict[str, Row] = {
    "leading_dense_block_count": uint("leading_dense_block_count", _dense),
    "expert_group_count": _ungrouped("expert_group_count"),
    "expert_group_used_count": _ungrouped("expert_group_used_count"),
}

_DEFAULTS = {
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "moe_intermediate_size": 768,
    "routed_scaling_factor": 2.827,
    "n_group": 1,
    "topk_group": 1,
}

SPECS = (
    Architecture(
        name="hy_v4",
        graph=Graph(
            router_normalized=False,
            clamp_first=True,
            index_rope="norm",
            index_epsilon=0.0,
            index_turned_last=True,
        ),
        models={"HYV4ForCausalLM": MLA_DEFAULTS | _DEFAULTS},
        metadata=(
            *(_REPLACED.get(getattr(row, "key", ""), row) for row in mla_keys()),
            uint("expert_gating_func", lambda config: 2),
            reals("swiglu_clamp_exp", _limits),
            uint("hyper_connection.count", "hc_mult"),
            real("hyper_connection.epsilon", "hc_eps"),
            real("hyper_connection.magnitude", "hc_magnitude"),
            *(_if_indexed(row) for row in INDEXER),
            flags("attention.indexer.types", _own_index),
        ),
        vocabulary=bpe,
        types={
            r"(hc_attn_fn|hc_ffn_fn|output_hc_fn)\.weight$": "F32",
            r"indexer\.k_norm\.bias$": "F32",
        },
        transforms=(
            drop(r"^model\.mtp_layers\."),
            _checked_index,
            untied(),
            *mlp_experts("n_routed_experts"),
            rename(
                (r"(\.learnable_sink_param)$", r"\1.weight"),
                (r"(\.hc_head\.hc_head_(?:fn|base|scale))$", r"\1.weight"),
                (r"(\.hc_(?:attn|mlp)_layer\.hc_pre\.hc_(?:fn|base|scale))$", r"\1.weight"),
            ),
            absorbed,
        ),
    ),
)
