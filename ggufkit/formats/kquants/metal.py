"""Decoders of the K-quants with groups of 16, in Metal's language.

Each function decodes the eight weights from `i` on (a multiple of 8) of the block at `b`. `load_half` comes from
whoever puts them into a kernel. The text stays within what is also C, so that a C compiler can check it.
"""

from __future__ import annotations

__all__ = ["DECODE"]

# Two bits per weight: byte l of half n holds, from low to high, weights l, l + 32, l + 64, l + 96 of its 128.
_Q2_K = """
inline void q2_k_decode(device const uchar* b, int i, thread float* w) {
    int n = i / 128, shift = 2 * (i % 128 / 32), scale = b[i / 16];
    float d = load_half(b + 80) * (float)(scale & 15), m = load_half(b + 82) * (float)(scale >> 4);
    for (int k = 0; k < 8; ++k) {
        int q = b[16 + 32 * n + i % 32 + k] >> shift & 3;
        w[k] = d * (float)q - m;
    }
}
"""

# Two bits in qs, as above; the third in hmask, bit 4 n + j of byte l: not set takes 4 away. Scale j has its low four
# bits in nibble j and its top two in byte 8 + j % 4.
_Q3_K = """
inline void q3_k_decode(device const uchar* b, int i, thread float* w) {
    int n = i / 128, j = i % 128 / 32, s = i / 16;
    device const uchar* scales = b + 96;
    int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
    int scale = low | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4;
    float d = load_half(b + 108) * (float)(scale - 32);
    for (int k = 0; k < 8; ++k) {
        int l = i % 32 + k, high = b[l] >> (4 * n + j) & 1;
        int q = (b[32 + 32 * n + l] >> (2 * j) & 3) - (high ? 0 : 4);
        w[k] = d * (float)q;
    }
}
"""

# Four bits in ql: byte l of its 64 holds weights l and l + 64 of the 128. Two in qh, as in Q2_K.
_Q6_K = """
inline void q6_k_decode(device const uchar* b, int i, thread float* w) {
    int n = i / 128, j = i % 128 / 32;
    float d = load_half(b + 208) * (float)(char)b[192 + i / 16];
    for (int k = 0; k < 8; ++k) {
        int l = i % 32 + k;
        int low = b[64 * n + 32 * (j & 1) + l] >> (4 * (j >> 1)) & 15;
        int high = b[128 + 32 * n + l] >> (2 * j) & 3;
        w[k] = d * (float)((low | high << 4) - 32);
    }
}
"""

# format → source of `<format>_decode`
DECODE = {"Q2_K": _Q2_K, "Q3_K": _Q3_K, "Q6_K": _Q6_K}
