"""Models that draft for another, whose embeddings, vocabulary and states they use: EAGLE 3, DFlash, DSpark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ggufkit.arch.metadata import (
    BASE,
    ROPE_DIMENSIONS,
    VOCAB_SIZE,
    Row,
    flag,
    flags,
    integers,
    pooling,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import drop, map_each, only, rename
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config, Default
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Origin, Tensor
from ggufkit.tensors.views import take_rows
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer

_NO_DEFAULTS: dict[str, Default] = {}


def _as_llama(value: Callable[[Config], Any]) -> Callable[[Config], Any]:
    """A default of Llama's, for configs that say they are one's."""
    return lambda config: value(config) if config.get("model_type") == "llama" else None


_EAGLE_DEFAULTS: dict[str, Default] = {
    "max_position_embeddings": _as_llama(lambda config: 2048),
    "rms_norm_eps": _as_llama(lambda config: 1e-6),
    "rope_theta": _as_llama(lambda config: 10000.0),
    "num_key_value_heads": _as_llama(lambda config: config.heads),
    "head_dim": _as_llama(lambda config: config.width // config.heads),
}
_EAGLE_CLASSES = (
    *("Eagle3DraftModel", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "LlamaForCausalLMEagle3"),
    "LlamaForCausalLM",  # of some
)
_SPARK_CLASSES = (
    *("DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel", "LingDSparkModel"),
    "Qwen3DSparkModel",
)


def _base(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.base is None:
        raise NoTokenizer(f"{printable(checkpoint.folder)} drafts for another model, whose checkpoint it needs")
    return checkpoint.base


def _target_ids(size: Callable[[Config], int], vocabulary: Callable[[Config], int]) -> Transform:
    """d2t, by how much the id of each token that is drafted is larger for the other model: as ids, at the end."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        table = None
        for tensor in tensors:
            if tensor.name.removeprefix("model.") == "d2t":
                table = tensor
            else:
                yield tensor
        if table is not None:
            yield _ids(table, vocabulary(config))
        elif size(config) < vocabulary(config):
            raise CheckpointError(f"{size(config)} tokens of {vocabulary(config)} are drafted, and no d2t says which")

    return transform


def _ids(table: Tensor, vocabulary: int) -> Tensor:
    import numpy as np

    numbers = table.floats(0, table.rows).reshape(-1)
    ids = numbers.astype(np.int64) + np.arange(numbers.size, dtype=np.int64)
    if ((ids < 0) | (ids >= vocabulary)).any() or len(np.unique(ids)) < ids.size:
        raise CheckpointError(
            f"{printable(table.name)}: not every drafted token is one of the {vocabulary} tokens, once"
        )
    blocks = ids.view(np.uint8).reshape(1, -1)
    blocks.flags.writeable = False
    return replace(
        table,
        name="d2t",
        shape=(ids.size,),
        format=FORMATS["I64"],
        read=lambda lo, hi: blocks[lo:hi],
        origin=Origin("token ids", True),
    )


# ---- EAGLE 3 ----------------------------------------------------------------------------------------------------


def _eagle_layers(config: Config) -> list[int]:
    """Blocks of the other model whose states are read."""
    given = config.get("eagle_aux_hidden_state_layer_ids")
    layers = config.base.layers
    return given or [2, layers // 2, layers - 3]


_EAGLE = Architecture(
    name="eagle3",
    drafts=True,
    models=dict.fromkeys(_EAGLE_CLASSES, _EAGLE_DEFAULTS),
    when=lambda config: "draft_vocab_size" in config and config.get("num_hidden_layers") == 1,
    preamble=(
        integers("target_layers", _eagle_layers),
        uint("target_hidden_size", lambda config: config.get("target_hidden_size", default=config.base.width)),
        flag("norm_before_residual", lambda config: bool(config.get("norm_before_residual"))),
        flag("norm_before_fc", lambda config: bool(config.get("norm_before_fc"))),
    ),
    metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
    vocabulary=lambda checkpoint, config: llama_vocabulary(_base(checkpoint), config),
    names={"fc.weight": "fc.weight", "d2t": "d2t"},
    transforms=(
        rename(
            (r"^midlayer\.", "model.layers.0."),
            (r"^layers\.0\.", "model.layers.0."),
            (r"^input_norm\.weight$", "enc.output_norm.weight"),
            (r"^model\.layers\.(\d+)\.hidden_norm\.weight$", r"blk.\1.attn_norm_2.weight"),
        ),
        drop(r"^t2d$"),
        *PERMUTED,
        rope_freqs,
        _target_ids(lambda config: 0, lambda config: config.base.integer("vocab_size")),
    ),
)

# ---- DFlash and DSpark ------------------------------------------------------------------------------------------


def _flash(config: Config) -> Config:
    """The settings of drafting; DSpark's lie beside those of the model."""
    if "dflash_config" in config:
        return config.part("dflash_config")
    mask, layers = config.get("mask_token_id"), config.get("target_layer_ids")
    if "aux_hidden_state_layer_ids" in config:
        layers = [layer - 1 for layer in config.list("aux_hidden_state_layer_ids")]
    found = {"mask_token_id": mask, "target_layer_ids": layers}
    return Config({name: value for name, value in found.items() if value is not None} if _is_spark(config) else {})


def _is_spark(config: Config) -> bool:
    return "Spark" in str(config.get("architectures"))


def _either(name: str, otherwise: Any = None) -> Callable[[Config], Any]:
    """A setting of drafting, which may lie beside those of the model."""
    return lambda config: _flash(config).get(name, default=config.get(name, default=otherwise))


def _inner(name: str) -> Callable[[Config], Any]:
    """A setting of convolutions and selectors, which come together."""

    def find(config: Config) -> Any:
        settings = _flash(config)
        return settings.integer(name) if "conv_kernel_size" in settings else None

    return find


def _rope_dimensions(config: Config) -> int | None:
    factor = rope_parameters(config)["partial_rotary_factor"]
    return None if factor is None else int(config.head_dim * factor)


def _embedding_scale(config: Config) -> float | None:
    """Gemma multiplies embeddings when it runs, and a draft has Gemma's."""
    given = _either("input_embedding_scale")(config)
    if given is None and str((config.base.get("architectures") or [""])[0]).startswith("Gemma"):
        given = config.base.width**0.5
    return None if given is None else float(given)


def _soft_cap(config: Config) -> float | None:
    cap = _either("final_logit_softcapping")(config)
    return float(cap) if cap is not None and float(cap) > 0 else None


def _windows(config: Config) -> tuple[int, list[bool]] | None:
    settings = _flash(config)
    everywhere = bool(settings.get("use_swa"))
    size = settings.get("swa_window_size") or config.get("sliding_window")
    if not size or not (config.get("use_sliding_window") or everywhere):
        return None
    kinds = config.get("layer_types", default=[])
    return size, [True] * config.layers if everywhere else [kind == "sliding_attention" for kind in kinds]


def _causal(config: Config) -> bool | None:
    found = config.get("is_causal", default=_flash(config).get("causal"))
    return None if found is None else bool(found)


def _sections(config: Config) -> list[int] | None:
    """Of a model whose positions have several streams a draft has one."""
    base = config.base
    settings = base.get("rope_parameters", "rope_scaling", default={})
    return [config.head_dim // 2, 0, 0, 0] if "mrope_section" in settings else None


def _paired(tensor: Tensor, config: Config) -> Tensor:
    """Heads that turn neighbours, as those that turn halves: first the even numbers of each, then the odd ones."""
    import numpy as np

    rows = tensor.cols if len(tensor.shape) == 1 else tensor.rows
    order = np.arange(rows).reshape(-1, config.integer("head_dim") // 2, 2).swapaxes(1, 2).ravel()
    return take_rows(tensor, order)


def _flash_vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """The other model's vocabulary, as its own spec has it, but of as many tokens as the draft has."""
    from ggufkit.arch.registry import architecture_of

    base = _base(checkpoint)
    spec, _ = architecture_of(base.config, base.text)
    yield from spec.vocabulary(base, config)
    if (mask := _flash(config).get("mask_token_id")) is not None:
        yield "tokenizer.ggml.mask_token_id", Value(ValueType.UINT32, mask)


def _whole_model(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    for tensor in tensors:
        name = tensor.name if tensor.name.startswith("model.") else f"model.{tensor.name}"
        if "sink" in name and not name.endswith(".weight"):
            name += ".weight"
        yield tensor.renamed(name)


_FLASH: tuple[Row, ...] = (
    *BASE,
    pooling,
    uint("rope.dimension_count", _rope_dimensions),
    real("attention.value_scale", lambda config: _flash(config).get("attention_value_scale")),
    uint("block_size", _either("block_size", 16)),
    *(uint(name, _inner(name)) for name in ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")),
    real("logit_scale", _either("output_multiplier")),
    real("final_logit_softcapping", _soft_cap),
    real("embedding_scale", _embedding_scale),
    integers(
        "target_layers", lambda config: [layer + 1 for layer in _either("target_layer_ids")(config) or ()] or None
    ),
    uint("attention.sliding_window", lambda config: (_windows(config) or (None,))[0]),
    flags("attention.sliding_window_pattern", lambda config: (_windows(config) or (0, None))[1]),
    flag("attention.causal", _causal),
    integers("rope.dimension_sections", _sections),
)

_FLASH_TENSORS: tuple[Transform, ...] = (
    _whole_model,
    only(lambda config: config.get("has_embed_tokens") is False, drop(r"^model\.embed_tokens\.weight$")),
    only(
        lambda config: config.get("rope_is_neox_style") is False,
        map_each(r"self_attn\.[qk]_(proj|norm)\.weight$", _paired),
    ),
    rename((r"^(model\.candidate_selector\.(predecessor|successor)_codebook)$", r"\1.weight")),
)


def _drafted(config: Config) -> int:
    drafted: int = config.get("draft_vocab_size") or config.integer("vocab_size")
    return drafted


def _from_anchor(config: Config) -> bool:
    """DSpark as EAGLE 3's tools export it has a first token of its own in each block."""
    others = "transformer_layer_config" in config or "aux_hidden_state_layer_ids" in config
    return bool(config.get("sample_from_anchor", default=not others))


def _markov(architecture: str, config: Config) -> tuple[()]:
    if (kind := config.get("markov_head_type", default="vanilla")) != "vanilla":
        raise ArchitectureError(f"config.json: 'markov_head_type' is {printable(repr(kind))}, not vanilla")
    return ()


SPECS = (
    _EAGLE,
    Architecture(
        name="dflash",
        drafts=True,
        models={"DFlash2DraftModel": {}, "DFlashDraftModel": {}},
        metadata=_FLASH,
        vocabulary=_flash_vocabulary,
        transforms=_FLASH_TENSORS,
    ),
    Architecture(
        name="dflash",
        drafts=True,
        models=dict.fromkeys(_SPARK_CLASSES, _NO_DEFAULTS),
        metadata=(
            *_FLASH,
            flag("sample_from_anchor", _from_anchor),
            flag(
                "has_confidence_head",
                lambda config: any("confidence_head.proj" in name for name in config.tensors),
            ),
            _markov,
        ),
        vocabulary=_flash_vocabulary,
        names={"d2t": "d2t"},
        transforms=(
            drop(r"^t2d$"),
            *_FLASH_TENSORS,
            only(lambda config: _drafted(config) == config.get("vocab_size"), drop(r"lm_head\.weight$")),
            _target_ids(_drafted, lambda config: config.integer("vocab_size")),
        ),
    ),
)
