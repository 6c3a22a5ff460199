"""The K-quants: super-blocks of 256 weights whose sub-blocks' scales are themselves quantized.

    q2_k q36_k q45_k q8_k   the formats, like ones together: search, quantize, pack; and decode
    mins                    what the formats with a min share

Sixteen super-blocks are encoded at a time (`formats.tiles`), their scales found by `formats.scale_search`.

Source: ggml/src/ggml-quants.c of llama.cpp.
"""

from ggufkit.formats.kquants.q2_k import q2_k_decode, q2_k_encode, q2_k_encode_weighted
from ggufkit.formats.kquants.q8_k import q8_k_decode, q8_k_encode
from ggufkit.formats.kquants.q36_k import (
    q3_k_decode,
    q3_k_encode,
    q3_k_encode_weighted,
    q6_k_decode,
    q6_k_encode,
    q6_k_encode_weighted,
)
from ggufkit.formats.kquants.q45_k import (
    q4_k_decode,
    q4_k_encode,
    q4_k_encode_weighted,
    q5_k_decode,
    q5_k_encode,
    q5_k_encode_weighted,
)

__all__ = [
    "q2_k_decode",
    "q2_k_encode",
    "q2_k_encode_weighted",
    "q3_k_decode",
    "q3_k_encode",
    "q3_k_encode_weighted",
    "q4_k_decode",
    "q4_k_encode",
    "q4_k_encode_weighted",
    "q5_k_decode",
    "q5_k_encode",
    "q5_k_encode_weighted",
    "q6_k_decode",
    "q6_k_encode",
    "q6_k_encode_weighted",
    "q8_k_decode",
    "q8_k_encode",
]
