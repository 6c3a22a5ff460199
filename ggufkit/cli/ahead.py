"""Kernels are compiled before the work begins, with a count: "compiling 23 kernels for this CPU, once: 7/23"."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggufkit.cli.progress import count_bar, note

if TYPE_CHECKING:
    from ggufkit.formats.table import Format
    from ggufkit.jobs.job import Job

__all__ = ["ready_for_everything", "ready_to_run", "ready_to_write"]


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], object]]:
    doing = f"compiling {total} kernel{'s' * (total > 1)} for this CPU, once"
    if not sys.stderr.isatty():
        note(doing)
    with count_bar(total, doing) as advance:
        yield lambda name: advance(1, name)


def ready_to_run(path: str, on: dict[str, Any], types: tuple[str, str] = ("F16", "F16")) -> int:
    """Compile what loading and running a model takes: a prompt, single tokens, the cache.

    Parameters
    ----------
    on : the arguments of `runtime.model.load`.
    types : of the cache's keys and values.
    """
    from ggufkit.gguf.reader import open as open_gguf
    from ggufkit.runtime.backend import make_ops
    from ggufkit.runtime.cpu.ops import CpuOps

    with open_gguf(path) as gguf:
        if not isinstance(make_ops(on.get("backend", "auto"), gguf, 1), CpuOps):
            return 0
        # What decides on kernels: each tensor of a layer with its format.
        tensors = sorted({(re.sub(r"\d+", "", name), info.format.name) for name, info in gguf.info.items()})
        architecture = gguf.metadata.get("general.architecture")
    from ggufkit.kernels.ahead import compile_ahead

    job = f"run {architecture} {types} {on.get('as_ggml')} {tensors}"
    return compile_ahead(job, lambda: _run(path, on, types), _bar)


def _run(path: str, on: dict[str, Any], types: tuple[str, str]) -> None:
    import numpy as np

    from ggufkit.runtime.cpu.products import FEW
    from ggufkit.runtime.model import load

    many = FEW + 1
    model = load(path, **{**on, "threads": 1})
    if model.weights.output is None:
        model.embed(np.zeros(many, np.int32))
        return
    cache = model.new_cache(2 * many, *types)
    for n in (1, 1, 3, many):  # a token, and again as it is recorded; a few; a prompt
        model.forward(np.zeros(n, np.int32), cache, "all")


def ready_to_write(job: Job) -> int:
    """Compile what a job takes: the decoders of its sources, the encoders of its targets."""
    from ggufkit.kernels.ahead import compile_ahead

    pairs = {(p.tensor.format, p.format, p.importance is not None) for p in job.plan.tensors if p.tensor.rows}
    name = " ".join(sorted(f"{a.name}>{b.name}{'*' * weighted}" for a, b, weighted in pairs))
    return compile_ahead(f"write {name}", lambda: _write(pairs), _bar) if pairs else 0


def _write(pairs: set[tuple[Format, Format, bool]]) -> None:
    import numpy as np

    from ggufkit.formats.codec import decode, encode, recode
    from ggufkit.kernels.xxh64 import XXH64

    for source, target, weighted in pairs:
        cols = max(source.block_size, target.block_size)
        importance = np.ones(cols, np.float32) if weighted else None
        blocks = np.zeros((1, source.row_bytes(cols)), np.uint8)
        out = np.empty((1, target.row_bytes(cols)), np.uint8)
        recode(blocks, source, target, importance, out=out)
        encode(np.zeros((1, cols), np.float32), target, importance, out=out)
        decode(blocks, source)
    XXH64().update(bytes(64))


def ready_for_everything() -> int:
    """Compile every encoder, decoder and product, and what models of any architecture take."""
    from ggufkit.kernels.ahead import compile_ahead

    return compile_ahead("everything", _everything, _bar)


def _everything() -> None:
    from contextlib import suppress
    from functools import partial

    from ggufkit.formats.table import format_by_name, formats

    single = format_by_name("F32")
    steps: list[Callable[[], Any]] = []
    for format in formats():
        if format.encodable:
            for weighted in (False, True):
                steps.append(partial(_write, {(single, format, weighted)}))
            steps.append(partial(_write, {(format, format_by_name("F16"), False)}))
        steps += [partial(_products, format, n) for n in (1, 3, 9)]
    for step in (*steps, _operations, _states, _arithmetic, _caches):
        with suppress(Exception):  # a format without importance, or without products
            step()


def _products(format: Format, n: int) -> None:
    import numpy as np

    from ggufkit.formats.codec import frozen
    from ggufkit.runtime.cpu.products import product_of, rounded
    from ggufkit.runtime.cpu.weight import Weight
    from ggufkit.tensors.tensor import Tensor

    blocks = frozen(np.zeros((8, format.row_bytes(1024)), np.uint8))
    for product in (product_of(format), rounded.PRODUCTS.get(format.name)):
        if product is not None:
            weight = Weight(Tensor("w", (8, 1024), format, lambda lo, hi: blocks[lo:hi]), 1, product)
            weight.multiply(np.ones((n, 1024), np.float32))


def _operations() -> None:
    """Norms, rotations, activations, sums."""
    import numpy as np

    from ggufkit.runtime.cpu.ops import ACTIVATIONS, CpuOps
    from ggufkit.runtime.ops import Norm

    ops = CpuOps(1)
    x = np.zeros((2, 64), np.float32)
    weight = ops.vector(np.ones((1, 64), np.float32))
    for kind in ("rms", "layer", "l2"):
        ops.norm(x, Norm(kind, 1e-5, 64, weight, None))
    for name in sorted(ACTIVATIONS):
        ops.activate(x, x, name)
    for style in ("norm", "neox"):
        ops.rope(x, 1, style, (np.ones((2, 32), np.float32), np.ones((2, 32), np.float32)))
    ops.add(x, x.copy())
    ops.scale(x, 1.0)
    ops.soft_cap(x, 1.0)
    ops.mix(np.zeros((2, 2, 64), np.float32), np.zeros((2, 2), np.float32))
    ops.copy(x)
    ops.clamp(x, 0.0, 1.0)


def _states() -> None:
    """What recurrent layers do."""
    import numpy as np

    from ggufkit.runtime.cpu.ops import CpuOps
    from ggufkit.runtime.kv.state import State
    from ggufkit.runtime.ops import Span, StateSpace

    ops = CpuOps(1)
    spans = [Span(0, 2, 0, State(ops, (1, 64), (4, 16, 16)))]
    x, heads = np.zeros((2, 64), np.float32), np.zeros((2, 4, 16), np.float32)
    vector = ops.vector(np.zeros(64))
    ops.convolve(x, ops.vector(np.zeros((2, 64))), vector, spans)
    ops.shifted(x, spans)
    ops.inner(x, x)
    ops.scan(
        x, x[:, :16].copy(), x[:, :16].copy(), heads[..., 0].copy(), spans, StateSpace(4, 16, 1, 16, *[vector] * 2)
    )
    ops.delta(heads, heads, heads, heads, heads[..., 0].copy(), spans)
    ops.wkv(heads, heads, heads, heads, heads, heads, vector.reshape(4, 16), spans)


def _arithmetic() -> None:
    """What adds, subtracts … in passes that are recorded."""
    import numpy as np

    from ggufkit.kernels.recording import Recording
    from ggufkit.runtime.cpu.arithmetic import KERNELS
    from ggufkit.runtime.cpu.calls import Recorded

    calls = Recorded(Recording(1), ())
    x = calls.zeros(2, 64)
    for name in KERNELS:
        calls.combined(name, x, np.ones(64, np.float32))


def _caches() -> None:
    """Keys and values of every type, the same for both and those of the presets."""
    from contextlib import suppress

    import numpy as np

    from ggufkit.runtime.cpu.ops import CpuOps
    from ggufkit.runtime.kv.types import PRESETS, TYPES
    from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Span

    ops, spec = CpuOps(1), AttentionSpec(heads=2, kv_heads=1, head_k=64, head_v=64, scale=1.0)
    for keys, values in [*((name, name) for name in TYPES), *PRESETS.values()]:
        with suppress(Exception):  # a type whose blocks 64 numbers do not fill
            cache = ops.layer_cache(spec, CacheSpec(keys, values), 32)
            q, k, v = (np.zeros((3, heads * 64), np.float32) for heads in (2, 1, 1))
            ops.attention(q, k, v, [Span(0, 3, 0, cache)], spec)
