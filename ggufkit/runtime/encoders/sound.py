"""Encoders of sound: Whisper's, as `arch.tower.Ear` describes them.

    mel spectrogram ─ two convolutions ─ + positions ─ block × layers ─ (mean of two) ─ norm ─ project ─► rows

Source: tools/mtmd/models/whisper-enc.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Ear
from ggufkit.errors import ArchitectureError
from ggufkit.media.sounds import log_mel
from ggufkit.runtime.encoders.blocks import Whole, attention_spec, load_encoder_block, read_sizes
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Linear
from ggufkit.runtime.seen import Seen
from ggufkit.tensors.views import reshaped

__all__ = ["SoundEncoder"]

_TAPS = 3  # of the convolutions


class SoundEncoder:
    """The encoder of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.audio``.
    ear : what it computes.

    Attributes
    ----------
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, ear: Ear):
        self.ops, self.ear = load.ops, ear
        self.sizes = sizes = read_sizes(keys, "gelu_erf", named=False)
        self.width = sizes.out
        self._bins = keys.count("num_mel_bins", most=1 << 10)
        self._first = _convolution(load, "a.conv1d.1", sizes.width, self._bins)
        self._second = _convolution(load, "a.conv1d.2", sizes.width, sizes.width)
        self._positions = load.numbers("a.position_embd.weight", -1, sizes.width)
        self._last_norm = load.norm_of("layer", "a.post_ln", sizes.width, sizes.epsilon)
        self._spec = attention_spec(sizes)
        self._blocks = [
            load_encoder_block(load, f"a.blk.{i}.", sizes, "layer", None, self._spec) for i in range(sizes.layers)
        ]
        together = keys.count("projector.stack_factor", 1, most=64)
        self._project = load_steps(load, ear.project, sizes.width, sizes.out, sizes.epsilon, together)

    def pieces(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Spectrograms of half a minute each, (bins, 3000) float32."""
        return log_mel(samples, self._bins)

    def encode(self, mel: np.ndarray) -> Seen:
        """What the language model gets of half a minute's spectrogram, (bins, frames) float32.

        Raises
        ------
        ArchitectureError : the encoder has too few positions.
        """
        ops, width = self.ops, self.sizes.width
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(mel, ((0, 0), (1, 1))), _TAPS, axis=1)
        x = ops.vector(np.ascontiguousarray(windows.transpose(1, 0, 2).reshape(mel.shape[1], -1)))
        (x,) = ops.linear(x, self._first)  # (frames, width)
        x = ops.activate(None, x, "gelu_erf")
        edge = ops.zeros(1, width)
        rows = 2 * np.arange(mel.shape[1] // 2)[:, None] + np.arange(_TAPS)  # every other frame with its neighbours
        x = ops.pick(ops.concatenate([edge, x, edge]), rows.reshape(-1))
        (x,) = ops.linear(x.reshape(len(rows), _TAPS, width).transpose(0, 2, 1).reshape(len(rows), -1), self._second)
        x = ops.activate(None, x, "gelu_erf")
        if len(self._positions) < len(rows):
            raise ArchitectureError(f"the encoder has {len(self._positions)} positions, half a minute {len(rows)}")
        x = ops.add(x, ops.vector(self._positions[: len(rows)]))
        step = Whole(ops, self._spec, [len(rows)], None)
        for block in self._blocks:
            x = block.run(x, step)
        if self.ear.pooled:
            x = x[: len(x) // 2 * 2].reshape(len(x) // 2, 2, width).mean(axis=1)
        if self._last_norm is not None:
            x = ops.norm(x, self._last_norm)
        return Seen(ops.numpy(through(self._project, x)))


def _convolution(load: Tensors, name: str, rows: int, channels: int) -> Linear:
    """A convolution over time as a matrix: (rows, channels · taps)."""
    tensor = reshaped(load.tensor(f"{name}.weight", rows, channels, _TAPS), (rows, channels * _TAPS))
    bias = load.ops.vector(load.numbers(f"{name}.bias", rows, 1).reshape(rows))
    return Linear(load.ops.weight(tensor), f"{name}.weight", rows, channels * _TAPS, bias)
