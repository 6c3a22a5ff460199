"""What threads tell each other without the interpreter: who does which rows, when work begins, when it is done.

Numbers that several threads change are int64, each on a cache line of its own. `kernels.threads` explains the whole.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.jit import kernel

__all__ = ["LINE", "fence", "now", "pause", "take", "take_share", "tell", "wait_for_end", "wait_for_start"]

LINE = 8  # int64 of a cache line

_SETTLE = 32  # pauses: a microsecond or two, in which the starting thread leaves the interpreter


@intrinsic
def take(typingctx, counter, amount):
    """Atomically add `amount` to `counter[0]` and return what was there before."""

    def emit(ctx, b, sig, args):
        pointer = ctx.make_array(sig.args[0])(ctx, b, args[0]).data
        return b.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(counter, types.int64), emit


@kernel
def take_share(counter, amount):
    """`take` for work that is done in Python."""
    return take(counter, amount)


@intrinsic
def now(typingctx, numbers, index):
    """`numbers[index]` as it is in memory now, with all that was written before it."""

    def emit(ctx, b, sig, args):
        pointer = b.gep(ctx.make_array(sig.args[0])(ctx, b, args[0]).data, [args[1]])
        return b.load_atomic(pointer, "acquire", 8)

    return types.int64(numbers, types.intp), emit


@intrinsic
def tell(typingctx, numbers, index, value):
    """Write `numbers[index]` after all that was written before."""

    def emit(ctx, b, sig, args):
        pointer = b.gep(ctx.make_array(sig.args[0])(ctx, b, args[0]).data, [args[1]])
        b.store_atomic(args[2], pointer, "release", 8)
        return ctx.get_dummy_value()

    return types.void(numbers, types.intp, types.int64), emit


@intrinsic
def fence(typingctx):
    """What this thread wrote before is seen by all before it reads what comes after."""

    def emit(ctx, b, sig, args):
        b.fence("seq_cst")
        return ctx.get_dummy_value()

    return types.void(), emit


@intrinsic
def pause(typingctx):
    """Let the other thread of the core work a little."""

    def emit(ctx, b, sig, args):
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            b.call(b.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=kind), [])
        elif machine in ("arm64", "aarch64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            b.call(b.module.declare_intrinsic("llvm.aarch64.hint", fnty=kind), [ir.Constant(ir.IntType(32), 1)])
        return ctx.get_dummy_value()

    return types.void(), emit


@kernel
def wait_for_start(state, round_at, seen, busy_at, patience):
    """The round that began after round `seen`, once its first share has been taken; `seen` after `patience` pauses.

    First says that this thread is not busy any more.
    """
    tell(state, busy_at, 0)
    for _ in range(patience):
        current = now(state, round_at)
        if current != seen and now(state, 0) != 0:
            for _ in range(_SETTLE):
                pause()
            return current
        pause()
    return seen


@kernel
def wait_for_end(state, busy_at, count, patience):
    """True once none of `count` threads is busy, False after `patience` pauses."""
    for helper in range(count):
        while now(state, busy_at + helper * LINE) != 0:
            patience -= 1
            if patience < 0:
                return False
            pause()
    return True
