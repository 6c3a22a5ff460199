"""Encoders of sound in chunks: Qwen3-ASR's and Qwen3-Omni's, as `arch.tower.Chunked` describes them.

    mel spectrogram ─ chunks: three convolutions ─ matrix ─ + positions ─ block × layers ─ norm ─ project ─► rows

Source: tools/mtmd/models/qwen3a.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Chunked
from ggufkit.errors import ArchitectureError
from ggufkit.media.sounds import mirrored_log_mel
from ggufkit.runtime.encoders.blocks import Whole, attention_spec, load_encoder_block, read_sizes
from ggufkit.runtime.encoders.convolutions import halved, load_square
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array
from ggufkit.runtime.seen import Seen

__all__ = ["ChunkedEncoder"]

_CONVOLUTIONS = 3


class ChunkedEncoder:
    """The encoder of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.audio``.
    chunked : what it computes.

    Attributes
    ----------
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, chunked: Chunked):
        self.ops, self.ear = load.ops, chunked
        self.sizes = sizes = read_sizes(keys, "gelu_erf", named=False)
        self.width, self._bins = sizes.out, keys.count("num_mel_bins", most=1 << 10)
        self._front, channels, height = [], 1, self._bins
        for i in range(_CONVOLUTIONS):
            self._front.append(load_square(load, f"a.conv2d.{i + 1}", channels))
            channels, height = self._front[-1].rows, -(-height // 2)
        self._enter = load.linear("a.conv_out", sizes.width, channels * height)
        self._positions = load.numbers("a.position_embd.weight", -1, sizes.width)
        self._last_norm = load.norm_of("layer", "a.post_ln", sizes.width, sizes.epsilon)
        self._spec = attention_spec(sizes)
        self._blocks = [
            load_encoder_block(load, f"a.blk.{i}.", sizes, "layer", None, self._spec) for i in range(sizes.layers)
        ]
        self._project = load_steps(load, chunked.project, sizes.width, sizes.out, sizes.epsilon)

    def pieces(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Spectrograms of windows, (bins, frames) float32: whole chunks, the last filled up with zeros."""
        whole, window = mirrored_log_mel(samples, self._bins), self.ear.chunk * self.ear.chunks
        for lo in range(0, len(whole), window):
            part = whole[lo : lo + window]
            yield np.ascontiguousarray(np.pad(part, ((0, -len(part) % self.ear.chunk), (0, 0))).T)

    def encode(self, mel: np.ndarray) -> Seen:
        """What the language model gets of a window's spectrogram, (bins, frames) float32.

        Raises
        ------
        ArchitectureError : the encoder has too few positions.
        """
        ops, n = self.ops, self.ear.chunk
        x = ops.concatenate([self._chunk(mel[:, lo : lo + n]) for lo in range(0, mel.shape[1], n)])
        step = Whole(ops, self._spec, [len(x)], None)
        for block in self._blocks:
            x = block.run(x, step)
        if self._last_norm is not None:
            x = ops.norm(x, self._last_norm)
        return Seen(ops.numpy(through(self._project, x)))

    def _chunk(self, mel: np.ndarray) -> Array:
        """Rows of a chunk, with their positions."""
        ops = self.ops
        x, shape = ops.vector(np.ascontiguousarray(mel).reshape(-1, 1)), mel.shape
        for convolution in self._front:
            x, shape = halved(ops, x, shape, convolution)
            x = ops.activate(None, x, "gelu_erf")
        rows = shape[1]
        if len(self._positions) < rows:
            raise ArchitectureError(f"the encoder has {len(self._positions)} positions, a chunk {rows}")
        x = x.reshape(*shape, -1).transpose(1, 2, 0).reshape(rows, -1)  # of a row each channel's bins
        (x,) = ops.linear(x, self._enter)
        return ops.add(x, ops.vector(self._positions[:rows]))
