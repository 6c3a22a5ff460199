"""Kernels that are called from another kernel, by address.

A kernel that was loaded from the cache is machine code: it can be called, but not become a part of another one. Nor
should it: one kernel for every pair of formats would take hours to compile. So a loop is given addresses:

    @kernel
    def run(encode, x, out):
        call(encode, x, out)

    run(address(q8_0_encode, x, out), x, out)

The code at an address is for arrays of certain types; with others the call would crash.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["address", "address_for", "call"]


def address(kernel: Any, *arguments: Any) -> int:
    """Where the machine code of `kernel` for arguments like these begins; compiles or loads it if need be."""
    return address_for(kernel, tuple(numba.typeof(argument) for argument in arguments))


def address_for(kernel: Any, signature: tuple[Any, ...]) -> int:
    """Where it begins for arguments of these types."""
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@intrinsic
def call(typingctx, address, *arguments):
    """Call the kernel at `address`, which returns nothing. For C-contiguous, aligned arrays."""
    if not all(isinstance(kind, types.Array) and kind.layout == "C" and kind.aligned for kind in arguments):
        return None

    def emit(ctx, b, sig, args):
        kinds = sig.args[1].types
        convention = ctx.call_conv
        code = b.inttoptr(args[0], ir.PointerType(convention.get_function_type(types.none, kinds)))
        values = cgutils.unpack_tuple(b, args[1], len(kinds))
        status, _ = convention.call_function(b, code, types.none, kinds, values)
        with cgutils.if_unlikely(b, status.is_error):
            convention.return_status_propagate(b, status)
        return ctx.get_dummy_value()

    return types.void(address, types.StarArgTuple(arguments)), emit  # type: ignore[attr-defined]
