"""llama.cpp's multimodal library, from the library inside `xllamacpp`: the oracle for images and sound.

with llama.Model("model.gguf", context=2048) as model, mtmd.Media(model, "mmproj.gguf") as media:
    chunks = media.chunks("What is <__media__>?", [pixels])     # (h, w, 3) uint8, or (samples,) float32
    media.logits(chunks)                                        # of the last token, (vocab,) float32

Of a chunk it says its tokens, or the embeddings that its encoder gives.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence

import llama
import numpy as np

_pointer, _i32, _size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t


class _Parameters(ctypes.Structure):
    """`mtmd_context_params`."""

    _fields_ = [
        ("use_gpu", ctypes.c_bool),
        ("device", _pointer),
        ("print_timings", ctypes.c_bool),
        ("n_threads", ctypes.c_int),
        ("image_marker", ctypes.c_char_p),
        ("media_marker", ctypes.c_char_p),
        ("flash_attn_type", ctypes.c_int),
        ("warmup", ctypes.c_bool),
        ("image_min_tokens", ctypes.c_int),
        ("image_max_tokens", ctypes.c_int),
        ("cb_eval", _pointer),
        ("cb_eval_user_data", _pointer),
        ("batch_max_tokens", ctypes.c_int32),
        ("progress_callback", _pointer),
        ("progress_callback_user_data", _pointer),
        ("spare", ctypes.c_uint8 * 256),
    ]


class _Text(ctypes.Structure):
    """`mtmd_input_text`."""

    _fields_ = [
        ("text", ctypes.c_char_p),
        ("text_len", _size),
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
    ]


_quiet = llama._LOG(lambda level, message, data: None)


@functools.cache
def library() -> ctypes.CDLL:
    lib = llama.library()
    for name, result, arguments in (
        ("mtmd_context_params_default", _Parameters, []),
        ("mtmd_init_from_file", _pointer, [ctypes.c_char_p, _pointer, _Parameters]),
        ("mtmd_free", None, [_pointer]),
        ("mtmd_bitmap_init", _pointer, [ctypes.c_uint32, ctypes.c_uint32, _pointer]),
        ("mtmd_bitmap_init_from_audio", _pointer, [_size, _pointer]),
        ("mtmd_bitmap_free", None, [_pointer]),
        ("mtmd_input_chunks_init", _pointer, []),
        ("mtmd_input_chunks_size", _size, [_pointer]),
        ("mtmd_input_chunks_get", _pointer, [_pointer, _size]),
        ("mtmd_input_chunks_free", None, [_pointer]),
        ("mtmd_tokenize", _i32, [_pointer, _pointer, ctypes.POINTER(_Text), _pointer, _size]),
        ("mtmd_input_chunk_get_type", ctypes.c_int, [_pointer]),
        ("mtmd_input_chunk_get_tokens_text", ctypes.POINTER(_i32), [_pointer, ctypes.POINTER(_size)]),
        ("mtmd_input_chunk_get_n_tokens", _size, [_pointer]),
        ("mtmd_encode_chunk", _i32, [_pointer, _pointer]),
        ("mtmd_get_output_embd", ctypes.POINTER(ctypes.c_float), [_pointer]),
        ("llama_model_n_embd_inp", _i32, [_pointer]),
        (
            "mtmd_helper_eval_chunks",
            _i32,
            [_pointer, _pointer, _pointer, _i32, _i32, _i32, ctypes.c_bool, ctypes.POINTER(_i32)],
        ),
        ("mtmd_log_set", None, [llama._LOG, _pointer]),
        ("mtmd_helper_log_set", None, [llama._LOG, _pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if not os.environ.get("LLAMA_LOG"):
        lib.mtmd_log_set(_quiet, None)
        lib.mtmd_helper_log_set(_quiet, None)
    return lib


class Media:
    """The encoders of an mmproj file beside a model."""

    def __init__(self, model: llama.Model, path: str | os.PathLike[str]):
        lib = library()
        self.model, self.end = model, 0
        parameters = lib.mtmd_context_params_default()
        if parameters.n_threads != 4 or parameters.batch_max_tokens != 1024:
            raise RuntimeError("this llama.cpp lays mtmd_context_params out differently")
        parameters.use_gpu, parameters.print_timings, parameters.warmup = False, False, False
        parameters.n_threads, parameters.flash_attn_type = 1, 0
        self._context = lib.mtmd_init_from_file(os.fspath(path).encode(), model.model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {path}")

    def __enter__(self) -> Media:
        return self

    def __exit__(self, *exc: object) -> None:
        library().mtmd_free(self._context)

    def chunks(self, text: str, media: Sequence[np.ndarray]) -> Chunks:
        return Chunks(self, text, media)

    def logits(self, chunks: Chunks) -> np.ndarray:
        """Of the last token of a prompt: (vocab,) float32."""
        lib, end = library(), _i32(0)
        self.model.clear()
        batch = 2048
        if lib.mtmd_helper_eval_chunks(
            self._context, self.model.context, chunks.address, 0, 0, batch, True, ctypes.byref(end)
        ):
            raise RuntimeError("mtmd_helper_eval_chunks")
        found = lib.llama_get_logits_ith(self.model.context, -1)
        self.end = end.value
        return np.ctypeslib.as_array(found, (self.model.vocab_size,)).copy()


class Chunks:
    """A prompt, cut into text and media."""

    def __init__(self, owner: Media, text: str, media: Sequence[np.ndarray]):
        lib = library()
        self._owner = owner
        self.address = lib.mtmd_input_chunks_init()
        data = text.encode()
        arrays = [np.ascontiguousarray(x) for x in media]
        bitmaps = [
            lib.mtmd_bitmap_init(x.shape[1], x.shape[0], x.ctypes.data)
            if x.ndim == 3
            else lib.mtmd_bitmap_init_from_audio(len(x), x.ctypes.data)
            for x in arrays
        ]
        pointers = (_pointer * len(bitmaps))(*bitmaps)
        told = _Text(data, len(data), True, True)
        status = lib.mtmd_tokenize(owner._context, self.address, ctypes.byref(told), pointers, len(bitmaps))
        for bitmap in bitmaps:
            lib.mtmd_bitmap_free(bitmap)
        if status:
            raise RuntimeError(f"mtmd_tokenize: {status}")

    def _each(self) -> list[int]:
        lib = library()
        return [lib.mtmd_input_chunks_get(self.address, i) for i in range(lib.mtmd_input_chunks_size(self.address))]

    def parts(self) -> list[list[int] | np.ndarray]:
        """Tokens of a text, embeddings (n, width) of an image or of sound."""
        lib, found = library(), []
        for chunk in self._each():
            if lib.mtmd_input_chunk_get_type(chunk) == 0:
                n = _size(0)
                tokens = lib.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
                found.append(tokens[: n.value])
                continue
            if lib.mtmd_encode_chunk(self._owner._context, chunk):
                raise RuntimeError("mtmd_encode_chunk")
            shape = lib.mtmd_input_chunk_get_n_tokens(chunk), lib.llama_model_n_embd_inp(self._owner.model.model)
            found.append(np.ctypeslib.as_array(lib.mtmd_get_output_embd(self._owner._context), shape).copy())
        return found
