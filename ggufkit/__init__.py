"""ggufkit: convert, inspect, patch and run GGUF models."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# public name → the module that defines it, imported on first use (PEP 562): `import ggufkit` stays cheap.
_PUBLIC = {
    "GGUF": "ggufkit.gguf.reader",
    "GgufkitError": "ggufkit.errors",
    "Limits": "ggufkit.gguf.header",
    "ShardedWriter": "ggufkit.gguf.sharded",
    "Tensor": "ggufkit.tensors.tensor",
    "Value": "ggufkit.gguf.header",
    "ValueType": "ggufkit.gguf.header",
    "Writer": "ggufkit.gguf.writer",
    "edit": "ggufkit.gguf.edit.session",
    "load": "ggufkit.runtime.model",
    "open": "ggufkit.gguf.reader",
    "undo": "ggufkit.gguf.edit.session",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the keys are names


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ggufkit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
