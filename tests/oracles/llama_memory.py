"""The buffers that llama.cpp says it has made, from its log: the oracle for what a run takes.

buffers("model.gguf", n_ctx=4096, type_k=llama.CACHE_TYPES["Q8_0"])    # in bytes, as exact as the log is
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import llama

_MIB = 1 << 20
_SIZE = re.compile(r"(\w+): +(\w+) +(model|KV|RS|compute|output) buffer size +(?:=|is) +([0-9.]+) MiB")


@dataclass
class Buffers:
    """Bytes of llama.cpp's buffers; each by its kind of memory (CPU_Mapped, CPU_REPACK, CPU …).

    `compute` is exact to 0.0001 MiB, the others to 0.01 MiB: `STEP`.
    """

    model: dict[str, float] = field(default_factory=dict)
    cache: float = 0.0
    windows: float = 0.0
    states: float = 0.0
    compute: float = 0.0
    output: float = 0.0
    text: str = ""


STEP = 0.005 * _MIB  # what a figure of the log may be off by rounding


def buffers(path: str | os.PathLike[str], repack: bool = False, **parameters: int) -> Buffers:
    """Load a model, make a context with these fields of `llama._CONTEXT`, and read what was said."""
    lib = llama.library()
    lines: list[bytes] = []
    listener = llama._LOG(lambda level, message, data: lines.append(message))
    lib.llama_log_set(listener, None)
    try:
        model = llama._with(
            lib.llama_model_default_params(), llama._MODEL, {"n_gpu_layers": 0, "use_extra_bufts": int(repack)}
        )
        loaded = lib.llama_model_load_from_file(os.fspath(path).encode(), model)
        if not loaded:
            raise RuntimeError(f"llama.cpp cannot load {path}: {_last(lines)}")
        context = lib.llama_init_from_model(
            loaded, llama._with(lib.llama_context_default_params(), llama._CONTEXT, parameters)
        )
        if context:
            lib.llama_free(context)
        lib.llama_model_free(loaded)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context for {path}: {_last(lines)}")
    finally:
        lib.llama_log_set(llama._quiet, None)
    return _parsed(b"".join(lines).decode(errors="replace"))


def _last(lines: list[bytes]) -> str:
    return b"".join(lines[-4:]).decode(errors="replace").strip()


def _parsed(text: str) -> Buffers:
    found = Buffers(text=text)
    windows = False
    for line in text.splitlines():
        if "creating" in line and "KV cache" in line:
            windows = " SWA" in line and "non-SWA" not in line
        if (match := _SIZE.search(line)) is None:
            continue
        _, memory, kind, number = match.groups()
        nbytes = float(number) * _MIB
        if kind == "model":
            found.model[memory] = found.model.get(memory, 0) + nbytes
        elif kind == "KV" and windows:
            found.windows += nbytes
        elif kind == "KV":
            found.cache += nbytes
        elif kind == "RS":
            found.states += nbytes
        elif kind == "output":
            found.output = nbytes
        else:
            found.compute = nbytes  # the last is the most exact
    return found
