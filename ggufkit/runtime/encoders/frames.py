"""Sound that goes to the language model as it is: pieces of the wave, one matrix.

Source: tools/mtmd/models/gemma4ua.cpp and `mtmd_audio_preprocessor_gemma4ua` in tools/mtmd/mtmd-audio.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Frames
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.seen import Seen

__all__ = ["FrameEncoder"]

_EPSILON = 1e-6


class FrameEncoder:
    """The way of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.audio``.
    frames : what it computes.

    Attributes
    ----------
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, frames: Frames):
        self.ops, self.ear = load.ops, frames
        self.width = keys.count("projection_dim", most=1 << 17)
        self._project = load_steps(load, frames.project, frames.samples, self.width, _EPSILON)

    def pieces(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """All of it, with silence behind it: (n, samples of a row) float32."""
        missing = -len(samples) % self.ear.samples
        yield np.pad(samples, (0, missing)).astype(np.float32).reshape(-1, self.ear.samples)

    def encode(self, rows: np.ndarray) -> Seen:
        """What the language model gets of pieces, (n, samples of a row) float32."""
        return Seen(self.ops.numpy(through(self._project, self.ops.vector(rows))))
