"""What it costs that activations are rounded to 8 bits where they meet quantized weights, whatever the weights.

    KLD ≈ ½ E[Σ over columns (∂ₓ · δ)²]        ∂ₓ: the gradient at what meets a matrix, δ: by how much it is rounded

Rounding errors of columns are as good as independent, so that squares add up. Two forms of activations are rounded in
llama.cpp as here, 32 at a time for types of small blocks and 256 for the K family and most of IQ; one large value makes
the errors of all that share its scale larger. Metal and MLX do not round.

Source: `quantize_row_q8_0` and `quantize_row_q8_K` of llama.cpp, without the rounding of the scale.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.table import FORMATS
from ggufkit.runtime.cpu.products import product_of

__all__ = ["FORMS", "form_of", "rounding_errors"]

# Forms of rounded activations, and how many share a scale.
FORMS = {"Q8_0": 32, "Q8_K": 256}


def form_of(type_: str) -> str | None:
    """How activations are rounded that meet weights of a type; None if they are not."""
    product = product_of(FORMATS[type_])
    return None if product is None or product.form not in FORMS else product.form


def rounding_errors(x: np.ndarray, form: str) -> np.ndarray:
    """x − its rounded self, of rows (n, cols) float32; zeros where rows are no whole blocks of the form."""
    group = FORMS[form]
    if x.shape[1] % group:
        return np.zeros(x.shape, np.float32)
    blocks = x.reshape(len(x), -1, group)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    levels = np.rint(blocks / np.where(scale > 0, scale, np.float32(1)))
    result: np.ndarray = (blocks - levels * scale).reshape(x.shape)
    return result
