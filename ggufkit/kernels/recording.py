"""Calls of kernels that are written down once and made many times, without the interpreter between them.

    recording = Recording(threads)
    recording.stage([Call(rms_norm, (x, weight, epsilon, y))])
    recording.stage([Call(vector, (COUNTER, data, rows, y, out))])      # all threads, with a counter that they share
    recording.stage([Call(attend, (q, keys, values, out), items=8)])    # all threads, a range of items at a time
    recording.play()

Stages follow one another. The calls of a stage may be made at the same time, those before it have ended. One thread
leads; the others, as many as come, help with the stages that are shared:

    leads    closed ─ calls of one thread ─ open 5 ─ takes shares … none left ─ closed ─ no one is inside ─ open 6
    follows  ……………………………………………………………… inside 5 ─ takes shares … none left ─ outside …………………… inside 6

A thread that was held up therefore delays no one, and one that comes late finds the stage that is open.

A call is a few 64-bit words: how to enter the kernel, where its code is, and its arguments as the machine code takes
them, arrays as addresses and sizes. So a later run with other numbers, or arrays in another place, is a matter of
writing some words (`Moving`, `place`), and which matrix of a stack a call reads a kernel before it writes (`Chosen`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ggufkit.kernels import addresses
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.shares import LINE, fence, now, pause, take, tell
from ggufkit.kernels.threads import SHARES, in_all_threads

__all__ = ["COUNTER", "Call", "Chosen", "Moving", "Recording"]

COUNTER = np.zeros(2, np.int64)  # stands for the counter of rows that threads take from, see `kernels.threads`

_WORDS = np.zeros(1, np.int64)  # stands for the words of all calls

_CLOSED, _OVER = 0, -1
_PATIENCE = 4000  # pauses before a thread that waits lets others have the CPU
_WORD = ir.IntType(64)
_ENTRY = ir.FunctionType(ir.IntType(32), [_WORD, ir.PointerType(_WORD), _WORD, _WORD])


class Moving(int):
    """A number that is another one in later runs: that of `source`, plus what was added to it."""

    source: int
    more: int

    def __new__(cls, value: int, source: int, more: int = 0) -> Moving:
        found = super().__new__(cls, value)
        found.source, found.more = source, more
        return found

    def __add__(self, other: int) -> Moving:
        return Moving(int(self) + other, self.source, self.more + other)

    def __sub__(self, other: int) -> Moving:
        return self + -other


class Chosen(NamedTuple):
    """An array that is chosen when the call is made: `stack[numbers[place]]`.

    Attributes
    ----------
    stack : C-contiguous array.
    numbers : flat array of int64, within the stack.
    """

    stack: Any
    numbers: Any
    place: int


class Call(NamedTuple):
    """A call of a kernel that returns nothing.

    Attributes
    ----------
    arguments : arrays, numbers and tuples of them; `COUNTER` for a counter that threads share.
    items : the kernel takes two more arguments, the first of a range of so many items and the one after the last.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    items: int = 0


class Recording:
    """Calls in stages. What they are given must live as long.

    Parameters
    ----------
    threads : how many may make them.
    placed : addresses of arrays that are in other places in later runs, and a number for each; see `place`.
    """

    def __init__(self, threads: int, placed: dict[int, int] | None = None):
        self.threads = threads
        self._placed = placed or {}
        self._words: list[int] = []
        self._calls: list[tuple[int, ...]] = []  # entry, code, first word, items
        self._entries: list[tuple[tuple[Any, ...], bool]] = []  # of each call
        self._stages: list[tuple[int, int, int]] = []  # first call, one after the last, whether threads share them
        self._parts: list[tuple[int, int] | Callable[[], object]] = []  # stages, or what is done in Python between
        self._kept: list[Any] = []  # what calls of its own read
        self._moving: dict[int, list[tuple[int, int]]] = {}  # source → (word, what is added)
        self._places: list[tuple[int, int]] = []  # (word, number of an array)
        self._chosen: list[tuple[Chosen, int]] = []  # of the stage that is being written, and the word of its address
        self._own: list[int] = []  # where the words themselves are meant
        self._counters = np.zeros(SHARES * LINE, np.int64)
        self._state = np.zeros((threads + 1) * LINE, np.int64)

    def stage(self, calls: Sequence[Call], shared: bool = True) -> None:
        """Add calls that do not depend on each other.

        Parameters
        ----------
        shared : threads share those with counters or items; else one thread makes all.
        """
        stages = []
        for lo in range(0, len(calls), SHARES):
            first = len(self._calls)
            for number, call in enumerate(calls[lo : lo + SHARES]):
                self._add(call, number)
            stages.append((first, len(self._calls), int(shared and self.threads > 1)))
        first = len(self._calls)
        for call in self._pointing():
            self._add(call, 0)
        if len(self._calls) > first:
            stages.insert(0, (first, len(self._calls), 0))
        self._stages += stages
        self._parts.append((len(self._stages) - len(stages), len(self._stages)))

    def _pointing(self) -> list[Call]:
        """What writes the addresses of chosen arrays before a stage."""
        found: dict[int, tuple[np.ndarray, list[tuple[int, ...]]]] = {}
        for (stack, numbers, place), word in self._chosen:
            row = word, stack.ctypes.data, stack.strides[0], place
            found.setdefault(numbers.ctypes.data, (numbers, []))[1].append(row)
        self._chosen = []
        self._kept += (tables := [(numbers, np.array(rows, np.int64)) for numbers, rows in found.values()])
        return [Call(point, (_WORDS, table, numbers)) for numbers, table in tables]

    def between(self, function: Callable[[], object]) -> None:
        """Add something that is done in Python."""
        self._parts.append(function)

    def finish(self) -> None:
        """No more is added."""
        self._words_now = np.array(self._words, np.int64)
        for at in self._own:  # an array, see `_write`
            self._words_now[[at + 2, at + 4, at + 5]] = (
                self._words_now.size,
                self._words_now.ctypes.data,
                self._words_now.size,
            )
        self._calls_now = np.array(self._calls, np.int64).reshape(-1, 4)
        _make_entries(self._entries)
        self._calls_now[:, 0] = [_ENTRIES[key] for key in self._entries]
        self._stages_now = np.array(self._stages, np.int64).reshape(-1, 3)
        runs: list[Any] = []  # consecutive stages are one run
        for part in self._parts:
            if not callable(part) and runs and not callable(runs[-1]):
                runs[-1] = (runs[-1][0], part[1])
            else:
                runs.append(part)
        self._runs = [part if callable(part) else self._stages_now[part[0] : part[1]] for part in runs]
        self._moves = {
            source: (np.array([at for at, _ in found]), np.array([more for _, more in found], np.int64))
            for source, found in self._moving.items()
        }
        self._place_words = np.array([at for at, _ in self._places], np.int64)
        self._place_numbers = np.array([number for _, number in self._places], np.int64)

    def move(self, source: int, value: int) -> None:
        """The numbers of this source are `value` from now on, plus what was added to them."""
        if source in self._moves:
            at, more = self._moves[source]
            self._words_now[at] = more + value

    def place(self, addresses: np.ndarray) -> None:
        """The arrays that were `placed` are at these addresses from now on, one for each of their numbers."""
        if self._place_words.size:
            self._words_now[self._place_words] = addresses[self._place_numbers]

    def play(self) -> None:
        """Make all calls."""
        for part in self._runs:
            if callable(part):
                part()
            elif len(part):
                self._play(part)

    def _play(self, stages: np.ndarray) -> None:
        state = self._state
        state[:] = _CLOSED
        arguments = stages, self._calls_now, self._words_now, state, self._counters, _idle()
        in_all_threads(lambda shares: play(shares[0], *arguments), self.threads)
        if state[1]:
            raise MemoryError(f"a kernel failed with status {state[1]}")

    def _add(self, call: Call, number: int) -> None:
        kinds = tuple(numba.typeof(x.stack[0] if isinstance(x, Chosen) else x) for x in call.arguments)
        code = _code_of(call.kernel, kinds, call.items > 0)
        first = len(self._words)
        for argument, kind in zip(call.arguments, kinds, strict=True):
            own = self._counters[number * LINE : number * LINE + 2]
            self._write(own if argument is COUNTER else argument, kind)
        self._entries.append((kinds, call.items > 0))
        self._calls.append((0, code, first, call.items))

    def _write(self, value: Any, kind: Any) -> None:
        """An argument as machine code takes it; see Numba's data models."""
        if isinstance(value, Chosen):
            self._chosen.append((value, len(self._words) + 4))
            value = value.stack[0]
        if value is _WORDS:
            self._own.append(len(self._words))
        if isinstance(kind, types.Array):
            address = value.ctypes.data
            if address in self._placed and value.size:
                self._places.append((len(self._words) + 4, self._placed[address]))
            self._words += [0, 0, value.size, value.itemsize, address, *value.shape, *value.strides]
        elif isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
            for part, type_ in zip(value, kind, strict=True):
                self._write(part, type_)
        elif isinstance(kind, types.Float):
            self._words.append(int(np.array(value, f"f{kind.bitwidth // 8}").view(f"i{kind.bitwidth // 8}")))
        else:
            if isinstance(value, Moving):
                self._moving.setdefault(value.source, []).append((len(self._words), value.more))
            self._words.append(int(value))


@cache
def _code_of(kernel: Any, kinds: tuple[Any, ...], ranged: bool) -> int:
    more = (types.int64, types.int64) if ranged else ()
    return addresses.address_for(kernel, (*kinds, *more))


# -- how a kernel is entered ------------------------------------------------------------------------------


_ENTRIES: dict[tuple[tuple[Any, ...], bool], int] = {}  # (types, whether a range follows) → address
_LIBRARIES: list[Any] = []  # whose code they are


@global_compiler_lock
def _make_entries(wanted: Iterable[tuple[tuple[Any, ...], bool]]) -> None:
    """Make functions (code, words, lo, hi) that call kernels for arguments of these types, all at once."""
    if not (missing := [key for key in dict.fromkeys(wanted) if key not in _ENTRIES]):
        return
    library = cpu_target.target_context.codegen().create_library("ggufkit_entries")
    module = library.create_ir_module("ggufkit_entries")
    names = [f"ggufkit_entry_{len(_ENTRIES) + i}" for i in range(len(missing))]
    for name, key in zip(names, missing, strict=True):
        _write_entry(ir.Function(module, _ENTRY, name), *key)
    library.add_ir_module(module)
    library.finalize()
    _LIBRARIES.append(library)
    _ENTRIES.update(zip(missing, map(library.get_pointer_to_function, names), strict=True))


def _write_entry(function: ir.Function, kinds: tuple[Any, ...], ranged: bool) -> None:
    context = cpu_target.target_context
    b = ir.IRBuilder(function.append_basic_block())
    code, words, lo, hi = function.args
    packer = context.get_arg_packer(kinds)
    flat = [_as(b, b.load(b.gep(words, [_WORD(i)])), kind) for i, kind in enumerate(packer.argument_types)]
    values, every = [*packer.from_arguments(b, flat)], kinds
    if ranged:
        values, every = [*values, lo, hi], (*kinds, types.int64, types.int64)
    convention = context.call_conv
    callee = b.inttoptr(code, ir.PointerType(convention.get_function_type(types.none, every)))
    status, _ = convention.call_function(b, callee, types.none, every, values)
    b.ret(status.code)


def _as(b: ir.IRBuilder, word: Any, kind: Any) -> Any:
    """A word as a number or a pointer of some LLVM type."""
    if isinstance(kind, ir.PointerType):
        return b.inttoptr(word, kind)
    if isinstance(kind, ir.FloatType):
        return b.bitcast(b.trunc(word, ir.IntType(32)), kind)
    if isinstance(kind, ir.DoubleType):
        return b.bitcast(word, kind)
    return word if kind == _WORD else b.trunc(word, kind)


@intrinsic
def _enter(typingctx, entry, code, words, at, lo, hi):
    """The status of a kernel that is entered at an address: 0 unless it failed."""

    def emit(ctx, b, sig, args):
        start = b.gep(ctx.make_array(sig.args[2])(ctx, b, args[2]).data, [args[3]])
        return b.call(b.inttoptr(args[0], ir.PointerType(_ENTRY)), [args[1], start, args[4], args[5]])

    return types.int32(*[types.int64] * 2, words, *[types.int64] * 3), emit


@cache
def _idle() -> int:
    """The address of a function of the system that lets another thread have the CPU."""
    library = ctypes.windll.kernel32 if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]
    function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@intrinsic
def _let_others(typingctx, idle):
    def emit(ctx, b, sig, args):
        b.call(b.inttoptr(args[0], ir.PointerType(ir.FunctionType(ir.IntType(32), []))), [])
        return ctx.get_dummy_value()

    return types.void(types.int64), emit


# -- the threads ------------------------------------------------------------------------------------------


@kernel
def play(turn, stages, calls, words, state, counters, idle):
    """Lead, as the first that comes, or follow. turn: a counter, and the number of threads.

    state, on lines of their own: the stage that is open, counted from 1, and then the status of a call that failed;
    for each that follows the stage that it is inside.
    """
    number = take(turn, 1)
    if number == 0:
        _lead(turn[1], stages, calls, words, state, counters, idle)
    else:
        _follow(number * LINE, stages, calls, words, state, counters, idle)


@kernel
def point(words, table, numbers):
    """Write the addresses of chosen arrays: table (n, 4), each a word, the stack's address, its stride, a place."""
    for i in range(table.shape[0]):
        words[table[i, 0]] = table[i, 1] + numbers[table[i, 3]] * table[i, 2]


@helper
def _lead(threads, stages, calls, words, state, counters, idle):
    for i in range(0, counters.shape[0], LINE):
        counters[i + 1] = threads
    for s in range(stages.shape[0]):
        first, last, shared = stages[s, 0], stages[s, 1], stages[s, 2]
        for c in range(last - first):
            counters[c * LINE] = 0
        if shared and threads > 1:
            tell(state, 0, s + 1)
            _share(first, last, calls, words, counters, state)
            _close(_CLOSED, state, idle)
        else:
            _share(first, last, calls, words, counters, state)
    _close(_OVER, state, idle)


@helper
def _close(how, state, idle):
    """No one enters any more; wait for those inside."""
    tell(state, 0, how)
    fence()
    for i in range(LINE, state.shape[0], LINE):
        waited = 0
        while now(state, i) != 0:
            waited = _wait(waited, idle)


@helper
def _follow(line, stages, calls, words, state, counters, idle):
    seen, waited = 0, 0
    current = now(state, 0)
    while current != _OVER:
        if current == _CLOSED or current == seen:  # noqa: PLR1714, SIM109 - not in Numba
            waited = _wait(waited, idle)
        else:
            tell(state, line, current)
            fence()
            if now(state, 0) == current:
                _share(stages[current - 1, 0], stages[current - 1, 1], calls, words, counters, state)
                seen = current
            tell(state, line, 0)
            waited = 0
        current = now(state, 0)


@helper
def _wait(waited, idle):
    pause()
    if waited < _PATIENCE:
        return waited + 1
    _let_others(idle)
    return waited


@helper
def _share(first, last, calls, words, counters, state):
    """What is left to do of some calls."""
    for c in range(first, last):
        entry, code, at, items = calls[c, 0], calls[c, 1], calls[c, 2], calls[c, 3]
        counter = counters[(c - first) * LINE : (c - first) * LINE + 2]
        status = 0
        if items == 0:
            status = _enter(entry, code, words, at, 0, 0)
        else:
            some = max(items // (4 * counter[1]), 1)
            lo = take(counter, some)
            while lo < items and status == 0:
                status = _enter(entry, code, words, at, lo, min(lo + some, items))
                lo = take(counter, some)
        if status != 0:
            state[1] = status
