"""A model's eyes and ears: prompts in which images and sound stand where a marker was.

Source: tools/mtmd/mtmd.cpp of llama.cpp.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.projectors import ear_of, tower_of
from ggufkit.arch.tower import (
    Chunked,
    Conformer,
    Ear,
    Either,
    FastConformer,
    Frames,
    Mobile,
    Queried,
    Silent,
    Tower,
    Twofold,
)
from ggufkit.errors import ArchitectureError, GGUFError, UsageError, printable
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.media.pictures import open_picture
from ggufkit.media.sounds import is_sound, open_sound
from ggufkit.runtime.encoders.chunked import ChunkedEncoder
from ggufkit.runtime.encoders.conformer import ConformerEncoder
from ggufkit.runtime.encoders.fast_conformer import FastConformerEncoder
from ggufkit.runtime.encoders.frames import FrameEncoder
from ggufkit.runtime.encoders.layout import OneToken
from ggufkit.runtime.encoders.mobile import MobileEncoder
from ggufkit.runtime.encoders.picture import PictureEncoder
from ggufkit.runtime.encoders.queried import QueriedEncoder
from ggufkit.runtime.encoders.sound import SoundEncoder
from ggufkit.runtime.encoders.twofold import TwofoldEncoder
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Ops
from ggufkit.runtime.seen import MARKER, Prompt, Seen, Shown

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Media", "Prepared", "load_media"]


@dataclass(frozen=True)
class Prepared:
    """A file on its way to an encoder.

    Attributes
    ----------
    key : the same for the same bytes.
    parts : text, and arrays that the encoder takes.
    encode : what it makes of them.
    media : whose it is.
    """

    media: Media
    key: str
    parts: Sequence[str | np.ndarray]
    encode: Callable[[np.ndarray], Seen]


class Media:
    """The encoders of an mmproj file, beside a model.

    Attributes
    ----------
    gguf : the open file.
    pictures, sounds : its encoders, or None.
    """

    def __init__(self, gguf: GGUF, tokenizer: Tokenizer, ops: Ops, shown: Shown, width: int):
        self.gguf, self._tokenizer, self._shown = gguf, tokenizer, shown
        load = Tensors(gguf.path, gguf.tensors, ops)
        self.pictures, self.sounds = _pictures(load, gguf), _sounds(load, gguf)
        found = [encoder for encoder in (self.pictures, self.sounds) if encoder is not None]
        if not found:
            raise ArchitectureError(f"{printable(gguf.path)} has no encoder that is known")
        if wrong := [encoder.width for encoder in found if encoder.width != width]:
            raise GGUFError(
                f"its encoder makes rows of {wrong[0]} numbers, and the model has {width}: it belongs to another model",
                gguf.path,
            )
        if unknown := [name for name in gguf.tensors if name not in load.taken]:
            raise load.fail(f"nothing is known about the tensor {printable(unknown[0])} of such an encoder")

    def prompt(self, text: str, media: Sequence[bytes], add_special: bool = True, marker: str = MARKER) -> Prompt:
        """Token ids of a text with images where its markers are; those without a marker come first.

        Parameters
        ----------
        media : files: PNG, JPEG, WebP, …
        add_special : put BOS and EOS where the vocabulary wants them.

        Raises
        ------
        UsageError : there are more markers than files, or a file is not what can be read.
        MissingDependency : Pillow is not installed.
        """
        parts = text.split(marker)
        if len(parts) - 1 > len(media):
            raise UsageError(f"the prompt has {len(parts) - 1} places for images, and there are {len(media)}")
        parts = [""] * (len(media) + 1 - len(parts)) + parts
        encode = self._tokenizer.encode
        ends = encode("", add_special=add_special)
        vocab = self._tokenizer.vocab
        eos = [ends.pop()] if len(ends) > (vocab.add_bos and vocab.bos is not None) else []
        ids, seen = [*ends, *encode(parts[0], add_special=False)], list[Seen]()
        for data, after in zip(media, parts[1:], strict=True):
            found = self.encoded(self.prepared(data))
            ids += [*found, *encode(after, add_special=False)]
            seen += found.seen
        return Prompt([*ids, *eos], seen)

    def prepared(self, data: bytes) -> Prepared:
        """What a file becomes before an encoder sees it; any thread may do it.

        Raises
        ------
        UsageError : it is not what can be read, or there is no encoder for it.
        MissingDependency : Pillow is not installed.
        """
        where = printable(self.gguf.path)
        if is_sound(data):
            if self.sounds is None:
                raise UsageError(f"there is no encoder of sound that can be run in {where}")
            ear = self.sounds.ear
            parts: list[str | np.ndarray] = [ear.begin, *self.sounds.pieces(open_sound(data)), ear.end]
            encode: Callable[[np.ndarray], Seen] = self.sounds.encode
        else:
            if self.pictures is None:
                raise UsageError(f"there is no encoder of images in {where}, and this is not a WAV file")
            parts, encode = self.pictures.layout(open_picture(data)), self.pictures.encode
        return Prepared(self, hashlib.sha256(data).hexdigest(), [part for part in parts if len(part)], encode)

    def encoded(self, prepared: Prepared) -> Prompt:
        """What stands in a prompt for a file."""
        ids: list[int] = []
        found: list[Seen] = []
        for i, part in enumerate(prepared.parts):
            if isinstance(part, str):
                ids += self._encoded(part)
                continue
            name = f"{prepared.key} {i}"
            seen = self._shown.recall(name) or self._shown.remember(name, prepared.encode(part))
            ids += seen.ids
            found.append(seen)
        return Prompt(ids, found)

    def _encoded(self, text: str) -> list[int]:
        if isinstance(text, (OneToken, Either)):
            wanted = (text.token if isinstance(text, Either) else text).encode()
            pieces = self._tokenizer.piece
            found = next((i for i in range(len(self._tokenizer)) if pieces(i, special=True) == wanted), None)
            if found is not None:
                return [found]
        return self._tokenizer.encode(text, add_special=False)


def _kind(keys: Keys, gguf: GGUF) -> str:
    kind = gguf.metadata.get("clip.projector_type") or keys.get("projector_type")
    return kind if isinstance(kind, str) else ""


Seeing = PictureEncoder | TwofoldEncoder | QueriedEncoder | MobileEncoder
_SEEING: Mapping[type, Callable[[Tensors, Keys, Any], Seeing]] = {
    Tower: PictureEncoder,
    Twofold: TwofoldEncoder,
    Queried: QueriedEncoder,
    Mobile: MobileEncoder,
}


def _pictures(load: Tensors, gguf: GGUF) -> Seeing | None:
    keys = Keys(gguf, "clip.vision")
    if not Keys(gguf, "clip").flag("has_vision_encoder", False):
        return None
    if (tower := tower_of(kind := _kind(keys, gguf))) is None:
        raise load.fail(f"an encoder of images with the projector {printable(kind)} cannot be run")
    return _SEEING[type(tower)](load, keys, tower)


Hearing = SoundEncoder | ChunkedEncoder | ConformerEncoder | FastConformerEncoder | FrameEncoder
_HEARING: Mapping[type, Callable[[Tensors, Keys, Any], Hearing]] = {
    Ear: SoundEncoder,
    Chunked: ChunkedEncoder,
    Conformer: ConformerEncoder,
    FastConformer: FastConformerEncoder,
    Frames: FrameEncoder,
}


def _sounds(load: Tensors, gguf: GGUF) -> Hearing | None:
    keys = Keys(gguf, "clip.audio")
    if not Keys(gguf, "clip").flag("has_audio_encoder", False):
        return None
    if (ear := ear_of(kind := _kind(keys, gguf))) is None:
        raise load.fail(f"an encoder of sound with the projector {printable(kind)} cannot be run")
    if isinstance(ear, Silent):
        load.taken.update(name for name in load.tensors if name.startswith(("a.", "mm.a.")))
        return None
    return _HEARING[type(ear)](load, keys, ear)


def load_media(path: str | os.PathLike[str], tokenizer: Tokenizer, ops: Ops, shown: Shown, width: int) -> Media:
    """Open an mmproj file beside a model.

    Raises
    ------
    FileError, GGUFError : the file cannot be read, is malformed, is not an mmproj, or belongs to another model.
    ArchitectureError : an encoder is not known, or a tensor or key is missing.
    """
    gguf = open_gguf(path)
    try:
        if gguf.metadata.get("general.architecture") != "clip":
            raise GGUFError("this is not the projector of a model that sees or hears (an mmproj file)", gguf.path)
        return Media(gguf, tokenizer, ops, shown, width)
    except BaseException:
        gguf.close()
        raise
