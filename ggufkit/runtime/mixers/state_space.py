"""State spaces: Mamba and Mamba 2.

    Mamba 2    z, xbc, dt = W x        x, b, c = silu(conv(xbc))        norm(silu(z) · scan(x, b, c, dt))        out
    Mamba      x, z = W x              x = silu(conv(x))                dt, b, c = W′ x        dt = W″ dt
    PLaMo 2    the same, of heads that are wider than one number; of each head first z, then x

The scan is `Ops.scan`; dt is what softplus makes of it and its bias.

Source: src/models/mamba-base.cpp of llama.cpp; Gu, Dao, "Mamba", 2023; Dao, Gu, "Transformers are SSMs", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.convolution import Convolution, load_convolution
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops, StateSpace
from ggufkit.runtime.step import Step

__all__ = ["Mamba", "Mamba2", "found", "load"]


@dataclass(frozen=True)
class _Base:
    """What both have.

    Attributes
    ----------
    space : for `Ops.scan`.
    dt_bias : (heads,), added before softplus.
    """

    slot: int
    convolution: Convolution
    space: StateSpace
    out: Linear

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        space = self.space
        return State(ops, self.convolution.shape, (space.heads, space.size, space.states))

    def _convolved(self, x: Array, step: Step) -> Array:
        return step.ops.activate(None, self.convolution.run(step.ops, x, step.spans(self.slot)), "silu")


@dataclass(frozen=True)
class Mamba2(_Base):
    """One layer's; `inputs` are z, what is convolved, and dt."""

    inputs: tuple[Linear, ...]
    dt_bias: Array
    norm: Norm | None

    def run(self, x: Array, step: Step) -> Array:
        ops, space = step.ops, self.space
        z, xbc, dt = ops.linear(x, *self.inputs)
        sizes = [space.heads * space.size, space.groups * space.states, space.groups * space.states]
        x, b, c = ops.split(self._convolved(xbc, step), sizes)
        dt = ops.activate(None, dt + self.dt_bias, "softplus")
        y = ops.activate(z, ops.scan(x, b, c, dt, step.spans(self.slot), space), "silu")
        if self.norm is not None:
            y = ops.norm(y, self.norm)
        (y,) = ops.linear(y, self.out)
        return y


@dataclass(frozen=True)
class Mamba(_Base):
    """One layer's: heads with a dt of their own, of one number each or a few.

    Attributes
    ----------
    inputs : x and z; or one matrix of both, head by head.
    selection : x → dt, b and c, dt being of a few numbers.
    norms : of these three, each or None.
    dt : these → (heads,), its bias with it.
    """

    inputs: tuple[Linear, ...]
    selection: tuple[Linear, ...]
    norms: tuple[Norm | None, ...]
    dt: Linear

    def run(self, x: Array, step: Step) -> Array:
        ops = step.ops
        if len(self.inputs) == 1:
            (both,) = ops.linear(x, *self.inputs)
            z, x = ops.halves(both, self.space.heads)
        else:
            x, z = ops.linear(x, *self.inputs)
        x = self._convolved(x, step)
        parts = ops.linear(x, *self.selection)
        dt, b, c = (
            part if norm is None else ops.norm(part, norm) for part, norm in zip(parts, self.norms, strict=True)
        )
        (dt,) = ops.linear(dt, self.dt)
        y = ops.scan(x, b, c, ops.activate(None, dt, "softplus"), step.spans(self.slot), self.space)
        (y,) = ops.linear(ops.activate(z, y, "silu"), self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has one."""
    return load.has(f"{at}ssm_in.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> Mamba | Mamba2:
    """A layer's, its tensors checked and taken."""
    keys, at, width, ops = load.hyper.keys, f"blk.{layer}.", load.hyper.width, load.ops
    inner, states = keys.count("ssm.inner_size"), keys.count("ssm.state_size")
    taps, rank = keys.count("ssm.conv_kernel", most=64), keys.count("ssm.time_step_rank")
    if load.has(f"{at}ssm_x.weight"):
        of = _mamba_of_heads if load.graph.wide_heads else _mamba
        loaded: Mamba | Mamba2 = of(load, at, len(slots), (inner, states, taps, rank))
        slots.append(loaded)
        return loaded
    groups = keys.count("ssm.group_count")
    if inner % rank or rank % groups or inner % groups:
        raise keys.fail("ssm.time_step_rank", f"is {rank}; {inner} numbers of {groups} groups do not divide so")
    space = StateSpace(
        heads=rank,
        size=inner // rank,
        groups=groups,
        states=states,
        a=ops.vector(load.numbers(f"{at}ssm_a", rank, 1)),
        d=ops.vector(load.numbers(f"{at}ssm_d", rank, 1).reshape(rank)),
    )
    channels = inner + 2 * groups * states
    loaded = Mamba2(
        slot=len(slots),
        convolution=load_convolution(load, f"{at}ssm_conv1d", channels, taps),
        space=space,
        out=load.linear(f"{at}ssm_out", width, inner),
        inputs=tuple(load.parts(f"{at}ssm_in", [inner, channels, rank], width)),
        dt_bias=ops.vector(load.vector(f"{at}ssm_dt.bias", rank)),
        norm=load.norm(f"{at}ssm_norm", inner // groups, groups),
    )
    slots.append(loaded)
    return loaded


def _mamba(load: Loader, at: str, slot: int, sizes: tuple[int, int, int, int]) -> Mamba:
    keys, width, ops = load.hyper.keys, load.hyper.width, load.ops
    inner, states, taps, rank = sizes
    plain = keys.flag("ssm.dt_b_c_rms", False)
    norms = tuple(
        load.plain_norm(size) if plain else load.norm(f"{at}ssm_{name}_norm", size)
        for name, size in (("dt", rank), ("b", states), ("c", states))
    )
    a, d = load.numbers(f"{at}ssm_a", inner, states), load.vector(f"{at}ssm_d", inner)
    return Mamba(
        slot=slot,
        convolution=load_convolution(load, f"{at}ssm_conv1d", inner, taps),
        space=StateSpace(inner, 1, 1, states, ops.vector(a), ops.vector(d)),
        out=load.linear(f"{at}ssm_out", width, inner),
        inputs=tuple(load.parts(f"{at}ssm_in", [inner, inner], width)),
        selection=tuple(load.parts(f"{at}ssm_x", [rank, states, states], inner)),
        norms=norms,
        dt=load.linear(f"{at}ssm_dt", inner, rank),
    )


def _mamba_of_heads(load: Loader, at: str, slot: int, sizes: tuple[int, int, int, int]) -> Mamba:
    """As many heads as `rank` says; of how many numbers dt is made says the matrix."""
    width, ops = load.hyper.width, load.ops
    inner, states, taps, heads = sizes
    if inner % heads:
        raise load.hyper.keys.fail("ssm.time_step_rank", f"is {heads}, which does not divide {inner} numbers")
    dt = load.linear(f"{at}ssm_dt", heads, -1)
    b, c, short = load.parts(f"{at}ssm_x", [states, states, dt.cols], inner)
    a, d = load.numbers(f"{at}ssm_a", heads), load.vector(f"{at}ssm_d", heads)
    return Mamba(
        slot=slot,
        convolution=load_convolution(load, f"{at}ssm_conv1d", inner, taps),
        space=StateSpace(heads, inner // heads, 1, states, ops.vector(a.reshape(heads, 1)), ops.vector(d)),
        out=load.linear(f"{at}ssm_out", width, inner),
        inputs=(load.linear(f"{at}ssm_in", 2 * inner, width),),
        selection=(short, b, c),
        norms=tuple(
            load.norm(f"{at}ssm_{name}_norm", size) for name, size in (("dt", dt.cols), ("b", states), ("c", states))
        ),
        dt=dt,
    )
