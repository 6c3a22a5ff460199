"""How Numba compiles helpers: no further than they are used.

Numba optimises each function on its own and makes machine code of it; then its LLVM code becomes part of its callers'
and is optimised there. Of a helper, which only kernels call, just that matters.

This reaches into Numba, so that `jit` must do without it where an import fails.
"""

from __future__ import annotations

from typing import Any

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

__all__ = ["HelperCompiler"]


_STEPS = ("_optimize_functions", "_optimize_final_module", "_finalize_dynamic_globals", "_finalize_final_module")
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


class HelperCompiler(CompilerBase):
    """Numba's `pipeline_class` for helpers."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("ggufkit_helper")
        passes.passes += DefaultPassBuilder.define_untyped_pipeline(self.state).passes
        passes.passes += DefaultPassBuilder.define_typed_pipeline(self.state).passes
        for step in (NoPythonSupportedFeatureValidation, IRLegalization, AnnotateTypes, _LowerHelper, NoPythonBackend):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]
