"""Ask llama.cpp which hyperparameters each architecture needs and which pre-tokenizers it knows → required.py.

python tools/generate/make_required.py

A file with nothing but `general.architecture` is loaded; llama.cpp names the key that it misses, or whose type is
another one than it expects; the file gets the key, and so on, until llama.cpp complains about something else. A key
that only some numbers of layers need (they tell llama.cpp the variant) does not count.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer
from ggufkit.tokenizer.from_checkpoint import pre

LAYERS = (4, 16, 24, 26, 27, 28, 32, 40, 48, 61)
TARGET = Path(__file__).parents[2] / "ggufkit" / "gguf" / "required.py"

INDENT = "    "

# Tried in this order until llama.cpp takes the type.
VALUES = (
    Value(ValueType.UINT32, 4),
    Value(ValueType.FLOAT32, 1.0),
    Value(ValueType.BOOL, False),
    Value(ValueType.STRING, "x"),
    Value(ValueType.ARRAY, [1, 1, 1, 1], ValueType.INT32),
)


class _Params(ctypes.Structure):
    """`struct llama_model_params`, whose fields stay at their defaults: only large enough."""

    _fields_ = (("bytes", ctypes.c_char * 1024),)


class Loader:
    """Loads files with llama.cpp and gives what it says."""

    def __init__(self) -> None:
        import xllamacpp

        (path,) = glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.so")
        self.lib = ctypes.CDLL(path)
        self.lib.llama_model_default_params.restype = _Params
        self.lib.llama_model_load_from_file.restype = ctypes.c_void_p
        self.lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
        self.lines: list[str] = []
        log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = log(lambda level, text, data: self.lines.append(text.decode("utf-8", "replace")))
        self.lib.llama_backend_init()

    def load(self, path: str) -> str:
        self.lines.clear()
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        self.lib.llama_log_set(None, None)
        return "".join(self.lines)


def required(arch: str, layers: int, loader: Loader) -> dict[str, str]:
    """Key without its prefix → short name of its type."""
    metadata: dict[str, object] = {"general.architecture": arch}
    tried: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        while True:
            with Writer(path, metadata, [("x", (32,), FORMATS["F32"])], force=True) as out:
                out.wrote("x", 128)
            said = loader.load(path)
            missing = re.search(r"key not found in model: (\S+)", said)
            wrong = re.search(r"key (\S+) has wrong type", said)
            if missing and missing[1] not in tried:
                key, tried[missing[1]] = missing[1], 0
            elif missing or wrong:
                # A key that is there and "not found" is one of another kind: an array.
                key = missing[1] if missing else wrong[1]
                tried[key] = len(VALUES) - 1 if missing else tried[key] + 1
                if missing and metadata[key] is VALUES[-1]:
                    break
            else:
                break
            metadata[key] = VALUES[tried[key]]
            if key == f"{arch}.block_count":
                metadata[key] = Value(ValueType.UINT32, layers)
    return {
        key.removeprefix(f"{arch}."): VALUES[i].type.short for key, i in tried.items() if key.startswith(f"{arch}.")
    }


def always_required(arch: str, loader: Loader) -> dict[str, str]:
    found = [required(arch, layers, loader) for layers in LAYERS]
    return {key: kind for key, kind in found[0].items() if all(key in other for other in found)}


def known_pre_tokenizers(loader: Loader) -> list[str]:
    """The values of `tokenizer.ggml.pre` that llama.cpp takes, of the texts that its library has near one of them."""
    library = Path(loader.lib._name).read_bytes()
    at = library.index(b"\0llama-bpe\0")
    near = library[at - 8192 : at + 8192]
    names = {text.decode() for text in re.findall(rb"(?<=\0)[a-z0-9][a-z0-9._-]{1,30}(?=\0)", near)}
    names |= set(re.findall(r'"([a-z0-9][a-z0-9._-]{1,30})"', Path(pre.__file__).read_text()))
    return sorted(name for name in names if "unknown pre-tokenizer" not in loader.load(_vocabulary(name)))


def _vocabulary(name: str) -> str:
    """A file whose vocabulary has a pre-tokenizer; nothing else is wrong with it but that its tensors are missing."""
    metadata = {
        "general.architecture": "llama",
        **{f"llama.{key}": 1 for key in ("block_count", "context_length", "embedding_length")},
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": ["a", "b", "ab", "\u010a"],
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [1] * 4, ValueType.INT32),
        "tokenizer.ggml.merges": ["a b"],
    }
    path = os.path.join(tempfile.gettempdir(), f"pre-tokenizer-{os.getpid()}.gguf")
    with Writer(path, metadata, [("x", (32,), FORMATS["F32"])], force=True) as out:
        out.wrote("x", 128)
    return path


def main() -> None:
    import gguf

    if len(sys.argv) > 1:
        print(json.dumps(always_required(sys.argv[1], Loader())))
        return
    groups: dict[str, list[str]] = {}
    for arch in sorted(gguf.MODEL_ARCH_NAMES.values()):
        # llama.cpp aborts the process where it does not expect what it gets.
        run = subprocess.run([sys.executable, __file__, arch], capture_output=True, text=True, check=False)
        keys = json.loads(run.stdout) if run.returncode == 0 else {}
        if keys:
            groups.setdefault(" ".join(f"{key}:{kind}" for key, kind in sorted(keys.items())), []).append(arch)
        print(arch, len(keys), flush=True)
    common = set.intersection(*(set(group.split()) for group in groups))
    rows = []
    for group, archs in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        own = " ".join(word for word in group.split() if word not in common)
        rows += textwrap.wrap(own, 110, break_on_hyphens=False)
        rows += textwrap.wrap(
            " ".join(archs), 110, break_on_hyphens=False, initial_indent=INDENT, subsequent_indent=INDENT
        )
    names = textwrap.wrap(" ".join(known_pre_tokenizers(Loader())), 115, break_on_hyphens=False)
    text = replaced(TARGET.read_text(), "_COMMON", " ".join(sorted(common)))
    text = replaced(replaced(text, "_ROWS", "\n".join(rows)), "_PRE_TOKENIZERS", "\n".join(names))
    TARGET.write_text(text)


def replaced(text: str, name: str, value: str) -> str:
    """The module's source with another text for one of its names."""
    return re.sub(
        rf'(^{name} = """\n).*?(^""")', lambda m: f"{m[1]}{value}\n{m[2]}", text, flags=re.DOTALL | re.MULTILINE
    )


if __name__ == "__main__":
    main()
