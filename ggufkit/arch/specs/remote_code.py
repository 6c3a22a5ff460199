"""Families whose code came with their checkpoints, and is not needed: config.json and the names of tensors decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    FILE_TYPE,
    LAYERS,
    OPTIONAL,
    RMS_EPSILON,
    ROPE_DIMENSIONS,
    VOCAB_SIZE,
    base,
    flag,
    integers,
    pooling,
    real,
    string,
    uint,
)
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.bert import CLEANED, ENCODER
from ggufkit.arch.specs.llama import BARE_LLAMA, PERMUTED
from ggufkit.arch.specs.qwen2 import BARE, EXPERT_LENGTHS, EXPERTS
from ggufkit.arch.transforms import decay, drop, multiply, rename, squeezed, stack_experts, transpose
from ggufkit.arch.transforms import untied as untied_output
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, wordpiece
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import followed_by, with_space_prefix

_META_LAYOUT = "Meta AI original pth"


def _two_parts(pattern: str, first: str, second: str, rows: Callable[[int, Config], int]) -> Transform:
    """A matrix as two: its first `rows(layer, config)` rows, and the others."""
    import re

    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        import numpy as np

        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
                continue
            cut = rows(int(match["layer"]), config)
            if not 0 < cut < tensor.rows:
                raise CheckpointError(f"{printable(tensor.name)} has {tensor.rows} rows, {cut} are its first part")
            yield take_rows(tensor, np.arange(cut)).renamed(f"blk.{match['layer']}.{first}.weight")
            yield take_rows(tensor, np.arange(cut, tensor.rows)).renamed(f"blk.{match['layer']}.{second}.weight")

    return transform


# ---- Refact, OpenELM --------------------------------------------------------------------------------------------


def _refact_length(config: Config) -> int:
    """Two thirds of four times the width, up to a multiple of 256."""
    return 256 * -(int(2 * 4 * config.width / 3) // -256)


def _divisible(value: float, divisor: int) -> int:
    """The nearest multiple, unless it is more than a tenth below."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def _elm_layers(config: Config) -> int:
    return config.integer("num_transformer_layers")


def _elm_lengths(config: Config) -> list[int]:
    divisor, width = config.integer("ffn_dim_divisor"), config.integer("model_dim")
    factors = config.list("ffn_multipliers", _elm_layers(config))
    if any(not isinstance(factor, (int, float)) or not 0 < factor < 1e4 for factor in factors):
        raise ArchitectureError("config.json: 'ffn_multipliers' must be positive numbers")
    return [_divisible(factor * width, divisor) for factor in factors]


# ---- GLM-4 (2024), JAIS, Jamba ----------------------------------------------------------------------------------


def _jais_factor(*names: str) -> Callable[[Config], float]:
    def find(config: Config) -> float:
        if names[0] == "mup_output_alpha" and "mup_output_alpha" in config:
            return config.number("mup_output_alpha") * config.number("mup_width_scale")
        return config.number(*names)

    return find


def _alibi(config: Config) -> float:
    """The largest bias, from the first of the stored slopes; 8 without them."""
    import math

    if config.get("activation_function") != "swiglu" or config.get("position_embedding_type") != "alibi":
        raise ArchitectureError("config.json: a JAIS has 'activation_function' swiglu and alibi positions")
    for name, tensor in config.tensors.items():
        if name.endswith("relative_pe.slopes"):
            first = float(tensor.floats().flat[0])
            if not 0 < first < 1:
                raise CheckpointError(f"{printable(name)} begins with {first}, which is no slope")
            result: float = -round(math.log2(first) * 2 ** math.floor(math.log2(config.heads)))
            return result
    return 8.0


def _jamba_kv_heads(config: Config) -> list[int]:
    config.require("attn_layer_offset")
    offset, period = config.count("attn_layer_offset"), config.integer("attn_layer_period")
    attention = [layer >= offset and (layer - offset) % period == 0 for layer in range(config.layers)]
    return [config.kv_heads if is_attention else 0 for is_attention in attention]


def _jamba_experts(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Layers without experts have one, which is their FFN."""
    config.require("expert_layer_offset")
    offset, period = config.count("expert_layer_offset"), config.integer("expert_layer_period")
    for tensor in tensors:
        name = tensor.name.replace(".moe.", ".feed_forward.")
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        if layer is not None and not (layer >= offset and (layer - offset) % period == 0):
            name = name.replace(".experts.0.", ".")
        yield tensor.renamed(name)


def _jamba_rank(config: Config) -> int:
    return config.get("mamba_dt_rank") or -(config.width // -16)


# ---- others -----------------------------------------------------------------------------------------------------


def _jina_vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """WordPiece, or byte-level BPE where the tokenizer is RoBERTa's."""
    kind = (checkpoint.json("tokenizer_config.json") or {}).get("tokenizer_class")
    if kind == "BertTokenizer":
        yield from wordpiece(checkpoint, config)
        return
    before = (checkpoint.json("tokenizer.json") or {}).get("pre_tokenizer")
    if kind != "RobertaTokenizer" or (isinstance(before, dict) and before.get("type") == "Whitespace"):
        raise CheckpointError(
            f"{printable(checkpoint.folder)}: a tokenizer of class {printable(repr(kind))} is not known"
        )
    yield from bpe(checkpoint, config)
    yield "tokenizer.ggml.token_type_count", Value(ValueType.UINT32, 2)


def _context(config: Config) -> int:
    return config.integer("max_sequence_length", "max_position_embeddings", "model_max_length")


SPECS = (
    Architecture(
        name="codeshell",
        graph=Graph(norm="layer", rope="neox", activation="gelu", embedding_is_output=True),
        models={"CodeShellForCausalLM": {}},
        metadata=(
            uint("context_length", "n_positions"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", lambda config: 4 * config.integer("n_embd")),
            LAYERS,
            uint("attention.head_count", "n_head"),
            uint("attention.head_count_kv", "num_query_groups"),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
            real("rope.freq_base", lambda config: 10000.0),
            string("rope.scaling.type", "linear"),
            real("rope.scaling.factor", lambda config: 1.0),
        ),
        vocabulary=bpe,
    ),
    Architecture(
        name="dream",
        graph=Graph(rope="neox", diffusion=True),
        models={"DreamModel": {}},
        metadata=(
            *BASE,
            pooling,
            flag("attention.causal", False),
            uint("tokenizer.ggml.mask_token_id", "mask_token_id", need=OPTIONAL),
        ),
        vocabulary=first_of(sentencepiece, bpe),
    ),
    Architecture(
        name="llada",
        graph=Graph(diffusion=True),
        models={"LLaDAModelLM": {}},
        metadata=(
            *base(
                uint("context_length", lambda config: config.get("max_sequence_length", default=4096)),
                uint("embedding_length", lambda config: config.get("d_model", default=4096)),
                uint("feed_forward_length", lambda config: config.get("mlp_hidden_size", default=12288)),
                flag("attention.causal", False),
            ),
            pooling,
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            flag("/diffusion.shift_logits", False),
        ),
        vocabulary=followed_by(bpe, {"add_bos_token": True}),
        transforms=PERMUTED,
    ),
    Architecture(
        name="rnd1",
        graph=Graph(rope="neox", diffusion=True),
        models={"RND1": {}},
        metadata=(
            *BASE,
            *EXPERT_LENGTHS,
            flag("attention.causal", False),
            uint("tokenizer.ggml.mask_token_id", "mask_token_id", need=OPTIONAL),
        ),
        vocabulary=bpe,
        transforms=EXPERTS,
    ),
    Architecture(
        name="plm",
        graph=Graph(activation="relu_squared"),
        models={"PLMForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("attention.kv_lora_rank", "kv_lora_rank"),
            uint(
                "attention.key_length",
                lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
            ),
            uint("attention.value_length", "v_head_dim"),
            uint("rope.dimension_count", "qk_rope_head_dim"),
        ),
        vocabulary=bpe,
    ),
    Architecture(
        name="refact",
        graph=Graph(rope=None, alibi=lambda layers: 8.0),
        models={"GPTRefactForCausalLM": {}},
        metadata=(
            uint("context_length", "n_positions"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", _refact_length),
            LAYERS,
            uint("attention.head_count", "n_head"),
            uint("attention.head_count_kv", lambda config: 1),
            real("attention.layer_norm_rms_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        transforms=(
            _two_parts(
                r"transformer\.h\.(?P<layer>\d+)\.attn\.kv\.weight",
                "attn_k",
                "attn_v",
                lambda layer, config: config.width // config.heads,
            ),
            rename((r"^transformer\.h\.(\d+)\.attn\.q\.weight$", r"blk.\1.attn_q.weight")),
            _two_parts(
                r"transformer\.h\.(?P<layer>\d+)\.mlp\.gate_up_proj\.weight",
                "ffn_gate",
                "ffn_up",
                lambda layer, config: _refact_length(config),
            ),
        ),
    ),
    Architecture(
        name="openelm",
        graph=Graph(rope="neox"),
        models={"OpenELMForCausalLM": {}},
        metadata=(
            uint("block_count", _elm_layers),
            uint("context_length", "max_context_length"),
            uint("embedding_length", "model_dim"),
            integers("feed_forward_length", _elm_lengths),
            integers("attention.head_count", lambda config: config.list("num_query_heads", _elm_layers(config))),
            integers("attention.head_count_kv", lambda config: config.list("num_kv_heads", _elm_layers(config))),
            real("rope.freq_base", "rope_freq_constant"),
            real("attention.layer_norm_rms_epsilon", lambda config: 1e-6),
            uint("rope.dimension_count", "head_dim"),
            uint("attention.key_length", "head_dim"),
            uint("attention.value_length", "head_dim"),
            FILE_TYPE,
        ),
        vocabulary=sentencepiece,
        transforms=(
            _two_parts(
                r"transformer\.layers\.(?P<layer>\d+)\.ffn\.proj_1\.weight",
                "ffn_gate",
                "ffn_up",
                lambda layer, config: _elm_lengths(config)[layer],
            ),
        ),
        blocks=_elm_layers,
    ),
    Architecture(
        name="orion",
        graph=Graph(norm="layer", rope="neox"),
        models={"OrionForCausalLM": {}},
        metadata=(
            FILE_TYPE,
            string("tensor_data_layout", _META_LAYOUT),
            uint("context_length", _context),
            uint("embedding_length", "hidden_size"),
            LAYERS,
            uint("feed_forward_length", "intermediate_size"),
            uint("attention.head_count", lambda config: config.heads),
            uint("attention.head_count_kv", lambda config: config.kv_heads),
            real("attention.layer_norm_epsilon", "rms_norm_eps"),
        ),
        vocabulary=sentencepiece,
    ),
    Architecture(
        name="maincoder",
        graph=Graph(late_norm=True),
        models={"MaincoderForCausalLM": {}},
        metadata=(*BASE, uint("rope.dimension_count", "head_dim", need=OPTIONAL)),
        vocabulary=bpe,
    ),
    Architecture(
        name="nanbeige",
        graph=Graph(),
        models={"NanbeigeForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            uint("num_loops", lambda config: max(1, config.count("num_loops"))),
            flag("skip_loop_final_norm", lambda config: bool(config.get("skip_loop_final_norm", default=False))),
        ),
        vocabulary=llama_vocabulary,
        transforms=(*PERMUTED, rope_freqs),
    ),
    Architecture(
        name="pangu-embedded",
        graph=Graph(rope="neox"),
        models={"PanguEmbeddedForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            uint("attention.key_length", lambda config: config.head_dim),
            uint("attention.value_length", lambda config: config.head_dim),
        ),
        vocabulary=with_space_prefix(sentencepiece),
        transforms=(untied_output(),),
    ),
    Architecture(
        name="llama",
        models={"JanusForConditionalGeneration": {}},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        transforms=(
            drop(r"^model\.(vision_model|aligner|vqmodel|generation_(embeddings|aligner|head))\."),
            BARE_LLAMA,
            *PERMUTED,
            rope_freqs,
        ),
    ),
    Architecture(
        name="llama",
        models={"Sarashina2VisionForCausalLM": {}},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        transforms=(drop(r"^norm\."), rename((r"^llm\.", "")), *PERMUTED, rope_freqs),
    ),
    Architecture(
        name="qwen3",
        models={"StepVLForConditionalGeneration": {}},
        metadata=(*BASE, pooling),
        vocabulary=first_of(sentencepiece, bpe),
        transforms=(BARE,),
    ),
    Architecture(
        name="jais",
        graph=Graph(norm="layer", rope=None, attention_scale=lambda head: 1 / head),
        models={"JAISLMHeadModel": {}},
        metadata=(
            LAYERS,
            uint("context_length", "n_positions"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", "n_inner"),
            uint("attention.head_count", "n_head"),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        # Worked out from a tensor, and written before all else.
        preamble=(real("attention.max_alibi_bias", _alibi),),
        vocabulary=bpe,
        transforms=(
            drop(r"(\.attn\.bias|relative_pe\.slopes)$"),
            transpose(r"\.(c_attn|c_proj|c_fc2?)\.weight$"),
            multiply(r"(^|\.)wte\.weight$", _jais_factor("mup_embeddings_scale", "embeddings_scale")),
            multiply(r"^lm_head\.weight$", _jais_factor("mup_output_alpha", "width_scale")),
        ),
    ),
    Architecture(
        name="jamba",
        graph=Graph(rope=None, router_normalized=False),
        models={"JambaForCausalLM": {"rms_norm_eps": 1e-6}},
        metadata=(
            LAYERS,
            uint("context_length", "max_position_embeddings", "n_ctx"),
            uint("embedding_length", lambda config: config.width),
            uint("feed_forward_length", "intermediate_size"),
            uint("attention.head_count", "num_attention_heads"),
            integers("attention.head_count_kv", _jamba_kv_heads),
            uint("ssm.conv_kernel", lambda config: config.get("mamba_d_conv", default=4)),
            uint("ssm.inner_size", lambda config: config.integer("mamba_expand") * config.width),
            uint("ssm.state_size", lambda config: config.get("mamba_d_state", default=16)),
            uint("ssm.time_step_rank", _jamba_rank),
            RMS_EPSILON,
            uint("expert_count", "num_local_experts", "num_experts"),
            uint("expert_used_count", "num_experts_per_tok", "num_experts_per_token"),
            FILE_TYPE,
        ),
        vocabulary=sentencepiece,
        transforms=(
            _jamba_experts,
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.feed_forward\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
                ("down", "gate", "up"),
                "model.layers.{layer}.mlp.experts.{part}_proj.weight",
            ),
            squeezed(),
            decay(),
        ),
    ),
    Architecture(
        name="jina-bert-v2",
        graph=Graph(norm="layer", rope=None, activation="gelu", alibi=lambda layers: 8.0),
        models={"JinaBertForMaskedLM": {}, "JinaBertModel": {}},
        metadata=(*BASE, *ENCODER),
        vocabulary=_jina_vocabulary,
        transforms=CLEANED,
    ),
)
