"""How Numba compiles kernels and their helpers: no further than they are used, and what it keeps of them.

Numba optimises each function on its own and makes machine code of it; then its LLVM code becomes part of its callers'
and is optimised there. Of a helper, which only kernels call, just that matters. Of a kernel, which Python calls, or
another one by its address, just the machine code does; it is cached without the LLVM code, which takes longer to load.

This reaches into Numba, so that `jit` must do without it where an import fails.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NoPythonSupportedFeatureValidation,
)

__all__ = ["HelperCompiler", "KernelCompiler"]


_STEPS = (
    "_optimize_functions",
    "_optimize_final_module",
    "_finalize_dynamic_globals",
    "_finalize_final_module",
    "_get_compiled_object",
)
if not all(hasattr(JITCodeLibrary, step) for step in _STEPS):
    raise ImportError("this Numba compiles in other steps")


class _Draft(JITCodeLibrary):
    """LLVM code as it was written, to be linked into that of others; the methods leave out what Numba does besides."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _Whole(JITCodeLibrary):
    """A kernel and all that it calls."""

    entries: tuple[str, ...] = ()  # what Python calls, and what other kernels call

    def serialize_using_object_code(self) -> tuple[str, str, tuple[bytes, bytes]]:
        # Numba looks up in the LLVM code which symbols the machine code defines.
        symbols = llvm.parse_assembly("\n".join(f'@"{entry}" = global i8 0' for entry in self.entries))
        return self.name, "object", (self._get_compiled_object(), symbols.as_bitcode())


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerKernel(NativeLowering):
    _name = "ggufkit_lower_kernel"

    def run_pass(self, state: Any) -> bool:
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        super().run_pass(state)
        found = state["cr"].fndesc
        state.library.entries = found.llvm_cpython_wrapper_name, found.llvm_func_name
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerHelper(NativeLowering):
    _name = "ggufkit_lower_helper"

    def run_pass(self, state: Any) -> bool:
        library = state.library = _Draft(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        # Callers find a function by its entry point, which is of no other use here.
        lowered = state["cr"]
        module, name = lowered.fndesc.lookup_module(), lowered.fndesc.qualname
        entry = _dynfunc.make_function(module, name, "not to be called from Python", 0, lowered.env, (library,))
        state.targetctx.insert_user_function(entry, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


def _passes(state: Any, lower: type[NativeLowering]) -> list[PassManager]:
    """Numba's own, but for one."""
    passes = PassManager(lower.__name__)
    passes.passes += DefaultPassBuilder.define_untyped_pipeline(state).passes
    passes.passes += DefaultPassBuilder.define_typed_pipeline(state).passes
    for step in (NoPythonSupportedFeatureValidation, IRLegalization, AnnotateTypes, lower, NoPythonBackend):
        passes.add_pass(step, step.__name__)
    passes.finalize()
    return [passes]


class KernelCompiler(CompilerBase):
    """Numba's `pipeline_class` for kernels."""

    def define_pipelines(self) -> list[PassManager]:
        return _passes(self.state, _LowerKernel)


class HelperCompiler(CompilerBase):
    """Numba's `pipeline_class` for helpers."""

    def define_pipelines(self) -> list[PassManager]:
        return _passes(self.state, _LowerHelper)
