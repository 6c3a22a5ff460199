"""`ggufkit doctor`: what of this machine matters to ggufkit, to paste into a report."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from ggufkit import __version__
from ggufkit.cli.common import echo_json, human_bytes
from ggufkit.errors import UsageError, printable

__all__ = ["command"]

# Features that say which of its kind a CPU is.
_TELLING = (
    *("ssse3", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16"),
    *("neon", "fp-armv8", "fullfp16", "dotprod", "i8mm", "bf16", "sve", "sve2"),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> None:
    """Show what ggufkit sees of this machine: the CPU and what kernels make of it, threads, memory, MLX.

    Paste it into a report.

    \b
    ggufkit doctor
    """
    found: dict[str, dict[str, Any]] = {
        "ggufkit": _versions(),
        "CPU": _cpu(),
        "threads": _threads(),
        "kernels": _cache(),
        "MLX": _mlx(),
        "room": _room(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("GGUFKIT_", "NUMBA_"))},
    }
    if as_json:
        echo_json(found)
        return
    for part, facts in found.items():
        click.echo(part)
        for name, value in facts.items():
            click.echo(f"  {name:<22}{printable(_shown(name, value), 300)}")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(value)
    return human_bytes(value) if name in _BYTES else str(value)


_BYTES = {"size", "memory", "memory available", "disk free here", "disk free for kernels"}


def _versions() -> dict[str, Any]:
    import llvmlite
    import numba
    import numpy as np
    from llvmlite import binding

    return {
        "version": __version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "NumPy": np.__version__,
        "Numba": numba.__version__,
        "LLVM": f"{'.'.join(map(str, binding.llvm_version_info))} (llvmlite {llvmlite.__version__})",
    }


def _cpu() -> dict[str, Any]:
    """Importing what chooses a body makes it choose."""
    import ggufkit.kernels.dot
    import ggufkit.kernels.lanes  # noqa: F401
    from ggufkit.kernels.cpu import CHOSEN
    from ggufkit.kernels.jit import CPU, CPU_FEATURES

    return {
        "name": CPU.name,
        "features": [feature for feature in _TELLING if feature in CPU_FEATURES],
        "known from": CPU.source,
        "bodies": dict(CHOSEN),
    }


def _threads() -> dict[str, Any]:
    from ggufkit.kernels.cpu import performance_cores
    from ggufkit.kernels.threads import thread_count

    try:
        used: object = thread_count()
    except UsageError as e:
        used = str(e)
    return {"used": used, "CPUs": os.cpu_count(), "performance cores": performance_cores() or "all alike, or not known"}


def _kernel_folder() -> Path:
    from numba.core import config

    from ggufkit.kernels.jit import cache_folder

    folder = cache_folder(sys.modules["ggufkit.kernels.jit"].__file__ or "")
    return folder if config.CACHE_DIR else folder.parent


def _cache() -> dict[str, Any]:
    folder = _kernel_folder()
    files = size = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(base, name)).st_size
                files += 1
    return {"folder": str(folder), "files": files, "size": size, "can be written": os.access(_present(folder), os.W_OK)}


def _present(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _mlx() -> dict[str, Any]:
    try:
        import mlx.core as mx
    except ImportError:
        return {"installed": "no"}
    facts: dict[str, Any] = {"installed": getattr(mx, "__version__", "yes"), "device": str(mx.default_device())}
    with contextlib.suppress(Exception):  # the CPU's MLX has no Metal to ask
        info = mx.metal.device_info() if mx.metal.is_available() else {}
        facts |= {name: info[name] for name in ("device_name", "max_recommended_working_set_size") if name in info}
    return facts


def _room() -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        facts["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
        facts["memory available"] = int(available) * 1024
    for name, folder in (("here", Path.cwd()), ("for kernels", _present(_kernel_folder()))):
        with contextlib.suppress(OSError):
            facts[f"disk free {name}"] = shutil.disk_usage(folder).free
    return facts
