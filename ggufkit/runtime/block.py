"""A block: what mixes tokens, then what works on each by itself, both added to the stream x.

    x ─┬─ norm ─ mixers ─ (post norm) ─ + ─ (sum norm) ─┬─ norm ─ FFN ─ (post norm) ─ + ─ (sum norm) ─
       └────────────────────────────────┘               └─────────────────────────────┘

Some blocks have only one of the two; in some both read the same x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.feed_forward import Beside, FeedForward, Mixture, Twins, load_beside, load_feed_forward
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers import Mixer, load_mixers
from ggufkit.runtime.mixers.rwkv import ChannelMix, load_channel_mix
from ggufkit.runtime.ops import Array, Norm, Ops
from ggufkit.runtime.per_layer import Embedding, PerLayerInput, load_per_layer_input
from ggufkit.runtime.step import Step

__all__ = ["Block", "load_block"]

_POST_NORM, _SUM_NORM = "post_attention_norm", "attn_output_norm"


@dataclass(frozen=True)
class Block:
    """One layer; a norm that the model does without is None.

    Attributes
    ----------
    mixers : their results are added up.
    ffn : a dense network or experts, both with norms of their own, a channel mix, or None.
    mixer_norm, ffn_norm : of their inputs. `ffn_norm` of a block whose FFN reads the mixers' input is the same object.
    mixer_post_norm, ffn_post_norm : of their results, before these are added to x.
    mixer_sum_norm, ffn_sum_norm : of x after the addition.
    parallel : mixers and FFN read the same x.
    scale : multiplies what is added to x.
    again_norm : of x and what came into the block, added once more after the mixers, or None.
    early_router : the FFN's experts are chosen by what comes into the block.
    extra : what adds the token's own vector, of this layer or its embedding; or None.
    output_scale : multiplies x at the end.
    beside : experts that read what comes into the block; what they give is added at its end; or None.
    stream_scale : what mixers and FFN are added to is their normalised input, multiplied by this; None for x itself.
    mixer_gain, ffn_gain : arrays of shape (1, width) that the results are multiplied with, or None.
    """

    mixers: tuple[Mixer, ...]
    ffn: FeedForward | Mixture | Twins | ChannelMix | None
    mixer_norm: Norm | None
    mixer_post_norm: Norm | None
    mixer_sum_norm: Norm | None
    ffn_norm: Norm | None
    ffn_post_norm: Norm | None
    ffn_sum_norm: Norm | None
    parallel: bool
    scale: float
    again_norm: Norm | None = None
    early_router: bool = False
    extra: PerLayerInput | Embedding | None = None
    output_scale: float = 1.0
    beside: Beside | None = None
    stream_scale: float | None = None
    mixer_gain: Array | None = None
    ffn_gain: Array | None = None

    def run(self, x: Array, step: Step) -> Array:
        """(n, width) → (n, width); `x` itself may be used up."""
        ops = step.ops
        before = ops.copy(x) if self.again_norm is not None else None
        scores = self.ffn.scores(ops, x) if self.early_router and isinstance(self.ffn, Mixture) else None
        more = self.beside.run(ops, x) if self.beside is not None else None
        if self.parallel:
            mixed, fed = self.mixed(x, step), self.fed(x, step)
            return ops.add(ops.add(fed, mixed), x)
        if self.mixers:
            kept = self._kept(ops, x, self.mixer_norm)
            x = _normed(ops, ops.add(self.mixed(x, step), kept), self.mixer_sum_norm)
        if before is not None:
            x = _normed(ops, ops.add(x, before), self.again_norm)
        if self.ffn is not None:
            kept = self._kept(ops, x, self.ffn_norm)
            x = _normed(ops, ops.add(self.fed(x, step, scores), kept), self.ffn_sum_norm)
        if more is not None:
            x = ops.add(x, more)
        if self.extra is not None:
            x = ops.add(self.extra.run(x, step), x)
        return x if self.output_scale == 1 else ops.scale(x, self.output_scale)

    def _kept(self, ops: Ops, x: Array, norm: Norm | None) -> Array:
        """What mixers or FFN are added to."""
        return x if self.stream_scale is None else ops.scale(_normed(ops, x, norm), self.stream_scale)

    def mixed(self, x: Array, step: Step) -> Array:
        """What the mixers add to x."""
        x = _normed(step.ops, x, self.mixer_norm)
        mixed = self.mixers[0].run(x, step)
        for mixer in self.mixers[1:]:
            mixed = step.ops.add(mixed, mixer.run(x, step))
        if self.mixer_gain is not None:
            mixed = mixed * self.mixer_gain
        return self._scaled(step.ops, _normed(step.ops, mixed, self.mixer_post_norm))

    def fed(self, x: Array, step: Step, scores: Array | None = None) -> Array:
        """What the FFN adds to x; `scores` are those of an early router."""
        assert self.ffn is not None
        ops, x = step.ops, _normed(step.ops, x, self.ffn_norm)
        if isinstance(self.ffn, ChannelMix):
            fed = self.ffn.run(x, step)
        elif isinstance(self.ffn, Mixture):
            fed = self.ffn.run(ops, x, scores)
        else:
            fed = self.ffn.run(ops, x)
        if self.ffn_gain is not None:
            fed = fed * self.ffn_gain
        return self._scaled(ops, _normed(ops, fed, self.ffn_post_norm))

    def _scaled(self, ops: Ops, x: Array) -> Array:
        return x if self.scale == 1 else ops.scale(x, self.scale)


def _normed(ops: Ops, x: Array, norm: Norm | None) -> Array:
    return x if norm is None else ops.norm(x, norm)


def load_block(load: Loader, layer: int, slots: list[Any]) -> Block:
    """A layer's tensors, checked and taken; `slots` are the mixers so far that remember something."""
    hyper, graph, at, width = load.hyper, load.graph, f"blk.{layer}.", load.hyper.width
    mixers = load_mixers(load, layer, slots)
    ffn = load_channel_mix(load, layer, slots) or load_feed_forward(load, layer)
    if not mixers and ffn is None and not _is_empty(load, layer):
        raise load.fail(f"nothing is known about the tensors of block {layer} of a {hyper.name} model")
    mixer_norm, ffn_norm = load.block_norm(f"{at}attn_norm"), load.block_norm(f"{at}{graph.ffn_norm}")
    parallel = graph.parallel == "key" and hyper.parallel_residual
    if graph.parallel == "shared" and ffn_norm is None:
        # Of two norms on the same input the second is attention's.
        parallel, ffn_norm = True, mixer_norm
        mixer_norm = load.norm(f"{at}attn_norm_2", width) or mixer_norm
    if not mixers and ffn_norm is None:
        mixer_norm, ffn_norm = None, mixer_norm  # the block's only norm
    post = None if graph.post_norm_epsilon is None else (graph.norm, graph.post_norm_epsilon)
    mixer_post_norm = None if graph.ffn_norm == _POST_NORM else load.norm(f"{at}{_POST_NORM}", width, kind=post)
    mixer_sum_norm = None if graph.ffn_norm == _SUM_NORM else load.norm(f"{at}{_SUM_NORM}", width)
    ffn_post_norm, ffn_sum_norm = (
        load.norm(f"{at}post_ffw_norm", width, kind=post),
        load.norm(f"{at}layer_output_norm", width),
    )
    if graph.inner_norms:
        mixer_post_norm, mixer_sum_norm = mixer_post_norm or mixer_sum_norm, None
        ffn_post_norm, ffn_sum_norm = ffn_post_norm or ffn_sum_norm, None
    if hyper.keys.flag("swin_norm", False):
        mixer_norm, mixer_post_norm, ffn_norm, ffn_post_norm = None, mixer_norm, None, ffn_norm
    load.taken.update(name for name in load.tensors if name.startswith(tuple(f"{at}{start}" for start in graph.unread)))
    name = f"{at}layer_output_scale.weight"
    output_scale = float(load.vector(name, 1)[0]) if load.has(name) else 1.0
    extra: PerLayerInput | Embedding | None = load_per_layer_input(load, layer)
    if (every := hyper.keys.count("rescale_every_n_layers", 0, least=0)) and (layer + 1) % every == 0:
        output_scale = 0.5
    if graph.embedding_added:
        extra, output_scale = Embedding(output_scale), 1.0
    return Block(
        mixers=mixers,
        ffn=ffn,
        mixer_norm=mixer_norm,
        mixer_post_norm=mixer_post_norm,
        mixer_sum_norm=mixer_sum_norm,
        ffn_norm=None if isinstance(ffn, Twins) else ffn_norm,
        ffn_post_norm=ffn_post_norm,
        ffn_sum_norm=ffn_sum_norm,
        parallel=parallel,
        scale=1.0 if graph.normed_stream else hyper.residual_scale,
        again_norm=load.norm(f"{at}attn_norm_2", width) if mixer_sum_norm is not None else None,
        early_router=graph.early_router,
        extra=extra,
        output_scale=output_scale,
        beside=load_beside(load, layer),
        stream_scale=hyper.residual_scale if graph.normed_stream else None,
    )


def _is_empty(load: Loader, layer: int) -> bool:
    """Whether a block is said to have neither: then x goes through as it is."""
    return load.hyper.heads[layer] == 0 and load.hyper.keys.per_layer("feed_forward_length", layer) == 0
