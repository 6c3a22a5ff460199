"""Which implementation of `runtime.ops` a model runs on."""

from __future__ import annotations

import importlib.util
import platform
import sys

from ggufkit.errors import Hint, MissingDependency, UsageError, printable
from ggufkit.gguf.reader import GGUF
from ggufkit.runtime.ops import Ops

__all__ = ["BACKENDS", "backend_named", "make_ops"]

BACKENDS = ("auto", "cpu", "mlx")


def make_ops(backend: str, gguf: GGUF, threads: int | None = None, *, as_ggml: bool = False) -> Ops:
    """The operations to run a model with.

    Parameters
    ----------
    backend : ``"cpu"``, ``"mlx"``, or ``"auto"``: MLX on Apple Silicon where it is installed, the CPU elsewhere.
    gguf : the model; MLX checks that the machine has room for it.
    threads : of the CPU.
    as_ggml : on the CPU, round activations where GGML does (see `CpuOps`).

    Raises
    ------
    UsageError : there is no such backend, or the model does not fit into memory.
    MissingDependency : MLX is not installed.
    """
    if backend_named(backend) == "mlx":
        from ggufkit.runtime.mlx.memory import require_room
        from ggufkit.runtime.mlx.ops import MlxOps

        require_room(gguf)
        return MlxOps()
    from ggufkit.runtime.cpu.ops import CpuOps

    return CpuOps(threads, as_ggml=as_ggml)


def backend_named(backend: str) -> str:
    """``"cpu"`` or ``"mlx"``: what a backend's name means here; see `make_ops`."""
    if backend not in BACKENDS:
        raise UsageError(f"the backend must be {', '.join(BACKENDS)}, not {printable(backend)}")
    if backend == "mlx" and not _has_mlx():
        raise MissingDependency("the MLX backend needs MLX", Hint("pip install 'ggufkit[mlx]'", "take {backend=cpu}"))
    if backend == "auto":
        return "mlx" if _on_apple_silicon() and _has_mlx() else "cpu"
    return backend


def _on_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _has_mlx() -> bool:
    try:
        return importlib.util.find_spec("mlx.core") is not None
    except ImportError:
        return False
