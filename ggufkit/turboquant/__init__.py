"""TurboQuant: vectors in a few bits per coordinate, without looking at any data first.

    y = R x / |x|          R orthogonal and random: each of the d coordinates is about N(0, 1/d), whatever x was
    i = nearest level      of 2ᵇ, the Lloyd–Max quantizer of that distribution
    x' = s Rᵀ c[i]         s is stored as float16

    from ggufkit import turboquant

    packed = turboquant.encode(x, bits=4)      # x: (rows, d) float32
    packed.nbytes                              # rows × (2 + d · bits / 8)
    turboquant.decode(packed)                  # (rows, d) float32, near x
    turboquant.inner_products(packed, query)   # (rows,) ⟨query, x'⟩, without decoding

    codebooks   the levels: for a Gaussian, and for the exact density of d coordinates
    rotation    signs, then a Walsh–Hadamard transform; a dense one to compare with
    vectors     encode and decode; how codes lie in bytes
    prod        the paper's inner-product version, for its tables

Source: Zandieh et al., "TurboQuant", 2025 (arXiv:2504.19874). Before it: Vargaftik et al., DRIVE (2021) and EDEN
(2022), who rotate and quantize so, and have the scales; Malinovskii et al., HIGGS (arXiv:2411.17525); Gao and Long,
RaBitQ (2024), for the unbiased scale.
"""

from ggufkit.turboquant.codebooks import codebook, distortion
from ggufkit.turboquant.prod import PackedProd, decode_prod, encode_prod
from ggufkit.turboquant.rotation import Dense, Hadamard
from ggufkit.turboquant.vectors import BITS, SCALES, Packed, decode, encode, inner_products

__all__ = [
    "BITS",
    "SCALES",
    "Dense",
    "Hadamard",
    "Packed",
    "PackedProd",
    "codebook",
    "decode",
    "decode_prod",
    "distortion",
    "encode",
    "encode_prod",
    "inner_products",
]
