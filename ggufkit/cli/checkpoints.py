"""What `inspect` and `validate` say of a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["described", "is_checkpoint_folder"]


def is_checkpoint_folder(path: str) -> bool:
    """Whether `path` is a checkpoint: a folder with a config.json, or ``hf://owner/repo``."""
    if path.startswith("hf://"):
        from ggufkit.checkpoint.hub import is_repository

        return is_repository(path)
    return (Path(path) / "config.json").is_file()


def described(path: str) -> dict[str, Any]:
    """What a checkpoint is, and its numbers of tensors and weights.

    Raises
    ------
    GgufkitError : it cannot be converted.
    """
    from ggufkit.jobs.convert import as_gguf

    model = as_gguf(path)
    return {
        "checkpoint": model.description,
        "tensors": len(model.tensors),
        "weights": sum(tensor.size for tensor in model.tensors.values()),
    }
