"""llama.cpp's tokenizers, from the library inside `xllamacpp`: the oracle for tokens, pieces and their attributes.

with llama_vocab.Vocab("model.gguf") as vocab:     # loads the vocabulary, not the weights
    vocab.tokenize("def main(")                    # llama_tokenize → list of ids
    vocab.detokenize([1, 2, 3])                    # llama_detokenize → bytes

`split` and the Unicode functions call llama.cpp's C++ through its mangled names: old-ABI strings and vectors, which
are a pointer to the characters and three pointers.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from types import TracebackType

import ggml
import llama
import numpy as np

_VOCAB_ONLY = {**llama._MODEL, "vocab_only": ("u1", 72, 0)}


@functools.cache
def library() -> ctypes.CDLL:
    lib = llama.library()
    pointer, i32, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    for name, result, arguments in (
        ("llama_detokenize", i32, [pointer, pointer, i32, pointer, i32, flag, flag]),
        ("llama_vocab_get_attr", i32, [pointer, i32]),
        ("llama_vocab_is_eog", flag, [pointer, i32]),
        ("llama_vocab_get_add_bos", flag, [pointer]),
        ("llama_vocab_get_add_eos", flag, [pointer]),
        *((f"llama_vocab_{name}", i32, [pointer]) for name in ("bos", "eos", "eot", "sep", "pad", "nl", "mask")),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    llama._check_layout(lib.llama_model_default_params(), _VOCAB_ONLY)
    return lib


class Vocab:
    """The vocabulary of a GGUF file."""

    def __init__(self, path: str | os.PathLike[str]):
        lib = library()
        parameters = llama._with(lib.llama_model_default_params(), _VOCAB_ONLY, {"n_gpu_layers": 0, "vocab_only": 1})
        self.model = lib.llama_model_load_from_file(os.fspath(path).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)

    def __enter__(self) -> Vocab:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        library().llama_model_free(self.model)

    def tokenize(self, text: str | bytes, special: bool = True, parse: bool = True) -> list[int]:
        """`special` adds BOS, EOS and SEP as the vocabulary wishes, `parse` reads special tokens in the text."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        tokens = np.empty(2 * len(data) + 16, np.int32)
        n = library().llama_tokenize(self.vocab, data, len(data), tokens.ctypes.data, len(tokens), special, parse)
        if n < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-n} tokens of {len(data)} bytes")
        return tokens[:n].tolist()

    def piece(self, token: int, special: bool = False) -> bytes:
        """`llama_token_to_piece`."""
        out = np.empty(1 << 16, np.uint8)
        n = library().llama_token_to_piece(self.vocab, token, out.ctypes.data, len(out), 0, special)
        return out[:n].tobytes()

    def detokenize(self, tokens: Sequence[int], remove_special: bool = False, unparse_special: bool = False) -> bytes:
        """`llama_detokenize`."""
        ids = np.array(tokens, np.int32)
        out = np.empty(64 + 512 * len(ids), np.uint8)
        n = library().llama_detokenize(
            self.vocab, ids.ctypes.data, len(ids), out.ctypes.data, len(out), remove_special, unparse_special
        )
        return out[:n].tobytes()

    def attribute(self, token: int) -> int:
        """`enum llama_token_attr`."""
        return library().llama_vocab_get_attr(self.vocab, token)

    def is_end(self, token: int) -> bool:
        return library().llama_vocab_is_eog(self.vocab, token)

    def special(self, name: str) -> int:
        """The id of bos, eos, eot, sep, pad, nl or mask; -1 without one."""
        return getattr(library(), f"llama_vocab_{name}")(self.vocab)

    def adds(self) -> tuple[bool, bool]:
        """Whether BOS and EOS are added."""
        return library().llama_vocab_get_add_bos(self.vocab), library().llama_vocab_get_add_eos(self.vocab)


# -- the C++ functions of unicode.cpp ------------------------------------------------------------------------


class _Strings(ctypes.Structure):
    """`std::vector<std::string>`, or of numbers: begin, end, end of the memory."""

    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p)]


def _string(data: bytes) -> tuple[ctypes.c_void_p, object]:
    """A reference-counted `std::string`: length, capacity, count, then the characters it points to."""
    memory = ctypes.create_string_buffer(
        len(data).to_bytes(8, "little") * 2 + (1).to_bytes(8, "little") + data, 24 + len(data) + 1
    )
    return ctypes.c_void_p(ctypes.addressof(memory) + 24), memory


def split(text: str, patterns: Sequence[str], byte_encode: bool = False) -> list[bytes]:
    """`unicode_regex_split`: the words of a text."""
    function = ggml.library()._Z19unicode_regex_splitRKSsRKSt6vectorISsSaISsEEb
    strings = [_string(pattern.encode()) for pattern in patterns]
    array = (ctypes.c_void_p * len(strings))(*(pointer for pointer, _ in strings))
    begin = ctypes.addressof(array)
    end = begin + ctypes.sizeof(array)
    subject, _memory = _string(text.encode("utf-8", "surrogatepass"))
    out = _Strings()
    function.restype = None
    function(
        ctypes.byref(out), ctypes.byref(subject), ctypes.byref(_Strings(begin, end, end)), ctypes.c_bool(byte_encode)
    )
    words = []
    for at in range(out.begin or 0, out.end or 0, 8):
        start = ctypes.c_void_p.from_address(at).value
        length = ctypes.c_uint64.from_address(start - 24).value
        words.append(ctypes.string_at(start, length))
    return words  # the words' memory is left behind: this is for tests


def flags(character: int) -> int:
    """`unicode_cpt_flags_from_cpt`: the category, and bits for whitespace, lower and upper case."""
    function = ggml.library()._Z26unicode_cpt_flags_from_cptj
    function.restype = ctypes.c_uint32
    return function(ctypes.c_uint32(character)) & 0xFFFF


def lower(character: int) -> int:
    """`unicode_tolower`."""
    function = ggml.library()._Z15unicode_tolowerj
    function.restype = ctypes.c_uint32
    return function(ctypes.c_uint32(character))


def decomposed(characters: Sequence[int]) -> list[int]:
    """`unicode_cpts_normalize_nfd`: the first character of each one's decomposition."""
    function = ggml.library()._Z26unicode_cpts_normalize_nfdRKSt6vectorIjSaIjEE
    array = (ctypes.c_uint32 * len(characters))(*characters)
    begin = ctypes.addressof(array)
    end = begin + ctypes.sizeof(array)
    out = _Strings()
    function.restype = None
    function(ctypes.byref(out), ctypes.byref(_Strings(begin, end, end)))
    return list((ctypes.c_uint32 * len(characters)).from_address(out.begin))
