"""Metal kernels that take a state through all tokens of a pass: the recurrences of `recurrence` in one launch each.

A simdgroup keeps a piece of a head's state in registers while the tokens pass, and threads do not meet but in shuffles:

    delta, wkv   state (heads, rows, columns): 8 columns a simdgroup; lane l has the rows of quarter l / 8 of column
                 l % 8. What a column gives is added up over the four lanes that share it.
    space        state (heads × size, states): a row is `_width` lanes', each with a run of neighbouring states.

MLX compiles a source when its kernel is first called, one for each shape of state, whatever the number of tokens. The
sources are C++ but for a few names (tests/oracles/metal_shim.py has them).
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import mlx.core as mx

from ggufkit.runtime.ops import StateSpace

__all__ = ["delta", "delta_source", "space", "space_source", "takes", "takes_space", "wkv", "wkv_source"]

_COLUMNS = 8  # of a simdgroup
_MOST = 64  # numbers that a thread keeps in registers
_GROUPS = 4  # simdgroups in a threadgroup


def _on_metal() -> bool:
    return bool(mx.metal.is_available())


def takes(state: mx.array) -> bool:
    """Whether there is a kernel for a state (heads, rows, columns)."""
    _, rows, columns = state.shape
    return _on_metal() and _fits(rows, columns)


def _fits(rows: int, columns: int) -> bool:
    return rows % 4 == 0 and rows // 4 <= _MOST and columns % _COLUMNS == 0


def takes_space(space: StateSpace) -> bool:
    """Whether there is a kernel for a state space."""
    return _on_metal() and _width(space.heads * space.size, space.states) > 0


def _width(rows: int, states: int) -> int:
    """Lanes that share a row: 4 states each, or as many as 32 lanes need; 0 where they do not divide so."""
    width = min(32, states // 4)
    if width == 0 or width & (width - 1) or states % width or states // width > _MOST or rows % (32 // width):
        return 0
    return width


# -- sources ----------------------------------------------------------------------------------------------


def _columns(heads: int, rows: int, columns: int, token: str) -> str:
    """Columns of a state through all tokens. `token` sees what a lane has of the state, `s`, from row `first` on."""
    return f"""
    uint lane = thread_position_in_grid.x, head = thread_position_in_grid.z, first = lane / {_COLUMNS}u * {rows // 4}u;
    uint column = {_COLUMNS}u * thread_position_in_grid.y + lane % {_COLUMNS}u;
    size_t base = ((size_t)head * {rows}u + first) * {columns}u + column;
    float s[{rows // 4}];
    for (uint i = 0; i < {rows // 4}u; ++i) s[i] = state[base + i * {columns}u];
    for (int t = 0; t < n; ++t) {{
        size_t at = (size_t)t * {heads}u + head, keys = at * {rows}u + first, values = at * {columns}u + column;
        float found = 0, known = 0;{token}
        found += simd_shuffle_xor(found, 8);
        found += simd_shuffle_xor(found, 16);
        if (lane < {_COLUMNS}u) out[values] = found;
    }}
    for (uint i = 0; i < {rows // 4}u; ++i) after[base + i * {columns}u] = s[i];
"""


_KNOWN = """
        known += simd_shuffle_xor(known, 8);
        known += simd_shuffle_xor(known, 16);"""


@cache
def delta_source(heads: int, rows: int, columns: int, alike: bool) -> str:
    """Body of the kernel for `Ops.delta`; `alike`: one decay a head."""
    some = f"for (uint i = 0; i < {rows // 4}u; ++i)"
    weaken = "float left = exp(decay[at]);" if alike else ""
    left = "left" if alike else "exp(decay[keys + i])"
    token = f"""
        {weaken}
        {some} {{
            s[i] *= {left};
            known += s[i] * k[keys + i];
        }}{_KNOWN}
        float news = (v[values] - known) * beta[at];
        {some} {{
            s[i] += k[keys + i] * news;
            found += s[i] * q[keys + i];
        }}"""
    return _columns(heads, rows, columns, token)


@cache
def wkv_source(heads: int, size: int, unlearns: bool, itself: bool) -> str:
    """Body of the kernel for `Ops.wkv`; `unlearns`: with a and b; `itself`: with a bonus."""
    some = f"for (uint i = 0; i < {size // 4}u; ++i)"
    unlearn = f"\n        {some} known += s[i] * a[keys + i];{_KNOWN}" if unlearns else ""
    change = " + b[keys + i] * known" if unlearns else ""
    before = f"found += (s[i] + bonus[head * {size}u + first + i] * next) * r[keys + i];" if itself else ""
    after = "" if itself else "found += s[i] * r[keys + i];"
    token = f"""{unlearn}
        {some} {{
            float next = k[keys + i] * v[values];
            {before}
            s[i] = s[i] * w[keys + i] + next{change};
            {after}
        }}"""
    return _columns(heads, size, size, token)


@cache
def space_source(heads: int, size: int, groups: int, states: int, alike: bool) -> str:
    """Body of the kernel for `Ops.scan`; `alike`: all states of a head decay alike."""
    width = _width(heads * size, states)
    each = states // width
    some = f"for (uint i = 0; i < {each}u; ++i)"
    adding = "".join(f"\n        found += simd_shuffle_xor(found, {1 << i});" for i in range(width.bit_length() - 1))
    return f"""
    uint lane = thread_position_in_grid.x, row = thread_position_in_grid.y * {32 // width}u + lane / {width}u;
    uint head = row / {size}u, first = lane % {width}u * {each}u, group = head / {heads // groups}u;
    size_t base = (size_t)row * {states}u + first;
    float s[{each}], rates[{1 if alike else each}];
    {some} s[i] = state[base + i];
    {"rates[0] = a[head];" if alike else f"{some} rates[i] = a[head * {states}u + first + i];"}
    for (int t = 0; t < n; ++t) {{
        float step = dt[(size_t)t * {heads}u + head], value = x[(size_t)t * {heads * size}u + row], found = 0;
        size_t at = ((size_t)t * {groups}u + group) * {states}u + first;
        {"float left = exp(step * rates[0]);" if alike else ""}
        {some} {{
            s[i] = s[i] * {"left" if alike else "exp(step * rates[i])"} + step * value * b[at + i];
            found += s[i] * c[at + i];
        }}{adding}
        if (first == 0) out[(size_t)t * {heads * size}u + row] = found + d[head] * value;
    }}
    {some} after[base + i] = s[i];
"""


# -- calls ------------------------------------------------------------------------------------------------


@cache
def _kernel(name: str, inputs: tuple[str, ...], source: str) -> Any:
    return mx.fast.metal_kernel(
        name=f"ggufkit_{name}_{zlib.crc32(source.encode()):08x}",
        input_names=[*inputs, "n"],
        output_names=["out", "after"],
        source=source,
    )


def _run(
    name: str, source: str, inputs: dict[str, mx.array], like: mx.array, state: mx.array, grid: tuple[int, int]
) -> tuple[mx.array, mx.array]:
    """All tokens of a pass; what it finds is of the shape of `like`."""
    out, after = _kernel(name, tuple(inputs), source)(
        inputs=[*inputs.values(), len(like)],
        grid=(32, *grid),
        threadgroup=(32, min(_GROUPS, grid[0]), 1),
        output_shapes=[like.shape, state.shape],
        output_dtypes=[mx.float32, mx.float32],
    )
    return out, after


def delta(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """`Ops.delta` of one conversation."""
    heads, rows, columns = state.shape
    source = delta_source(heads, rows, columns, decay.shape[2] == 1)
    inputs = {"q": q, "k": k, "v": v, "decay": decay, "beta": beta, "state": state}
    return _run("delta", source, inputs, v, state, (columns // _COLUMNS, heads))


def wkv(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array | None,
    b: mx.array | None,
    bonus: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    """`Ops.wkv` of one conversation."""
    heads, size, _ = state.shape
    source = wkv_source(heads, size, a is not None, bonus is not None)
    given = {"r": r, "w": w, "k": k, "v": v, "a": a, "b": b, "bonus": bonus, "state": state}
    inputs = {name: array for name, array in given.items() if array is not None}
    return _run("wkv", source, inputs, v, state, (size // _COLUMNS, heads))


def space(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """`Ops.scan` of one conversation."""
    rows = space.heads * space.size
    source = space_source(space.heads, space.size, space.groups, space.states, space.a.shape[1] == 1)
    inputs = {"x": x, "b": b, "c": c, "dt": dt, "a": space.a, "d": space.d, "state": state}
    return _run("space", source, inputs, x, state, (rows * _width(rows, space.states) // 32, 1))
