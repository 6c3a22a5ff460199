"""Compilation: the only place that calls `numba.njit`.

    @kernel                                 # called from Python
    def q4_0_encode(x, out): ...

    @helper                                 # called from kernels; `inlined` and `maker` are helpers, too
    def extreme_weight(values, at): ...

Kernels release the GIL, follow IEEE 754 to the letter (no fast-math, NumPy's division) and are cached on disk.
Numba notices an edit of the file that defines a kernel but not of a helper inlined from another file, so the name
of a module's cache folder carries a hash of the sources that it imports from, of the CPU and of Numba's version.

Environment: NUMBA_CACHE_DIR overrides the folder; `cpu` says what chooses another target.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
from numba.core import config, event
from numba.core.registry import cpu_target
from numba.core.types.misc import unliteral

from ggufkit.kernels.cpu import Cpu, this_cpu

__all__ = ["CPU", "CPU_FEATURES", "cache_folder", "helper", "inlined", "kernel", "maker", "specialised"]

_KERNEL: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_MAKER: dict[str, Any] = {**_KERNEL, "no_cpython_wrapper": True}
with contextlib.suppress(ImportError):  # of another Numba: kernels take longer to compile and to load
    from ggufkit.kernels.compiler import HelperCompiler, KernelCompiler

    _KERNEL["pipeline_class"] = KernelCompiler
    _MAKER["pipeline_class"] = HelperCompiler
_HELPER: dict[str, Any] = {**_MAKER, "_nrt": False}

F = TypeVar("F", bound=Callable[..., Any])

# What a source imports from rooms that may define kernels.
_IMPORTS = re.compile(
    r"^\s*from ggufkit\.((?:calibrate|evaluate|formats|kernels|runtime|turboquant)[\w.]*) import", re.MULTILINE
)
_PACKAGE = Path(__file__).parent.parent


def _tell_llvm(cpu: Cpu) -> frozenset[str]:
    """Have LLVM use what it did not see of the CPU; gives what kernels may use."""
    if not cpu.unseen:
        return cpu.features
    if "_toplevel_target_context" in vars(cpu_target):  # someone compiled already: too late
        return cpu.features - cpu.unseen
    seen = [llvm.get_host_cpu_features().flatten()] if llvm.get_host_cpu_features() else []
    config.CPU_FEATURES = ",".join(seen + sorted(f"+{feature}" for feature in cpu.unseen))
    return cpu.features


CPU = this_cpu(config.CPU_NAME, config.CPU_FEATURES)
CPU_FEATURES = _tell_llvm(CPU)  # LLVM's names of what the target can do ("avx2", "f16c", "dotprod", …)


def cache_folder(source: str) -> Path:
    """Where the kernels that the file `source` defines are kept, compiled."""
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ggufkit" / "kernels" / _hash_of(Path(source))


@functools.cache
def _hash_of(source: Path) -> str:
    """Short hash of everything that the kernels of a module depend on."""
    sources = {source}
    waiting = [source]
    while waiting:
        new = _imported(waiting.pop()) - sources
        sources |= new
        waiting += new
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    bodies = os.environ.get("GGUFKIT_BODIES", "")
    for part in (numba.__version__, CPU.name, config.CPU_FEATURES or "", *sorted(CPU_FEATURES), bodies):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def _imported(source: Path) -> set[Path]:
    """The sources that one source imports from; of a package, all."""
    found: set[Path] = set()
    for name in _IMPORTS.findall(source.read_text("utf-8")):
        path = _PACKAGE.joinpath(*name.split("."))
        found |= set(path.rglob("*.py")) if path.is_dir() else {path.with_suffix(".py")}
    return found


# Modules with kernels may be imported by several threads at once, and Numba's setting is the process's.
_DECORATING = threading.Lock()


@contextlib.contextmanager
def _numba_cache_for(source: str) -> Iterator[None]:
    """Numba reads its folder setting when a function is decorated; other users of Numba keep theirs."""
    with _DECORATING:
        before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder(source))
        try:
            yield
        finally:
            config.CACHE_DIR = before


def kernel(function: F) -> F:
    """Compile `function` on its first call, with a signature for each set of argument types.

    It is called from Python; what kernels call is a `helper`, or given by its address (see `addresses`).
    """
    return _compiled(function)


def helper(function: F) -> F:
    """Like `kernel`, for a function that kernels call. It works in memory that it is given and allocates none.

    So Numba need not count references to its arrays, with an atomic operation for each, in and out. It cannot be
    called from Python, nor is it kept on disk except as a part of kernels.
    """
    return _helper(function, **_HELPER)


def inlined(function: F) -> F:
    """Like `helper`, for one that inner loops call: becomes part of every caller, whatever its size."""
    return _helper(function, **_HELPER, forceinline=True)


def maker(function: F) -> F:
    """Like `helper`, for one that makes arrays."""
    return _helper(function, **_MAKER)


def _helper(function: F, **options: Any) -> F:
    """Numba takes a number written in a call for a type of its own; here it does not make the helper compile again."""
    dispatcher = numba.njit(**options)(function)
    template = dispatcher.get_call_template

    def get_call_template(args: Any, kws: dict[str, Any]) -> Any:
        return template([unliteral(a) for a in args], {name: unliteral(a) for name, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def specialised(function: Callable[..., Any], name: str, source: str, **names: Any) -> Any:
    """A kernel like the plain `function`, but with some of its global names bound to other things.

    A loop over blocks is written once and becomes a kernel for each format: Numba can neither keep a compiled kernel
    that was given another as an argument nor inline one there.

    Parameters
    ----------
    name : of the kernel; different for each.
    source : the file (`__file__`) that binds the names, and imports from the one that defines the loop.
    names : what the global names mean: helpers, numbers.
    """
    copy = types.FunctionType(function.__code__, {**function.__globals__, **names}, name)
    copy.__qualname__ = name
    return _compiled(copy, source)


def _compiled(function: F, source: str = "") -> F:
    try:
        with _numba_cache_for(source or function.__code__.co_filename):
            dispatcher = numba.njit(cache=True, **_KERNEL)(function)
    except RuntimeError:  # no folder is writable: compile in every process
        dispatcher = numba.njit(**_KERNEL)(function)

    def refuse(args: Any, kws: Any) -> Any:
        # One that was loaded from the cache has no LLVM code to link: what calls it would crash when loaded itself.
        raise TypeError(f"{function.__name__} is a kernel, and another one calls it: make it a helper")

    dispatcher.get_call_template = refuse
    return dispatcher


def _is_ours(event: event.Event) -> bool:
    module = event.data["dispatcher"].py_func.__module__  # None of what `exec` made
    return (module or "").startswith("ggufkit.")


class _PauseCollector(event.Listener):
    """Keeps the garbage collector off while a kernel compiles: an eighth of the time went into looking for garbage.

    Events begin and end under Numba's lock, one within another.
    """

    depth = 0
    paused = False

    def on_start(self, event: event.Event) -> None:
        if self.depth == 0 and _is_ours(event) and gc.isenabled():
            gc.disable()
            self.paused = True
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        self.depth -= 1
        if self.depth == 0 and self.paused:
            gc.enable()
            self.paused = False


event.register("numba:compile", _PauseCollector())


class _SayOnce(event.Listener):
    """Explains the pause when the first kernel is really compiled and not loaded."""

    def on_start(self, event: event.Event) -> None:
        if _is_ours(event):
            numba.core.event.unregister("numba:compile", self)
            print(f"ggufkit: compiling kernels for {CPU.name}, once; later runs load them", file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _SayOnce())
