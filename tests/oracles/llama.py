"""llama.cpp itself, from the library inside `xllamacpp`: the oracle for logits, embeddings and tokens.

with llama.Model("model.gguf") as model:
    model.tokenize("def main(")            # llama_tokenize → (n,) int32
    model.logits(tokens)                   # llama_decode, logits of every position → (n, vocab) float32

The C API passes its parameters as structs by value. What is returned and passed here is a block that is larger than
any version of the struct, with the fields at the offsets of autumn 2026; `_check_layout` compares the defaults, so
that another layout stops with a message.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from types import TracebackType

import ggml
import numpy as np

# Ids of `enum ggml_type` for the cache.
CACHE_TYPES = {
    "F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "IQ4_NL": 20,
}  # fmt: skip
F32, F16 = CACHE_TYPES["F32"], CACHE_TYPES["F16"]

_MODEL = {"n_gpu_layers": ("i4", 16, -1), "load_mode": ("i4", 28, 1), "use_extra_bufts": ("u1", 74, 1)}
_CONTEXT = {
    "n_ctx": ("u4", 0, 512),
    "n_batch": ("u4", 4, 2048),
    "n_ubatch": ("u4", 8, 512),
    "n_seq_max": ("u4", 12, 1),
    "n_outputs_max": ("u4", 20, 0),
    "n_threads": ("i4", 28, 4),
    "n_threads_batch": ("i4", 32, 4),
    "rope_scaling_type": ("i4", 40, -1),
    "pooling_type": ("i4", 44, -1),
    "attention_type": ("i4", 48, -1),
    "flash_attn_type": ("i4", 52, -1),
    "cb_eval": ("u8", 88, 0),
    "type_k": ("i4", 104, F16),
    "type_v": ("i4", 108, F16),
    "embeddings": ("u1", 136, 0),
    "swa_full": ("u1", 140, 1),
    "kv_unified": ("u1", 141, 0),
}


class _Parameters(ctypes.Structure):
    """`llama_model_params` or `llama_context_params`, and room to spare."""

    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


# Asked of each tensor before it is computed ("is it wanted?") and, if it was, after ("go on?").
_EVALUATED = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(_Tensor), ctypes.c_bool, ctypes.c_void_p)

_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library with the signatures used below, its log switched off unless LLAMA_LOG is set."""
    lib = ggml.library()
    pointer, i32, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    for name, result, arguments in (
        ("llama_model_default_params", _Parameters, []),
        ("llama_context_default_params", _Parameters, []),
        ("llama_model_load_from_file", pointer, [text, _Parameters]),
        ("llama_init_from_model", pointer, [pointer, _Parameters]),
        ("llama_model_free", None, [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_model_n_embd_out", i32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_memory_seq_rm", ctypes.c_bool, [pointer, i32, i32, i32]),
        ("llama_batch_init", _Batch, [i32, i32, i32]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", i32, [pointer, _Batch]),
        ("llama_encode", i32, [pointer, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_get_embeddings_ith", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_get_embeddings_seq", ctypes.POINTER(ctypes.c_float), [pointer, i32]),
        ("llama_pooling_type", i32, [pointer]),
        ("llama_tokenize", i32, [pointer, text, i32, pointer, i32, ctypes.c_bool, ctypes.c_bool]),
        ("llama_token_to_piece", i32, [pointer, i32, pointer, i32, i32, ctypes.c_bool]),
        ("llama_adapter_lora_init", pointer, [pointer, text]),
        ("llama_set_adapters_lora", i32, [pointer, pointer, ctypes.c_size_t, pointer]),
        ("llama_log_set", None, [_LOG, pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if not os.environ.get("LLAMA_LOG"):
        lib.llama_log_set(_quiet, None)
    lib.llama_backend_init()
    _check_layout(lib.llama_model_default_params(), _MODEL)
    _check_layout(lib.llama_context_default_params(), _CONTEXT)
    return lib


_quiet = _LOG(lambda level, message, data: None)


def _field(parameters: _Parameters, kind: str, offset: int) -> np.ndarray:
    return np.frombuffer(parameters, np.dtype(kind), 1, offset)  # type: ignore[call-overload]


def _check_layout(defaults: _Parameters, fields: dict) -> None:
    for name, (kind, offset, expected) in fields.items():
        found = _field(defaults, kind, offset)[0]
        if found != expected:
            raise RuntimeError(f"{name} is {found}, not {expected}: this llama.cpp lays its parameters out differently")


def _with(defaults: _Parameters, fields: dict, values: dict) -> _Parameters:
    for name, value in values.items():
        kind, offset, _ = fields[name]
        _field(defaults, kind, offset)[0] = value
    return defaults


def matrix_inputs(see: Callable[[str, np.ndarray], None]) -> ctypes._CFunctionType:  # type: ignore[name-defined]
    """A callback for `Model(evaluated=…)` that shows what meets each matrix: its name, and (rows, cols) float32."""

    def evaluated(tensor: ctypes._Pointer[_Tensor], asking: bool, data: int) -> bool:
        weight, x = tensor.contents.src[:2]
        name = _Tensor.from_address(weight).name.decode() if weight and x else ""
        if not name.endswith(".weight") or _Tensor.from_address(x).type != F32:  # rows are fetched by integers
            return not asking
        if not asking:
            found = _Tensor.from_address(x)
            shape = found.ne[3] * found.ne[2] * found.ne[1], found.ne[0]
            see(name, np.ctypeslib.as_array(ctypes.cast(found.data, ctypes.POINTER(ctypes.c_float)), shape))
        return True

    return _EVALUATED(evaluated)


class Model:
    """A model and one context of it.

    Parameters
    ----------
    path : a GGUF file.
    context : tokens of the context.
    threads : for both decoding and prompts.
    cache : `enum ggml_type` of keys and of values.
    embeddings : give embeddings, not logits.
    repack : let it rearrange the weights for the CPU; that rounds sums in another order.
    evaluated : of `matrix_inputs`.
    gpu_layers : layers on a GPU; -1 for all.
    others : further fields of `_CONTEXT`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int = 512,
        threads: int = 1,
        cache: tuple[int, int] = (F16, F16),
        embeddings: bool = False,
        repack: bool = True,
        evaluated: ctypes._CFunctionType | None = None,  # type: ignore[name-defined]
        gpu_layers: int = 0,
        **others: int,
    ):
        lib = library()
        self._evaluated = evaluated  # llama.cpp keeps only its address
        wanted = {"n_gpu_layers": gpu_layers, "use_extra_bufts": int(repack)}
        model = _with(lib.llama_model_default_params(), _MODEL, wanted)
        self.model = lib.llama_model_load_from_file(os.fspath(path).encode(), model)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        values = {
            "n_ctx": context,
            "n_batch": max(context, 512),
            "n_ubatch": max(context, 512) if embeddings else 512,
            "n_threads": threads,
            "n_threads_batch": threads,
            "type_k": cache[0],
            "type_v": cache[1],
            "embeddings": embeddings,
            "cb_eval": ctypes.cast(evaluated, ctypes.c_void_p).value if evaluated else 0,
            **others,
        }
        self.context = lib.llama_init_from_model(
            self.model, _with(lib.llama_context_default_params(), _CONTEXT, values)
        )
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.vocab_size = lib.llama_vocab_n_tokens(self.vocab)
        self.width = lib.llama_model_n_embd_out(self.model)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.context:
            library().llama_free(self.context)
        if self.model:
            library().llama_model_free(self.model)
        self.context = self.model = None

    def adapt(self, adapters: Sequence[tuple[str | os.PathLike[str], float]]) -> None:
        """From now on with these LoRA adapters and their scales."""
        found = [library().llama_adapter_lora_init(self.model, os.fspath(path).encode()) for path, _ in adapters]
        if not all(found):
            raise RuntimeError(f"llama.cpp cannot load {adapters}")
        scales = (ctypes.c_float * len(found))(*(scale for _, scale in adapters))
        if library().llama_set_adapters_lora(self.context, (ctypes.c_void_p * len(found))(*found), len(found), scales):
            raise RuntimeError("llama_set_adapters_lora")

    def tokenize(self, text: str | bytes, special: bool = True, parse: bool = True) -> np.ndarray:
        """(n,) int32. `special` adds BOS and EOS as the vocabulary wishes, `parse` reads special tokens in the text."""
        data = text.encode() if isinstance(text, str) else text
        tokens = np.empty(len(data) + 16, np.int32)
        n = library().llama_tokenize(self.vocab, data, len(data), tokens.ctypes.data, len(tokens), special, parse)
        if n < 0:
            tokens = np.empty(-n, np.int32)
            n = library().llama_tokenize(self.vocab, data, len(data), tokens.ctypes.data, len(tokens), special, parse)
        return tokens[:n].copy()

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token."""
        out = np.empty(1024, np.uint8)
        n = library().llama_token_to_piece(self.vocab, token, out.ctypes.data, len(out), 0, special)
        return out[:n].tobytes()

    def clear(self) -> None:
        """Forget everything in the cache."""
        memory = library().llama_get_memory(self.context)
        if memory:
            library().llama_memory_clear(memory, True)

    def decode(self, tokens: np.ndarray, start: int = 0, outputs: str = "all") -> int:
        """`llama_decode` of tokens at positions `start …`; returns how many there were."""
        lib = library()
        n = len(tokens)
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i in range(n):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(tokens[i]), start + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = outputs == "all" or i == n - 1
            if status := lib.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode: {status}")
        finally:
            lib.llama_batch_free(batch)
        return n

    def logits(self, tokens: np.ndarray, start: int = 0, outputs: str = "all") -> np.ndarray:
        """(n, vocab) float32 of all positions, or (vocab,) of the last; a `start` of 0 clears the cache first."""
        if start == 0:
            self.clear()
        n = self.decode(np.asarray(tokens), start, outputs)
        rows = range(n) if outputs == "all" else [n - 1]
        get, shape = library().llama_get_logits_ith, (self.vocab_size,)
        found = np.stack([np.ctypeslib.as_array(get(self.context, i), shape) for i in rows]).astype(np.float32)
        return found if outputs == "all" else found[0]

    def encode(self, tokens: np.ndarray) -> None:
        """`llama_encode`: the encoder reads a text, which what is decoded then answers."""
        lib, n = library(), len(tokens)
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i in range(n):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(tokens[i]), i, 1, True
                batch.seq_id[i][0] = 0
            if status := lib.llama_encode(self.context, batch):
                raise RuntimeError(f"llama_encode: {status}")
        finally:
            lib.llama_batch_free(batch)

    def states(self, n: int) -> np.ndarray:
        """What was made of each token, (n, width), without pooling."""
        get = library().llama_get_embeddings_ith
        return np.stack([np.ctypeslib.as_array(get(self.context, i), (self.width,)) for i in range(n)]).copy()

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """The pooled embedding (width,), or (n, width) without pooling; not normalised."""
        lib = library()
        self.clear()
        n = self.decode(np.asarray(tokens))
        if lib.llama_pooling_type(self.context) == 0:
            get = lib.llama_get_embeddings_ith
            return np.stack([np.ctypeslib.as_array(get(self.context, i), (self.width,)) for i in range(n)]).copy()
        return np.ctypeslib.as_array(lib.llama_get_embeddings_seq(self.context, 0), (self.width,)).copy()
