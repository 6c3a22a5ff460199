"""The K-quants: super-blocks of 256 weights whose sub-blocks' scales are themselves quantized.

tiles     16 super-blocks to lanes, their bytes back
search    the scale searches
q45_k …   a file for each pair of like formats: search, quantize, pack; and decode
"""

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
]
