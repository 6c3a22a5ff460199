"""How an architecture computes: what neither metadata nor tensors of a GGUF file say.

    x ─┬─ norm ─ mixer ─ (post norm) ─ + ─┬─ norm ─ FFN or experts ─ (post norm) ─ + ─ x
       └───────────────────────────────┘  └──────────────────────────────────────┘

Everything else a model's tensors tell: which mixer a block has (attention, a state space, a delta net, …), biases,
norms of queries and keys, norms after mixer or FFN, a gate, experts, learned positions, sinks are there or not. Sizes
and constants come from the metadata.

Source: src/models/*.cpp and `llama_model_rope_type` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """The traits of an architecture's blocks.

    Attributes
    ----------
    norm : ``"rms"`` or ``"layer"`` (with mean).
    biased_norms : RMS norms may have biases, too.
    bare_norms : those of mixers, FFN and output have no weights.
    rope : which two of a head's numbers turn together: ``"norm"`` neighbours, ``"neox"`` those half a head apart; None
        for learned positions. Where a file has sections for several streams of positions it is always ``"neox"``.
    activation : of the FFN: silu, gelu, relu, relu_squared, swiglu_oai, xielu.
    ffn_norm, output_norm : the tensors that normalise the FFN's input and that of the output matrix.
    parallel : whether attention and FFN read the same x: ``"no"``; ``"key"``, when `use_parallel_residual` says so;
        ``"shared"``, when there is no second norm.
    scaled_embedding : embeddings are multiplied by √width.
    window_period : of so many layers the last sees everything and the others a window; 0 for no windows.
    window_layers : models of another number of layers have none; 0 for any.
    window_last : the first of these layers sees everything instead.
    window : the window's size where metadata leaves it out; 0 for none.
    local_rope_base : the rope base of layers with a window; None for that of all layers.
    local_rope_scaled : whether rope scaling (linear, yarn) also applies to layers with a window.
    no_rope_period : every so many layers one goes without rope; 0 for none.
    logit_multiplied : logits are multiplied by the key `logit_scale`, not divided.
    attention_cap, logit_cap : soft caps where metadata leaves them out; 0 for none.
    scale_by_width : with this many layers attention is scaled by √(width / heads) instead of √(head size).
    router : where metadata leaves it out, of experts' scores: ``"softmax"`` over all, ``"top"``: over the chosen ones,
        or ``"sigmoid"``; or a function of (layers, vocabulary).
    router_normalized : the chosen experts' weights are divided by their sum, where metadata leaves it out.
    expert_inputs : what is multiplied by an expert's weight is its input, not its result.
    shared_scale : multiplies the sum of what the experts give and what all tokens share.
    early_router : the router reads what comes into the block, before its mixer and norms.
    full_rope_factors : the tensor of rope factors is for layers without a window only.
    rope_layers : ``"all"``; ``"local"``: only layers with a window, if there are any; ``"local or dense"``: these and
        the dense ones at the beginning; ``"key"``: all, or none where `rope.scaling.finetuned` is false.
    late_norm : queries and keys are normalised after rope.
    plain_norm : so they are, without weights, where there is rope.
    value_norm : values are normalised, without weights.
    alibi : of so many layers, the greatest bias of ALiBi, which then stands for rope; 0 for none.
    attention_scale : of scores where it is neither metadata's nor 1/√(head size), or a function of the head size; 0 for
        these.
    chunked : windows begin at multiples of their size instead of moving along.
    temperature : (scale, length, first): queries of layers without rope are multiplied by
        1 + scale · ln(1 + ⌊(position + first) / length⌋); None for no such thing.
    index_rope : of latent attention to keys that an index chooses: `rope` of the index; None without an index.
    index_epsilon : of the norm of the index's keys; 0 for that of all norms.
    index_turned_last : what turns of the index is the end of its queries and keys, not their beginning.
    gate : what attention's gate is: ``"sigmoid"``, ``"softplus"``, or ``"log2"``, the softplus log₂(1 + 2ˣ).
    mixed_sections : pairs of the axes of positions take turns, and do not lie in sections one behind the other.
    two_sided : windows of an encoder reach half their size to both sides.
    multipliers : of (width, layers), where metadata leaves them out: factors of the embedding, of what blocks add, and
        of logits; None for 1.
    embedding_norm : embeddings are normalised, without weights.
    embedding_is_output : embeddings may be missing, and are the output matrix then.
    embedding_added : `layer_output_scale` multiplies the embedding, which is added to what a block gives.
    head_norm : kind and epsilon of the norms of queries and keys, where they are others; None for `norm`.
    norms_of_heads : norms of queries and keys that are as long as all heads are of each head, with weights of its own.
    post_norm_epsilon : of the norms of what is added to x; None for that of all.
    inner_norms : norms called *_output_norm are of what is added to x, not of the sum.
    full_rope_share : which part of `rope.dimension_count` turns in layers without a window.
    clamp_first : limits of the FFN (`swiglu_clamp_exp`) are for its gate, not for what silu makes of that.
    diffusion : tokens see each other, and texts begin as masks (see `runtime.diffusion`).
    projected_embedding : the output matrix makes an encoder's vectors of what the last block gives.
    encoder : ``"only"``: the model is an encoder, whose tensors are called so; ``"first"``: an encoder reads what is
        asked, and a decoder answers.
    plain_activation : of an FFN without a gate, where it is another.
    head_pooling, head_activation : of a classification head, where metadata leaves them out: ``"mean"`` or ``""`` for
        one token, the first (of a causal model the last); and ``"tanh"``, ``"silu"``, ``"gelu"``.
    head_softmax : what comes out of it goes through a softmax.
    silent : tokens that are never given, as (first, behind the last).
    normed_stream : the normalised x is what mixers and FFN are added to, multiplied by `residual_scale`.
    delta_gate : what multiplies what a delta net finds: ``"silu"`` or ``"sigmoid"``.
    wide_heads : heads of a Mamba are of several numbers each, and have one dt.
    lightning : blocks with two norms of attention have lightning attention.
    unread : beginnings of the names, in a block, of tensors that texts do not go through.
    """

    norm: str = "rms"
    biased_norms: bool = False
    bare_norms: bool = False
    rope: str | None = "norm"
    activation: str = "silu"
    ffn_norm: str = "ffn_norm"
    output_norm: str = "output_norm"
    parallel: str = "no"
    scaled_embedding: bool = False
    window_period: int = 0
    window_layers: int = 0
    window_last: bool = False
    window: int = 0
    local_rope_base: float | None = None
    local_rope_scaled: bool = True
    no_rope_period: int = 0
    logit_multiplied: bool = False
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    scale_by_width: int = 0
    router: str | Callable[[int, int], str] = "softmax"
    router_normalized: bool = True
    expert_inputs: bool = False
    shared_scale: float = 1.0
    early_router: bool = False
    full_rope_factors: bool = False
    rope_layers: str = "all"
    late_norm: bool = False
    plain_norm: bool = False
    value_norm: bool = False
    alibi: Callable[[int], float] = lambda layers: 0.0
    attention_scale: float | Callable[[int], float] = 0.0
    chunked: bool = False
    temperature: tuple[float, int, int] | None = None
    index_rope: str | None = None
    index_epsilon: float = 1e-6
    index_turned_last: bool = False
    gate: str = "sigmoid"
    mixed_sections: bool = False
    two_sided: bool = False
    multipliers: Callable[[int, int], tuple[float, float, float]] | None = None
    embedding_norm: bool = False
    embedding_is_output: bool = False
    embedding_added: bool = False
    head_norm: tuple[str, float] | None = None
    norms_of_heads: bool = False
    post_norm_epsilon: float | None = None
    inner_norms: bool = False
    full_rope_share: float = 1.0
    clamp_first: bool = False
    diffusion: bool = False
    projected_embedding: bool = False
    encoder: str = ""
    plain_activation: str = ""
    head_pooling: str = ""
    head_activation: str = "tanh"
    head_softmax: bool = False
    silent: tuple[int, int] = (0, 0)
    normed_stream: bool = False
    delta_gate: str = "silu"
    wide_heads: bool = False
    lightning: bool = False
    unread: tuple[str, ...] = ()
