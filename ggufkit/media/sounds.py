"""Sound: from the bytes of a WAV file to samples, and to the mel spectrograms that encoders take.

samples = open_sound(data)                               # (n,) float32, 16,000 a second, one channel
pieces = log_mel(samples, 128)                           # (bins, 3000) float32 for each half minute

Source: tools/mtmd/mtmd-audio.cpp of llama.cpp, which has it from Whisper.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RATE", "even_log_mel", "is_sound", "log_mel", "mirrored_log_mel", "open_sound", "short_log_mel"]

RATE = 16_000
_LONGEST = 3600  # seconds
_WINDOW, _HOP, _PIECE = 400, 160, 3000  # samples of a frame and between frames; frames of half a minute
_FLOOR = 5.960464477539063e-08
_CROSSINGS = 16  # of the filter that resamples, on each side


def is_sound(data: bytes) -> bool:
    """Whether the bytes are a WAV file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def open_sound(data: bytes, name: str = "the sound") -> np.ndarray:
    """The samples of a WAV file with PCM of 8, 16, 24 or 32 bits, its channels averaged.

    Returns
    -------
    array of shape (n,), float32, from −1 to 1, `RATE` a second.

    Raises
    ------
    UsageError : the bytes are not such a file, or hold more than an hour.
    """
    import numpy as np

    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, frames = file.getparams()[:4]
            if not 1000 <= rate <= 768_000 or not 1 <= channels <= 64 or not 1 <= width <= 4:
                raise UsageError(f"{printable(name)} has {channels} channels of {8 * width} bits, {rate} a second")
            if frames > _LONGEST * rate:
                raise UsageError(f"{printable(name)} lasts {frames / rate:.0f} s; {_LONGEST} are taken")
            raw = np.frombuffer(file.readframes(frames), np.uint8)
    except (wave.Error, EOFError, ValueError) as e:
        raise UsageError(f"{printable(name)} is not a WAV file with PCM: {printable(e)}") from None
    raw = raw[: raw.size // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        samples: np.ndarray = (raw[:, 0].astype(np.float32) - 128) / 128
    else:
        whole = np.zeros((len(raw), 4), np.uint8)
        whole[:, 4 - width :] = raw
        samples = whole.view("<i4")[:, 0].astype(np.float32) / np.float32(1 << 31)
    mono = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    if not mono.size:
        raise UsageError(f"{printable(name)} has no samples")
    return _resampled(mono, rate)


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """At `RATE`, by a sinc under a Hann window that leaves out what the lower of both rates cannot hold."""
    import numpy as np

    if rate == RATE:
        return samples
    cut = min(1.0, RATE / rate)
    reach = int(np.ceil(_CROSSINGS / cut))
    n = max(1, int(len(samples) * RATE / rate))
    padded = np.pad(samples, (reach, reach + 1))
    out = np.empty(n, np.float32)
    taps = np.arange(-reach, reach + 1)
    for lo in range(0, n, 1 << 14):
        place = np.arange(lo, min(n, lo + (1 << 14))) * (rate / RATE)
        whole = place.astype(np.int64)
        away = (place - whole)[:, None] - taps  # (m, taps)
        weights = cut * np.sinc(cut * away) * (0.5 + 0.5 * np.cos(np.pi * np.clip(away / reach, -1, 1)))
        out[lo : lo + len(place)] = (padded[whole[:, None] + taps + reach] * weights).sum(axis=1)
    return out


def log_mel(samples: np.ndarray, bins: int) -> Iterator[np.ndarray]:
    """Whisper's spectrograms of half a minute each, the last filled up with silence.

    Yields
    ------
    arrays of shape (bins, 3000), float32.
    """
    import numpy as np

    half = _WINDOW // 2
    samples = np.pad(samples, (0, max(0, half + 1 - len(samples))))
    padded = np.concatenate(
        [samples[half:0:-1], samples, np.zeros(30 * RATE + half, np.float32)]  # the beginning mirrored
    )
    found = _whispered(padded, bins)
    for lo in range(0, len(found) // _PIECE * _PIECE, _PIECE):
        yield np.ascontiguousarray(found[lo : lo + _PIECE].T)


def mirrored_log_mel(samples: np.ndarray, bins: int) -> np.ndarray:
    """Whisper's spectrogram of a sound as long as it is, mirrored at both ends: (frames, bins) float32."""
    import numpy as np

    half, n = _WINDOW // 2, len(samples)
    places = np.arange(-half, n + half)
    places = np.where(places < 0, -places, np.where(places < n, places, 2 * n - 2 - places))
    inside = (places >= 0) & (places < n)  # of what is shorter than a window
    return _whispered(np.where(inside, samples[np.clip(places, 0, n - 1)], 0).astype(np.float32), bins)


def _whispered(padded: np.ndarray, bins: int) -> np.ndarray:
    """Logarithms of the power in each frame, within 8 of the greatest: (frames, bins) float32."""
    import numpy as np

    frames = (len(padded) - _WINDOW) // _HOP + 1
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW))
    filters = _slaney(bins)
    found = np.empty((frames, bins), np.float32)
    for lo in range(0, frames, _PIECE):
        hi = min(frames, lo + _PIECE)
        part = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[lo * _HOP : (hi - 1) * _HOP + 1 : _HOP]
        power = np.abs(np.fft.rfft(part * window)) ** 2  # (frames, bins of the transform)
        found[lo:hi] = np.log10(np.maximum(power @ filters.T, _FLOOR))
    scaled: np.ndarray = (np.maximum(found, found.max() - 8) + 4) / 4
    return scaled


_SHORT, _LONG, _LEAST = 320, 512, 1e-3  # samples of a frame, with zeros behind it; of what a logarithm is taken


def short_log_mel(samples: np.ndarray, bins: int) -> Iterator[np.ndarray]:
    """Gemma 4's spectrograms of up to half a minute each, of magnitudes, with frames of 20 ms.

    Yields
    ------
    arrays of shape (bins, frames), float32.
    """
    import numpy as np

    window = np.zeros(_LONG)
    window[:_SHORT] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_SHORT) / _SHORT)
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    filters = _triangles(edges, _LONG)
    for lo in range(0, len(samples), 30 * RATE):
        part = samples[lo : lo + 30 * RATE]
        frames = max(0, len(part) - _SHORT // 2 - 1) // _HOP + 1
        padded = np.pad(part, (_SHORT // 2, max(0, (frames - 1) * _HOP + _LONG - len(part) - _SHORT // 2)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, _LONG)[: (frames - 1) * _HOP + 1 : _HOP]
        magnitudes = np.abs(np.fft.rfft(seen * window))  # (frames, bins of the transform)
        yield np.ascontiguousarray(np.log(np.maximum(magnitudes @ filters.T, _LEAST)).T.astype(np.float32))


_EMPHASIS = 0.97  # of a sample, which is taken off the next


def even_log_mel(samples: np.ndarray, bins: int) -> np.ndarray:
    """NeMo's spectrogram of a sound as long as it is, each bin with mean 0 and deviation 1: (bins, frames) float32.

    Raises
    ------
    UsageError : the sound is shorter than two frames.
    """
    import numpy as np

    whole = len(samples) // _HOP
    if whole < 2:
        raise UsageError(f"sound of {len(samples)} samples is too short for the model, which hears {2 * _HOP} at least")
    half = _LONG // 2
    sharper = samples.copy()
    sharper[1:] -= np.float32(_EMPHASIS) * samples[:-1]
    padded, window = np.pad(sharper, half), np.zeros(_LONG)
    lo = (_LONG - _WINDOW) // 2
    window[lo : lo + _WINDOW] = 0.5 * (1 - np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1)))
    filters = _slaney(bins, _LONG)
    found = np.empty((whole + 1, bins))
    for start in range(0, whole + 1, _PIECE):
        end = min(whole + 1, start + _PIECE)
        part = np.lib.stride_tricks.sliding_window_view(padded, _LONG)[start * _HOP : (end - 1) * _HOP + 1 : _HOP]
        found[start:end] = np.log(np.abs(np.fft.rfft(part * window)) ** 2 @ filters.T + _FLOOR)
    found[:whole] -= found[:whole].mean(axis=0)
    found[:whole] /= found[:whole].std(axis=0, ddof=1) + 1e-5
    found[whole:] = 0
    return np.ascontiguousarray(found.T.astype(np.float32))


def _slaney(bins: int, size: int = _WINDOW) -> np.ndarray:
    """Triangles that are as wide as Slaney's mel scale says, each of area 1: (bins, size / 2 + 1)."""
    import numpy as np

    linear, step, start = 200 / 3, np.log(6.4) / 27, 1000.0
    top = start / linear + np.log(RATE / 2 / start) / step
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < start / linear, mels * linear, start * np.exp((mels - start / linear) * step))
    found: np.ndarray = _triangles(edges, size) * 2 / (edges[2:, None] - edges[:-2, None])
    return found


def _triangles(edges: np.ndarray, window: int) -> np.ndarray:
    """From each edge to the one after the next, in hertz, with height 1 between: (edges − 2, window / 2 + 1)."""
    import numpy as np

    hertz = np.arange(window // 2 + 1) * (RATE / window)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (hertz - left) / (centre - left), (right - hertz) / (right - centre)
    found: np.ndarray = np.maximum(0, np.minimum(rising, falling))
    return found
