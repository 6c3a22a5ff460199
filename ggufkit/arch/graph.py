"""How an architecture computes: what neither metadata nor tensors of a GGUF file say.

    x ─┬─ norm ─ q k v ─ rope ─ attention ─ out ─ (post norm) ─ + ─┬─ norm ─ FFN or experts ─ (post norm) ─ + ─ x
       └────────────────────────────────────────────────────────┘  └──────────────────────────────────────┘

Everything else a model's tensors tell: biases, norms of queries and keys, norms after attention or FFN, a gate,
experts, learned positions, sinks are there or not. Sizes and constants come from the metadata.

Source: src/models/*.cpp and `llama_model_rope_type` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """The traits of an architecture's blocks.

    Attributes
    ----------
    norm : ``"rms"`` or ``"layer"`` (with mean).
    rope : which two of a head's numbers turn together: ``"norm"`` neighbours, ``"neox"`` those half a head apart; None
        for learned positions.
    activation : of the FFN: silu, gelu, relu, relu_squared, swiglu_oai.
    ffn_norm : the tensor that normalises the FFN's input.
    parallel : whether attention and FFN read the same x: ``"no"``; ``"key"``, when `use_parallel_residual` says so;
        ``"shared"``, when there is no second norm.
    scaled_embedding : embeddings are multiplied by √width.
    window_period : of so many layers the last sees everything and the others a window; 0 for no windows.
    window : the window's size where metadata leaves it out; 0 for none.
    local_rope_base : the rope base of layers with a window; None for that of all layers.
    local_rope_scaled : whether rope scaling (linear, yarn) also applies to layers with a window.
    no_rope_period : every so many layers one goes without rope; 0 for none.
    attention_cap, logit_cap : soft caps where metadata leaves them out; 0 for none.
    scale_by_width : with this many layers attention is scaled by √(width / heads) instead of √(head size).
    router : ``"softmax"`` over all experts, or ``"top"``: over the chosen ones.
    router_normalized : the chosen experts' weights are divided by their sum.
    """

    norm: str = "rms"
    rope: str | None = "norm"
    activation: str = "silu"
    ffn_norm: str = "ffn_norm"
    parallel: str = "no"
    scaled_embedding: bool = False
    window_period: int = 0
    window: int = 0
    local_rope_base: float | None = None
    local_rope_scaled: bool = True
    no_rope_period: int = 0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    scale_by_width: int = 0
    router: str = "softmax"
    router_normalized: bool = True
