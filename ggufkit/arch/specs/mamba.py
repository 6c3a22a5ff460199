"""Mamba, FalconMamba and Mamba 2: state space models without attention."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, Row, flag, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import decay, drop_tied_output, rename, reshape, squeezed
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
    result: int = config.get("n_groups", default=1)
    return result


SPECS = (
    Architecture(
        name="mamba",
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
