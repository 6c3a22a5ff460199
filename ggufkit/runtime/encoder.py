"""Models whose encoder reads a text, and whose decoder, if they have one, answers it (T5).

encoder     embed → block × layers → norm → keys and values for each layer of the decoder
decoder     start token → embed → (attention, attention to the encoder's text, FFN) × layers → norm → logits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import UsageError
from ggufkit.runtime.block import Block, load_block
from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.relative_attention import CrossAttention, load_cross
from ggufkit.runtime.ops import Norm
from ggufkit.runtime.step import Step

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["Encoder", "load_decoder", "load_encoder", "read"]


@dataclass(frozen=True)
class Encoder:
    """What reads, and the token that an answer begins with; it is not shown."""

    blocks: tuple[Block, ...]
    norm: Norm | None
    start: int


def load_encoder(load: Loader) -> tuple[tuple[Block, ...], Norm | None]:
    """The encoder's blocks and its last norm."""
    own = load.under("enc.")
    blocks = tuple(load_block(own, layer, []) for layer in range(load.hyper.layers))
    norm = own.block_norm("output_norm")
    load.take(own)
    return blocks, norm


def load_decoder(load: Loader, slots: list[Any]) -> list[Block]:
    """The decoder's blocks, two of each layer: what mixes its own tokens, and the rest."""
    own, blocks = load.under("dec."), []
    for layer in range(load.hyper.keys.count("decoder_block_count", load.hyper.layers, most=512)):
        block = load_block(own, layer, slots)
        cross, norm = load_cross(own, layer, slots), own.block_norm(f"blk.{layer}.cross_attn_norm")
        blocks.append(replace(block, ffn=None, ffn_norm=None))
        blocks.append(replace(block, mixers=(cross,), mixer_norm=norm))
    load.take(own)
    return blocks


def read(model: Model, tokens: Sequence[int] | np.ndarray, cache: Cache) -> None:
    """Let the encoder read a text: the cache is empty then, and what comes into it answers that text.

    Raises
    ------
    UsageError : the text is empty or too long, or one is no token of this model.
    """
    weights, ops = model.weights, model.ops
    assert weights.encoder is not None
    ids = model.checked(tokens)
    if len(ids) > model.hyper.context_length:
        raise UsageError(f"the text has {len(ids)} tokens; the model reads {model.hyper.context_length} at most")
    cache.truncate(0)
    step = Step(ops, model.tables, [(Cache(lambda length: [], len(ids)), ids)])
    x = ops.embed(weights.embedding, step.tokens)
    for block in weights.encoder.blocks:
        x = block.run(x, step)
    if weights.encoder.norm is not None:
        x = ops.norm(x, weights.encoder.norm)
    for mixer in weights.slots:
        if isinstance(mixer, CrossAttention):
            mixer.read(ops, x, cache.layers[mixer.slot])
