"""Images: from the bytes of a file to arrays of pixels, of another size, in tiles.

pixels = open_picture(data)                              # (height, width, 3) uint8
pixels = resized(pixels, (896, 896), "bilinear")         # stretched
pixels = fitted(pixels, (896, 896), "bilinear")          # its shape kept, in the middle of a black one
numbers = normalized(pixels, mean, std)                  # (3, height, width) float32

Pillow resamples as llama.cpp does, which took it over from there.

Source: tools/mtmd/mtmd-image.cpp of llama.cpp.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GgufkitError, Hint, MissingDependency, UsageError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MOST_BYTES", "aligned_size", "centred", "fitted", "normalized", "open_picture", "resized", "smooth"]

MOST_BYTES = 64 << 20  # of a file
_MOST_PIXELS = 64 << 20
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow starts programs for some others


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise MissingDependency("reading images needs Pillow", Hint("pip install 'ggufkit[vision]'")) from None
    return PIL.Image


def open_picture(data: bytes, name: str = "the image") -> np.ndarray:
    """The pixels of an image file, upright as its camera says; of an animation the first.

    Returns
    -------
    array of shape (height, width, 3), uint8; what is transparent has the colour that it would have.

    Raises
    ------
    UsageError : the bytes are not an image of a known format, are damaged, or hold too many pixels.
    MissingDependency : Pillow is not installed.
    """
    import numpy as np

    image_module = _pillow()
    from PIL import ImageOps, UnidentifiedImageError

    if len(data) > MOST_BYTES:
        raise UsageError(f"{printable(name)} has {len(data)} bytes; an image may have {MOST_BYTES}")
    try:
        with image_module.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise UsageError(
                    f"{printable(name)} has {width} × {height} pixels; an image may have {_MOST_PIXELS} in all"
                )
            pixels: np.ndarray = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except GgufkitError:
        raise
    except Exception as e:  # Pillow raises whatever a damaged file makes it raise
        why = "" if isinstance(e, UnidentifiedImageError) else f": {printable(e)}"
        raise UsageError(f"{printable(name)} is not an image that can be read ({', '.join(_FORMATS)}){why}") from None
    return pixels


def resized(pixels: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Stretched to `size`, (width, height), by the ``"bilinear"``, ``"bicubic"`` or ``"lanczos"`` method."""
    import numpy as np

    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    module = _pillow()
    how, across = module.Resampling[method.upper()], (size[0], pixels.shape[0])
    # Each pass rounds: across, then down, where Pillow by itself takes the cheaper one first.
    found: np.ndarray = np.asarray(module.fromarray(pixels).resize(across, how).resize(size, how))
    return found


def smooth(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretched to `size`, (width, height), each colour that of its four neighbours: (height, width, 3) float32.

    Nothing is rounded, and of an image that becomes smaller some pixels have no part in it: PyTorch's `interpolate`.
    """
    import numpy as np

    f, numbers = np.float32, pixels.astype(np.float32)
    for axis, new in ((1, size[0]), (0, size[1])):
        old = numbers.shape[axis]
        place = (np.arange(new, dtype=f) + f(0.5)) * (f(old) / f(new)) - f(0.5)
        low = np.floor(place).astype(int)
        share = (place - low).astype(f).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (numbers.take(np.clip(low + i, 0, old - 1), axis=axis) for i in (0, 1))
        numbers = first + (second - first) * share
    return numbers


def fitted(
    pixels: np.ndarray, size: tuple[int, int], method: str, colour: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """As large as fits into `size`, (width, height), with its shape kept, in the middle of an image of one colour."""

    return _placed(pixels, size, method, colour, math.ceil, math.floor)


def centred(
    pixels: np.ndarray, size: tuple[int, int], method: str, colour: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """As `fitted`, to the nearest pixel: Pillow's `ImageOps.pad`."""
    return _placed(pixels, size, method, colour, _half_up, _half_up)


def _placed(
    pixels: np.ndarray,
    size: tuple[int, int],
    method: str,
    colour: tuple[int, int, int],
    length: Callable[[float], int],
    place: Callable[[float], int],
) -> np.ndarray:
    import numpy as np

    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    scale = min(np.float32(size[0]) / np.float32(width), np.float32(size[1]) / np.float32(height))
    inner = [
        max(1, min(length(float(np.float32(n) * scale)), most)) for n, most in zip((width, height), size, strict=True)
    ]
    out = np.empty((size[1], size[0], 3), np.uint8)
    out[:] = colour
    x, y = place((size[0] - inner[0]) / 2), place((size[1] - inner[1]) / 2)
    out[y : y + inner[1], x : x + inner[0]] = resized(pixels, (inner[0], inner[1]), method)
    return out


def aligned_size(size: tuple[int, int], step: int, least: int, most: int) -> tuple[int, int]:
    """The size, (width, height), that is nearest to `size` in multiples of `step` and has `least` … `most` pixels."""
    import numpy as np

    f = np.float32
    width, height = size

    def multiples(value: float, rounding: Any) -> int:
        return int(rounding(f(value) / f(step))) * step

    found = max(step, multiples(width, _half_up)), max(step, multiples(height, _half_up))
    if found[0] * found[1] > most:
        beta = np.sqrt(f(height) * f(width) / f(most))
        found = max(step, multiples(width / beta, math.floor)), max(step, multiples(height / beta, math.floor))
    elif found[0] * found[1] < least:
        beta = np.sqrt(f(least) / (f(height) * f(width)))
        found = multiples(width * beta, math.ceil), multiples(height * beta, math.ceil)
    return found


def _half_up(x: float) -> int:
    return math.floor(x + 0.5)


def normalized(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(pixel / 255 − mean) / std of each colour: (height, width, 3) uint8 → (3, height, width) float32."""
    import numpy as np

    shares = pixels.astype(np.float32) / np.float32(255)
    numbers: np.ndarray = (shares - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(numbers.transpose(2, 0, 1))
