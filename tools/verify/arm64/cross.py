#!/usr/bin/env python3
"""Kernels for the emulated arm64, compiled here: LLVM makes the same machine code on any machine, and much sooner.

    python tools/verify/arm64/cross.py note KERNELS encode:Q4_K products     # does the jobs here, prints what they give
    python tools/verify/arm64/cross.py compile KERNELS encode:Q4_K products  # into XDG_CACHE_HOME, for /project

`note` writes down which kernels the jobs called, with the types of their arguments. `compile` needs NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES, as the emulated machine will have them; it makes Numba believe that it is there, and runs nothing.
What it misses is compiled under emulation. `check.py` calls both.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import pkgutil
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TRIPLE = "aarch64-unknown-linux-gnu"

sys.path.insert(0, str(Path(__file__).parent))


def dispatchers() -> list[Any]:
    from numba.core.dispatcher import Dispatcher

    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Dispatcher)]
    return [kernel for kernel in found if hasattr(kernel._cache, "_cache_file")]


def name_of(kernel: Any) -> tuple[str, str]:
    return kernel.py_func.__module__, kernel.py_func.__qualname__


def note(file: Path, names: list[str]) -> None:
    import jobs

    for name in names:
        print(name, jobs.result_of(name), flush=True)
    found = {(name_of(kernel), tuple(types)) for kernel in dispatchers() for types in kernel.overloads}
    file.write_bytes(pickle.dumps(found))


def believe_in_arm64() -> None:
    """Have llvmlite and Numba take this process for one on Linux, AArch64."""
    import llvmlite.binding as llvm

    platform.machine = lambda: "aarch64"
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE)
    llvm.get_process_triple = llvm.get_default_triple = lambda: TRIPLE
    llvm.Target.from_default_triple = classmethod(lambda cls: target)

    import numba
    from numba.core import caching, codegen

    assert numba.config.CPU_NAME, "NUMBA_CPU_NAME"

    def emit(self: Any) -> None:
        if self._object_caching_enabled:
            self._compiled = True
            self._compiled_object = self._codegen._tm.emit_object(self._final_module)

    codegen.JITCodeLibrary._finalize_specific = emit
    codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: self._ensure_finalized() or 1
    codegen.JITCPUCodegen._add_module = codegen.JITCPUCodegen.set_env = lambda self, *_: None
    locator = caching.UserProvidedCacheLocator
    subpath = locator.get_suitable_cache_subpath
    locator.get_suitable_cache_subpath = staticmethod(lambda path: subpath(path.replace(str(ROOT), "/project")))


def compile_here(file: Path, names: list[str]) -> None:
    believe_in_arm64()
    import jobs

    from ggufkit.kernels import ahead

    for name in ("ggufkit.formats", "ggufkit.runtime.cpu", "ggufkit.calibrate"):
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)

    def dry_run() -> None:
        for name in names:
            with contextlib.suppress(Exception):
                jobs.result_of(name)

    kernels = ahead.recorded(dry_run)
    known = {(id(kernel), tuple(types)) for kernel, types in kernels}
    by_name = {name_of(kernel): kernel for kernel in dispatchers()}
    for name, types in pickle.loads(file.read_bytes()):
        kernel = by_name.get(name)
        if kernel is not None and (id(kernel), types) not in known:
            kernels.append((kernel, types))
    needed = [found for found in kernels if hasattr(found[0]._cache, "_cache_file") and not ahead.is_kept(*found)]
    needed.sort(key=ahead.size_of, reverse=True)
    children = []
    for part in range(2):
        if (child := os.fork()) == 0:
            for kernel, types in needed[part::2]:
                try:
                    kernel.compile(types)
                except Exception as error:
                    print(f"{kernel.py_func.__name__}: {error}", file=sys.stderr)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    print(f"{len(needed)} kernels compiled of {len(kernels)}", file=sys.stderr)


def main() -> None:
    what, file, *names = sys.argv[1:]
    {"note": note, "compile": compile_here}[what](Path(file), names)


if __name__ == "__main__":
    main()
