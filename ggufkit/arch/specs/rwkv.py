"""RWKV 6 and 7, and the Qwens whose attention became one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.names import name_map
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.transforms import map_each, multiply, rename, reshape, transpose
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import reshaped, stacked, take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.rwkv import rwkv_world
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_CONTEXT = uint("context_length", lambda config: 1 << 20)  # no limit
_NO_HEADS = uint("attention.head_count", lambda config: 0)
_NAMES = {"blk.{bid}.time_mix_lerp_fused.weight": "blk.{bid}.time_mix_lerp_fused.weight"}
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def _named(architecture: str) -> Transform:
    """GGUF's names, on which what follows goes by; parameters without an ending get one."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        known = name_map(architecture, config.layers)
        for tensor in tensors:
            name = tensor.name if tensor.name.startswith("blk.") else known(tensor.name)
            if name is None:
                raise CheckpointError(
                    f"an {architecture} model of {config.layers} layers has no {printable(tensor.name)}"
                )
            yield tensor.renamed(name if name.endswith((".weight", ".bias")) else f"{name}.weight")

    return transform


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[0]) if found else -1


def _fused(
    letters: Callable[[Config], str], pattern: str, shape: Callable[[int, Tensor], tuple[int, ...]] | None = None
) -> Transform:
    """What mixes each token with the one before, one vector for each use, as one tensor where the last of them stood.

    Parameters
    ----------
    letters : the uses, in order.
    pattern : of a vector's name, with the groups `layer` and `letter`.
    shape : of the whole, from the number of uses and one vector; None stacks them as they are.
    """
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        waiting: dict[str, dict[str, Tensor]] = {}
        uses = letters(config)
        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
                continue
            layer = waiting.setdefault(match["layer"], {})
            layer[match["letter"]] = tensor
            if all(letter in layer for letter in uses):
                del waiting[match["layer"]]
                found = [layer[letter] for letter in uses]
                name = f"blk.{match['layer']}.time_mix_lerp_fused.weight"
                yield stacked(name, found, None if shape is None else shape(len(uses), found[0]))
        for number, layer in waiting.items():
            raise CheckpointError(f"layer {number} mixes tokens for {', '.join(sorted(layer))} only, not for {uses}")

    return transform


def _without_ones(tensor: Tensor, config: Config) -> Tensor:
    shape = tuple(size for size in tensor.shape if size != 1) or (1,)
    return tensor if shape == tensor.shape else reshaped(tensor, shape)


_SQUEEZED = map_each("", _without_ones)

# ---- RWKV 6 -----------------------------------------------------------------------------------------------------


def _rescaled(tensor: Tensor, config: Config) -> Tensor:
    """Every so many layers the residual stream was halved, so that 16 bits held it: the weights are, instead."""
    every = config.get("rescale_every", default=0)
    power = _layer(tensor.name) // every if isinstance(every, int) and every > 0 else 0
    scaled: Tensor = next(iter(multiply("", lambda c: 0.5**power)([tensor], config)))
    return scaled


_SIX = (
    _named("rwkv6"),
    transpose(r"time_mix_(w1|w2|decay_w1|decay_w2)\.weight$"),
    map_each(r"(time_mix_decay\.weight$|lerp)", _without_ones),
    map_each(r"(time_mix_output|channel_mix_value)\.weight$", _rescaled),
    _fused(
        lambda config: "wkvrg",
        r"blk\.(?P<layer>\d+)\.time_mix_lerp_(?P<letter>[wkvrg])\.weight",
        lambda uses, vector: (uses, 1, 1, vector.cols),
    ),
)


def _in_order_of_six(tensor: Tensor, config: Config) -> Tensor:
    """The Qwens have r, k, v, w, g where RWKV 6 has w, k, v, r, g."""
    import numpy as np

    if tensor.rows % 5:
        raise CheckpointError(f"{printable(tensor.name)} of {tensor.rows} rows is not five matrices")
    each = tensor.rows // 5
    order = (np.array([3, 1, 2, 0, 4])[:, None] * each + np.arange(each)).ravel()
    return take_rows(tensor, order, tensor.shape)


def _large(config: Config, size: int, small: int) -> int:
    return size if config.width == 4096 else small


# ---- RWKV 7 -----------------------------------------------------------------------------------------------------


def _rank(name: str, other: str, power: float, factor: float) -> Callable[[Config], int]:
    """A rank of RWKV 7's low-rank matrices, by either name, or from the width where it is null."""

    def rank(config: Config) -> int:
        given = config.get(name, other)
        found: int = given if given is not None else max(1, round(config.width**power * factor / 32)) * 32
        return found

    return rank


_LOW_RANK = re.compile(r"_lora\.lora\.(0\.weight|2\.weight|2\.bias)$")


def _low_rank(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Low-rank matrices: w1 (in, rank), w2 (rank, out), w0 (out); modules of two linear layers hold them transposed."""
    ends = {"0.weight": "1.weight", "2.weight": "2.weight", "2.bias": "0.weight"}
    waiting = list(tensors)
    modules = any(_LOW_RANK.search(tensor.name) for tensor in waiting)
    named = (tensor.renamed(_LOW_RANK.sub(lambda match: ends[match[1]], tensor.name)) for tensor in waiting)
    turn = transpose(r"attention\.[wavg][12]$")
    yield from named if modules else turn(named, config)


def _not_of_first(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Without the first block's mixing of values, which is not used; those of its rates stand in for them."""
    for tensor in tensors:
        if re.match(r"blk\.0\.time_mix_v[012]\.", tensor.name):
            continue
        if tensor.name.startswith("blk.0.time_mix_a"):
            yield tensor.renamed(tensor.name.replace("time_mix_a", "time_mix_v"))
        yield tensor


def _uses(config: Config) -> str:
    return "rwkvag" if config.get("wkv_has_gate", default=True) else "rwkva"


def _seven(architecture: str) -> tuple[Transform, ...]:
    return (
        rename(
            ("blocks", "layers"),
            ("ffn", "feed_forward"),
            ("self_attn", "attention"),
            ("attn", "attention"),
            (r"time_mixer\.", ""),
            ("feed_forward_norm", "ln2"),
            ("g_norm", "ln_x"),
        ),
        _low_rank,
        rename((r"^model\.layers\.(\d+)\.attention\.x_x$", r"blk.\1.time_mix_lerp_fused.weight")),
        reshape(r"time_mix_lerp_fused", lambda tensor, config: (len(_uses(config)), 1, 1, tensor.cols)),
        _fused(_uses, r"model\.layers\.(?P<layer>\d+)\.attention\.x_(?P<letter>[rwkvag])"),
        # All else without dimensions of 1.
        map_each(r"^(?!.*time_mix_lerp_fused)", _without_ones),
        _named(architecture),
        reshape(r"r_k", lambda tensor, config: (math.prod(tensor.shape),)),
        _not_of_first,
    )


SPECS = (
    Architecture(
        name="rwkv6",
        graph=Graph(norm="layer", rope=None, ffn_norm="attn_norm_2"),
        names=_NAMES,
        models={"Rwkv6ForCausalLM": {}},
        metadata=(
            _CONTEXT,
            uint("embedding_length", "hidden_size"),
            LAYERS,
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            uint("rescale_every_n_layers", "rescale_every"),
            uint("wkv.head_size", "head_size"),
            uint("time_mix_extra_dim", lambda config: _large(config, 64, 32)),
            uint("time_decay_extra_dim", lambda config: _large(config, 128, 64)),
            uint(
                "feed_forward_length",
                lambda config: config.get("intermediate_size", default=int(config.width * 3.5 // 32 * 32)),
            ),
            FILE_TYPE,
            _NO_HEADS,
        ),
        vocabulary=rwkv_world,
        transforms=_SIX,
    ),
    Architecture(
        name="rwkv6qwen2",
        graph=Graph(rope=None),
        names=_NAMES,
        models={"RWKV6Qwen2ForCausalLM": {}},
        metadata=(
            _CONTEXT,
            uint("embedding_length", "hidden_size"),
            LAYERS,
            uint("wkv.head_size", lambda config: config.width // config.heads),
            uint(
                "time_mix_extra_dim",
                lambda config: config.get("lora_rank_tokenshift", default=64 if config.width >= 4096 else 32),
            ),
            uint(
                "time_decay_extra_dim",
                lambda config: config.get("lora_rank_decay", default=128 if config.width >= 4096 else 64),
            ),
            uint("feed_forward_length", "intermediate_size"),
            FILE_TYPE,
            real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            uint("token_shift_count", lambda config: 1),
            uint("attention.head_count_kv", "num_key_value_heads"),
            _NO_HEADS,
        ),
        vocabulary=first_of(sentencepiece, bpe),
        transforms=(_named("rwkv6qwen2"), *_SIX[1:], map_each(r"time_mix_w[12]\.", _in_order_of_six)),
    ),
    Architecture(
        name="rwkv7",
        graph=Graph(norm="layer", rope=None, ffn_norm="attn_norm_2"),
        names=_NAMES,
        models={"RWKV7ForCausalLM": {}, "Rwkv7ForCausalLM": {}},
        metadata=(
            _CONTEXT,
            uint("embedding_length", "hidden_size"),
            LAYERS,
            real("attention.layer_norm_epsilon", "layer_norm_epsilon", "norm_eps"),
            uint("wkv.head_size", "head_size", "head_dim"),
            uint("attention.decay_lora_rank", _rank("lora_rank_decay", "decay_low_rank_dim", 0.5, 1.8)),
            uint("attention.iclr_lora_rank", _rank("lora_rank_iclr", "a_low_rank_dim", 0.5, 1.8)),
            uint(
                "attention.value_residual_mix_lora_rank",
                _rank("lora_rank_value_residual_mix", "v_low_rank_dim", 0.5, 1.3),
            ),
            uint("attention.gate_lora_rank", _rank("lora_rank_gate", "gate_low_rank_dim", 0.8, 0.6)),
            uint("feed_forward_length", lambda config: config.get("intermediate_size", default=4 * config.width)),
            FILE_TYPE,
            _NO_HEADS,
        ),
        vocabulary=rwkv_world,
        transforms=_seven("rwkv7"),
    ),
    Architecture(
        name="arwkv7",
        graph=Graph(rope=None),
        names=_NAMES,
        models={"RwkvHybridForCausalLM": {}},
        when=lambda config: config.get("wkv_version") == 7,
        metadata=(
            _CONTEXT,
            uint("embedding_length", "hidden_size"),
            LAYERS,
            real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            uint("wkv.head_size", "head_size"),
            uint("attention.decay_lora_rank", lambda config: 64),
            uint("attention.iclr_lora_rank", lambda config: 64),
            uint("attention.value_residual_mix_lora_rank", lambda config: 32),
            uint("attention.gate_lora_rank", lambda config: 128 if config.require("wkv_has_gate") else 0),
            uint("feed_forward_length", "intermediate_size"),
            FILE_TYPE,
            uint("token_shift_count", lambda config: 1),
            _NO_HEADS,
        ),
        vocabulary=first_of(sentencepiece, bpe),
        transforms=_seven("arwkv7"),
    ),
)
