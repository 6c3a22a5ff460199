"""The converter's types: one format for all weights, as llama.cpp's `convert_hf_to_gguf.py --outtype` has them.

They differ from llama-quantize's presets of the same names in small things (the token embedding of TQ1_0), so they
are rules of their own. Mixes such as Q4_K_M are presets; see `presets`.

Source: `prepare_tensors` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ggufkit.formats.table import FORMATS
from ggufkit.policy.decision import Decision

__all__ = ["AS_THE_FILE", "F16_OR_F32", "OUTTYPES", "outtype_decision"]

# Type → `general.file_type` (enum llama_ftype).
OUTTYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "TQ1_0": 36, "TQ2_0": 37}

# Small weights whose precision matters, or that llama.cpp reads as float32 only.
_ALWAYS_F32 = re.compile(
    r"""(blk\.\d+\.)?(
        ffn_gate_inp | ffn_gate_inp_shexp | position_embd | token_types |
        ssm_conv1d | ssm_conv1d_[qkv] | shortconv\.conv |
        time_mix_(first|w1|w2|decay_w1|decay_w2|lerp_fused) | posnet\.\d+\.norm[12] |
        altup_(correct|predict)_coef | indexer\.proj |
        [va]\.position_embd
    )\.weight""",
    re.VERBOSE,
)

# Ternary types hold a trained network's inner weights, not its embeddings.
_NOT_TERNARY = re.compile(r"(token_embd|per_layer_token_embd|output|blk\.\d+\.(altup_router|laurel_[lr]))\.weight")


# What the convolutions of encoders are in a file of any type.
F16_OR_F32 = "F16 or F32"

# The file's own type, for what would be F32 elsewhere.
AS_THE_FILE = "as the file"


def outtype_decision(
    name: str, shape: tuple[int, ...], outtype: str, always: Mapping[str, str] | None = None
) -> Decision:
    """The format of the tensor `name` of `shape` (NumPy order) in a file of type `outtype`.

    Parameters
    ----------
    always : pattern of names → the type of such tensors in a file of any type; F16_OR_F32 is F16 in one of F16, and
        F32 in any other.
    """
    if len(shape) <= 1:
        return Decision(FORMATS["F32"], "one dimension")
    if name.endswith("_norm.weight"):
        return Decision(FORMATS["F32"], "norm")
    for pattern, fixed in (always or {}).items():
        if re.search(pattern, name):
            if fixed == AS_THE_FILE:
                return _of_file(shape, outtype)
            convolution = "F16" if outtype == "F16" else "F32"
            return Decision(FORMATS[convolution if fixed == F16_OR_F32 else fixed], "always so in this architecture")
    if _ALWAYS_F32.fullmatch(name):
        return Decision(FORMATS["F32"], "small, and sensitive to rounding")
    if not name.endswith(".weight"):
        return Decision(FORMATS["F32"], "no weight matrix")
    if outtype.startswith("TQ") and _NOT_TERNARY.fullmatch(name):
        return Decision(FORMATS["F16"], f"an embedding or output is not made {outtype}")
    return _of_file(shape, outtype)


def _of_file(shape: tuple[int, ...], outtype: str) -> Decision:
    format = FORMATS[outtype]
    if shape[-1] % format.block_size:
        return Decision(FORMATS["F16"], f"rows of {shape[-1]} are not a multiple of {outtype}'s {format.block_size}")
    return Decision(format, f"{outtype} for every weight matrix")
