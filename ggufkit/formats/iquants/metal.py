"""Decoders of the IQ formats, in Metal's language.

Each function decodes the eight weights from `i` on (a multiple of 8) of the block at `b`. `half_of` (bits → float),
`load_u16` and `load_half` come from whoever puts them into a kernel, and so do the codebooks, as tables of bytes:
`grid_<format>` and `iq4_values`. The text stays within what is also C, so that a C compiler can check it.
"""

from __future__ import annotations

__all__ = ["CODEBOOKS", "DECODE"]

# Eight signs, bit k for weight k; of seven stored bits the eighth makes their number even.
_SIGNS = """
inline int even_signs(int s) {
    int p = s ^ s >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return s | (p & 1) << 7;
}

inline float with_sign(float x, int signs, int k) {
    return signs >> k & 1 ? -x : x;
}

inline uint load_u32(device const uchar* b) {
    return load_u16(b) | load_u16(b + 2) << 16;
}
"""

_IQ4_NL = """
inline void iq4_nl_decode(device const uchar* b, int i, thread float* w) {
    float d = load_half(b);
    for (int k = 0; k < 8; ++k) {
        int q = b[2 + i % 16 + k] >> (4 * (i / 16)) & 15;
        w[k] = d * (float)iq4_values[q];
    }
}
"""

_IQ4_XS = """
inline void iq4_xs_decode(device const uchar* b, int i, thread float* w) {
    int s = i / 32, l = i % 32;
    int scale = (b[4 + s / 2] >> (4 * (s % 2)) & 15) | ((int)load_u16(b + 2) >> (2 * s) & 3) << 4;
    float d = load_half(b) * (float)(scale - 32);
    for (int k = 0; k < 8; ++k) {
        int q = b[8 + 16 * s + l % 16 + k] >> (4 * (l / 16)) & 15;
        w[k] = d * (float)iq4_values[q];
    }
}
"""

# A sub-block of 32 has eight bytes: four row numbers, then four times seven signs below a scale of four bits.
_IQ2_XXS = """
inline void iq2_xxs_decode(device const uchar* b, int i, thread float* w) {
    device const uchar* sub = b + 2 + 8 * (i / 32);
    int l = i % 32 / 8;
    uint word = load_u32(sub + 4);
    float d = load_half(b) * (0.5f + (float)(word >> 28)) * 0.25f;
    int signs = even_signs((int)(word >> (7 * l) & 127));
    for (int k = 0; k < 8; ++k) w[k] = with_sign(d * (float)grid_iq2_xxs[8 * sub[l] + k], signs, k);
}
"""

# Eight weights have two bytes: a row number of nine bits and seven signs. A scale of four bits for 16 weights.
_IQ2_XS = """
inline void iq2_xs_decode(device const uchar* b, int i, thread float* w) {
    int scale = b[66 + i / 32] >> (4 * (i / 16 % 2)) & 15;
    uint q = load_u16(b + 2 + 2 * (i / 8));
    float d = load_half(b) * (0.5f + (float)scale) * 0.25f;
    int signs = even_signs((int)(q >> 9)), row = (int)(q & 511);
    for (int k = 0; k < 8; ++k) w[k] = with_sign(d * (float)grid_iq2_xs[8 * row + k], signs, k);
}
"""

# Row numbers of ten bits, the top two in qh; a byte of signs for eight weights.
_IQ2_S = """
inline void iq2_s_decode(device const uchar* b, int i, thread float* w) {
    int s = i / 32, l = i % 32 / 8;
    int scale = b[74 + s] >> (4 * (i / 16 % 2)) & 15;
    int row = b[2 + 4 * s + l] | (b[66 + s] >> (2 * l) & 3) << 8, signs = b[34 + 4 * s + l];
    float d = load_half(b) * (0.5f + (float)scale) * 0.25f;
    for (int k = 0; k < 8; ++k) w[k] = with_sign(d * (float)grid_iq2_s[8 * row + k], signs, k);
}
"""

# Rows of four weights. After the 64 row numbers a word for 32 weights: four times seven signs, a scale of four bits.
_IQ3_XXS = """
inline void iq3_xxs_decode(device const uchar* b, int i, thread float* w) {
    int s = i / 32, l = i % 32 / 8;
    uint word = load_u32(b + 66 + 4 * s);
    float d = load_half(b) * (0.5f + (float)(word >> 28)) * 0.5f;
    int signs = even_signs((int)(word >> (7 * l) & 127));
    for (int k = 0; k < 8; ++k) {
        int row = b[2 + 8 * s + 2 * l + k / 4];
        w[k] = with_sign(d * (float)grid_iq3_xxs[4 * row + k % 4], signs, k);
    }
}
"""

_IQ3_S = """
inline void iq3_s_decode(device const uchar* b, int i, thread float* w) {
    int s = i / 32, l = i % 32 / 8, signs = b[74 + 4 * s + l];
    float d = load_half(b) * (float)(1 + 2 * (b[106 + s / 2] >> (4 * (s % 2)) & 15));
    for (int k = 0; k < 8; ++k) {
        int at = 2 * l + k / 4, row = b[2 + 8 * s + at] | (b[66 + s] >> at & 1) << 8;
        w[k] = with_sign(d * (float)grid_iq3_s[4 * row + k % 4], signs, k);
    }
}
"""

# qh, 16 bits for 32 weights: four times the top three bits of a row number, a scale of three bits, the sign of delta.
_IQ1_S = """
inline void iq1_s_decode(device const uchar* b, int i, thread float* w) {
    int s = i / 32, l = i % 32 / 8;
    uint qh = load_u16(b + 34 + 2 * s);
    float d = load_half(b) * (float)(2 * (qh >> 12 & 7) + 1), delta = qh >> 15 ? -0.125f : 0.125f;
    int row = b[2 + 4 * s + l] | (int)(qh >> (3 * l) & 7) << 8;
    for (int k = 0; k < 8; ++k) w[k] = d * ((float)grid_iq1_s[8 * row + k] + delta);
}
"""

# qh, four bits for eight weights: the top three of a row number, the sign of delta. The half d lies in the top
# nibbles of the four words of scales, whose other twelve bits are the scales of four times 16 weights.
_IQ1_M = """
inline void iq1_m_decode(device const uchar* b, int i, thread float* w) {
    device const uchar* scales = b + 48;
    uint half_bits = (load_u16(scales) >> 12) | (load_u16(scales + 2) >> 12 << 4) |
                     (load_u16(scales + 4) >> 12 << 8) | (load_u16(scales + 6) >> 12 << 12);
    int s = i / 32, l = i % 32 / 8;
    int scale = (int)load_u16(scales + 2 * (s / 2)) >> (6 * (s % 2) + 3 * (l / 2)) & 7;
    int qh = b[32 + 2 * s + l / 2] >> (4 * (l % 2)) & 15;
    float d = half_of(half_bits) * (float)(2 * scale + 1), delta = qh & 8 ? -0.125f : 0.125f;
    int row = b[4 * s + l] | (qh & 7) << 8;
    for (int k = 0; k < 8; ++k) w[k] = d * ((float)grid_iq1_s[8 * row + k] + delta);
}
"""

# format → source of `<format>_decode`
DECODE = {
    "IQ4_NL": _SIGNS + _IQ4_NL,
    "IQ4_XS": _SIGNS + _IQ4_XS,
    "IQ2_XXS": _SIGNS + _IQ2_XXS,
    "IQ2_XS": _SIGNS + _IQ2_XS,
    "IQ2_S": _SIGNS + _IQ2_S,
    "IQ3_XXS": _SIGNS + _IQ3_XXS,
    "IQ3_S": _SIGNS + _IQ3_S,
    "IQ1_S": _SIGNS + _IQ1_S,
    "IQ1_M": _SIGNS + _IQ1_M,
}

# format → the codebook that its decoder reads
CODEBOOKS = {name: "IQ1_S" if name == "IQ1_M" else name for name in DECODE if not name.startswith("IQ4")}
