"""Mamba, FalconMamba and Mamba 2: state space models without attention."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, Export, Setting, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, Row, flag, real, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import decay, drop_tied_output, rename, reshape, squeezed
from ggufkit.arch.undo import decays_of_heads, logarithms, one_channel, one_dimension
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import padded


def _inner(config: Config) -> int:
    inner: int = config.get("intermediate_size", "d_inner", "mamba_d_ssm", default=2 * config.width)
    if inner != 2 * config.width:
        raise ArchitectureError(
            f"config.json: the inner size is {inner}; llama.cpp runs Mamba models whose inner size is twice their "
            f"width of {config.width}"
        )
    return inner


_SHAPE: tuple[Row, ...] = (
    uint("context_length", lambda config: 1 << 20),  # the state has no limit
    uint("embedding_length", lambda config: config.width),
    uint("feed_forward_length", lambda config: 0),  # there is none, but llama.cpp asks for its length
    uint("attention.head_count", lambda config: 0),  # as well
    LAYERS,
    uint("ssm.conv_kernel", lambda config: config.get("conv_kernel", "d_conv", default=4)),
    uint("ssm.inner_size", _inner),
)
_EPSILON = real(
    "attention.layer_norm_rms_epsilon",
    lambda config: config.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5),
)


def _step_rank(config: Config) -> int:
    rank = config.get("time_step_rank", "dt_rank")
    return rank if isinstance(rank, int) else -(config.width // -16)


def _heads(config: Config) -> int:
    result: int = _inner(config) // config.get("mamba_d_head", "head_dim", default=64)
    return result


def _groups(config: Config) -> int:
    return 1 if config.get("n_groups") is None else config.integer("n_groups")


# ---- the way back ----


def _export(two: bool) -> Export:
    """Of Mamba, or of Mamba 2: all of a head of the latter decays alike."""
    mixer = "backbone.layers.{bid}.mixer"
    parts = {"ssm_a": "A_log", "ssm_d": "D", "ssm_conv1d": "conv1d", "ssm_in": "in_proj", "ssm_out": "out_proj"}
    own = {"ssm_dt.bias": "dt_bias", "ssm_norm": "norm"} if two else {"ssm_x": "x_proj", "ssm_dt": "dt_proj"}
    config: dict[str, Setting] = {
        "hidden_size": lambda s: s.width,
        "num_hidden_layers": lambda s: s.layers,
        "intermediate_size": key("ssm.inner_size"),
        "state_size": key("ssm.state_size"),
        "conv_kernel": key("ssm.conv_kernel"),
        "layer_norm_epsilon": key("attention.layer_norm_rms_epsilon"),
        "expand": lambda s: 2,
        "use_bias": lambda s: False,
        "use_conv_bias": lambda s: True,
        **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")},
    }
    if two:
        config |= {
            "num_heads": key("ssm.time_step_rank"),
            "head_dim": lambda s: s.natural("ssm.inner_size") // s.natural("ssm.time_step_rank"),
            "n_groups": key("ssm.group_count"),
        }
    else:
        config["time_step_rank"] = key("ssm.time_step_rank")
    limits: dict[str, Setting] = {"time_step_limit": lambda s: [0.0, 1e38], "time_step_rank": lambda s: "auto"}
    return Export(
        "mamba2" if two else "mamba",
        "Mamba2ForCausalLM" if two else "MambaForCausalLM",
        common=False,
        config=config,
        names={
            "token_embd": "backbone.embeddings",
            "output_norm": "backbone.norm_f",
            "output": "lm_head",
            "blk.{bid}.attn_norm": "backbone.layers.{bid}.norm",
            **{f"blk.{{bid}}.{gguf}": f"{mixer}.{name}" for gguf, name in (parts | own).items()},
        },
        undo={
            ".ssm_a": decays_of_heads if two else logarithms,
            ".ssm_d": one_dimension,
            ".ssm_norm": one_dimension,
            ".ssm_conv1d": one_channel,
        },
        when=lambda s: not s.get("ssm.dt_b_c_rms", False),
        mlx=Mlx(config=limits, when=lambda s: s.get("ssm.group_count") == 1) if two else PLAIN_MLX,
    )


SPECS = (
    Architecture(
        name="mamba",
        exports=(_export(False),),
        graph=Graph(rope=None),
        models={"MambaForCausalLM": {}, "MambaLMHeadModel": {}, "FalconMambaForCausalLM": {}},
        metadata=(
            *_SHAPE,
            uint("ssm.state_size", lambda config: config.get("state_size", "d_state", default=16)),
            uint("ssm.time_step_rank", _step_rank),
            _EPSILON,
            flag("ssm.dt_b_c_rms", lambda config: config.get("model_type") == "falcon_mamba"),
            FILE_TYPE,
        ),
        vocabulary=padded(first_of(bpe, sentencepiece), 8),
        transforms=(decay(), squeezed(), drop_tied_output("lm_head.weight", "backbone.embedding.weight")),
    ),
    Architecture(
        name="mamba2",
        exports=(_export(True),),
        graph=Graph(rope=None),
        models={"Mamba2ForCausalLM": {}},
        metadata=(
            *_SHAPE,
            uint("ssm.state_size", lambda config: config.get("state_size", "d_state", default=128)),
            uint("ssm.time_step_rank", _heads),
            uint("ssm.group_count", _groups),
            _EPSILON,
            FILE_TYPE,
        ),
        vocabulary=padded(first_of(sentencepiece, bpe), 16),
        transforms=(
            rename((r"^model\.(?=backbone|lm_head)", ""), (r"\.dt_bias$", ".dt_proj.bias")),
            decay(),
            squeezed(),
            reshape(r"\.(A_log|D)$", lambda tensor, config: (*tensor.shape, 1)),
            reshape(
                r"\.mixer\.norm\.weight$", lambda tensor, config: (_groups(config), tensor.size // _groups(config))
            ),
        ),
    ),
)
