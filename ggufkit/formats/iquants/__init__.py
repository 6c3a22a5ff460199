"""The IQ formats: levels that are not evenly spaced, and codebooks.

    IQ4_NL  IQ4_XS                 each weight is one of 16 unevenly spaced levels
    IQ3_S   IQ3_XXS                four magnitudes at a time from a codebook, signs apart
    IQ2_S   IQ2_XS   IQ2_XXS       eight magnitudes at a time from a codebook, signs apart
    IQ1_S   IQ1_M                  eight of -1, 0, 1 at a time from a codebook, all moved by ±1/8

One file for each number of bits, of one bit two; `grids` has the codebooks, `search` what their encoders share.
"""

from ggufkit.formats.iquants.iq1 import iq1_m_decode, iq1_s_decode
from ggufkit.formats.iquants.iq1_encode import iq1_m_encode, iq1_m_encode_weighted, iq1_s_encode_weighted
from ggufkit.formats.iquants.iq2 import (
    iq2_s_decode,
    iq2_s_encode,
    iq2_s_encode_weighted,
    iq2_xs_decode,
    iq2_xs_encode_weighted,
    iq2_xxs_decode,
    iq2_xxs_encode_weighted,
)
from ggufkit.formats.iquants.iq3 import (
    iq3_s_decode,
    iq3_s_encode,
    iq3_s_encode_weighted,
    iq3_xxs_decode,
    iq3_xxs_encode,
    iq3_xxs_encode_weighted,
)
from ggufkit.formats.iquants.iq4 import (
    iq4_nl_decode,
    iq4_nl_encode,
    iq4_nl_encode_weighted,
    iq4_xs_decode,
    iq4_xs_encode,
    iq4_xs_encode_weighted,
)

__all__ = [
    "iq1_m_decode",
    "iq1_m_encode",
    "iq1_m_encode_weighted",
    "iq1_s_decode",
    "iq1_s_encode_weighted",
    "iq2_s_decode",
    "iq2_s_encode",
    "iq2_s_encode_weighted",
    "iq2_xs_decode",
    "iq2_xs_encode_weighted",
    "iq2_xxs_decode",
    "iq2_xxs_encode_weighted",
    "iq3_s_decode",
    "iq3_s_encode",
    "iq3_s_encode_weighted",
    "iq3_xxs_decode",
    "iq3_xxs_encode",
    "iq3_xxs_encode_weighted",
    "iq4_nl_decode",
    "iq4_nl_encode",
    "iq4_nl_encode_weighted",
    "iq4_xs_decode",
    "iq4_xs_encode",
    "iq4_xs_encode_weighted",
]
