#!/usr/bin/env python3
"""What `ggufkit fit` says against what is allocated, for many models and ways to run them.

    python tools/verify/verify_fit.py                  # the models of the tests, and some as wide as real ones
    python tools/verify/verify_fit.py model.gguf …     # these

llama.cpp's buffers are read from its log: weights, caches and states must be equal as far as it prints them, and the
compute buffer no further off than is said. This package's caches are made in every type, on the CPU and with MLX, and
must be equal to the byte; so must its weights. With --peaks the peak of a prompt's allocations is compared with what is
said of computing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert
from ggufkit.memory import Fit, Setup, device, model_of, report
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.kv.types import TYPES

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import llama_memory
import plain_errors
from sparse_shapes import write_wide
from tiny_models import RECIPES, write_tiny

HOST = [device("cpu-1000G")]

# Ways to run a model in llama.cpp, of which each is combined with each context.
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"slots": 3},
    {"slots": 4, "unified": True},
    {"slots": 2, "swa_full": True},
    {"flash": False},
    {"keys": "Q8_0", "values": "Q4_0"},
    {"ubatch": 64},
    {"slots": 2, "outputs": 2},
)
CONTEXTS = (600, 4096)


def fit_of(path: Path, **setup: Any) -> Fit:
    with ggufkit.open(path) as gguf:
        return report(model_of(gguf), Setup(**setup), HOST)


def part(fit: Fit, *parts: str) -> int:
    return sum(line.nbytes for line in fit.lines if line.part in parts)


class Tally:
    """How many comparisons there were, and what differed."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.wrong: list[str] = []
        self.off: dict[str, list[tuple[float, str]]] = {}

    def equal(self, what: str, ours: float, theirs: float, step: float, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if abs(ours - theirs) > step:
            self.wrong.append(f"{what}: {ours:.0f}, not {theirs:.0f}: {where}")

    def near(self, what: str, ours: float, theirs: float, said: float, where: str) -> None:
        off = ours / theirs - 1
        self.off.setdefault(what, []).append((off, where))
        if abs(off) > said:
            self.wrong.append(f"{what}: {100 * off:+.1f} %, more than the {100 * said:.0f} % that are said: {where}")


def against_llama(path: Path, tally: Tally) -> None:
    for context, way in itertools.product(CONTEXTS, WAYS):
        where = f"{path.stem} {context} {way}"
        s = Setup("llama.cpp", context, **way)
        asked = {
            "n_ctx": context * (1 if s.unified else s.slots),
            "n_seq_max": s.slots,
            "n_ubatch": s.ubatch,
            "n_outputs_max": s.outputs,
            "kv_unified": s.unified,
            "swa_full": s.swa_full,
            "flash_attn_type": int(s.flash),
            "type_k": llama.CACHE_TYPES[s.keys],
            "type_v": llama.CACHE_TYPES[s.values],
        }
        try:
            found = llama_memory.buffers(path, **asked)
        except RuntimeError:
            if "keys" in way:  # heads that these types do not divide
                continue
            raise
        fit, step = fit_of(path, engine="llama.cpp", context=context, **way), llama_memory.STEP + 1
        for what, ours, theirs in (
            ("weights", part(fit, "weights"), sum(found.model.values())),
            ("cache", part(fit, "cache", "latent cache", "indexer cache"), found.cache),
            ("windows", part(fit, "window cache"), found.windows),
            ("states", part(fit, "states"), found.states),
        ):
            tally.equal(f"llama.cpp's {what}", ours, theirs, step, where)
        said = next(line.error for line in fit.lines if line.part == "compute")
        tally.near("llama.cpp's compute", part(fit, "compute"), found.compute, said, where)


def held(layer: Any) -> int:
    """Bytes of a layer's memory, of either backend."""
    if hasattr(layer, "nbytes"):
        return int(layer.nbytes)
    return sum(array.nbytes for stored in (layer.keys, layer.values) for array in stored.arrays)


def counting(base: type) -> Any:
    """Operations that count the bytes of the matrices that they are given."""

    class Counting(base):  # type: ignore[misc]
        total = 0

        def weight(self, tensor: Any) -> Any:
            found = super().weight(tensor)
            own = [getattr(found, f.name) for f in fields(found)] if base is not CpuOps else []
            self.total += sum(a.nbytes for a in own if hasattr(a, "nbytes")) if own else tensor.nbytes
            return found

    return Counting()


def own_caches(path: Path, tally: Tally, engine: str, base: type, *, filled: bool) -> None:
    with ggufkit.load(path, backend=(ops := counting(base))) as model:
        where = f"{path.stem} {engine}"
        tally.equal(f"{engine}: weights", part(fit_of(path, engine=engine), "weights"), ops.total, 0, where)
        for kind in TYPES:
            for keys, values in ((kind, "F16"), ("F32", kind)):
                try:
                    cache = model.new_cache(64, keys, values)
                except UsageError:
                    continue
                if filled:
                    if model.weights.output is None:
                        continue
                    model.forward([1] * 40, cache)
                    model.forward([2] * 24, cache)
                fit = fit_of(path, engine=engine, context=64, keys=keys, values=values)
                ours, theirs = part(fit, "cache", "latent cache", "states"), sum(map(held, cache.layers))
                if model.hyper.causal:
                    tally.equal(f"{engine}: caches", ours, theirs, 0, f"{where} {keys} {values}")


def peaks(path: Path, tally: Tally) -> None:
    with ggufkit.load(path, backend="cpu") as model:
        if model.weights.output is None or model.weights.positions:
            return
        n = 512
        model.forward([1] * n, model.new_cache(n))  # what is made once
        cache = model.new_cache(n)
        tracemalloc.start()
        model.forward([1] * n, cache)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    fit = fit_of(path, engine="cpu", context=n)
    said = next(line.error for line in fit.lines if line.part == "compute")
    tally.near("cpu: compute", part(fit, "compute", "logits"), peak, said, path.stem)


def models(folder: Path, *, wide: bool) -> Iterator[Path]:
    """The bundled checkpoint, and one of each kind of architecture."""
    convert(ROOT / "fixtures" / "pylib-llama", folder / "pylib.gguf", "F16")
    yield folder / "pylib.gguf"
    for name in RECIPES:
        write_tiny(folder / f"{name}.gguf", name)
        yield folder / f"{name}.gguf"
    if wide:
        yield from write_wide(folder).values()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--no-mlx", action="store_true", help="without MLX's caches")
    parser.add_argument("--peaks", action="store_true", help="with the peaks of prompts on the CPU")
    args = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models or models(Path(folder), wide=True):
            large = path.stat().st_size > 1 << 26
            checks: list[Callable[[], None]] = [lambda path=path: against_llama(path, tally)]  # type: ignore[misc]
            if not large:
                checks.append(lambda path=path: own_caches(path, tally, "cpu", CpuOps, filled=False))  # type: ignore[misc]
                if not args.no_mlx:
                    from ggufkit.runtime.mlx.ops import MlxOps

                    checks.append(lambda path=path: own_caches(path, tally, "mlx", MlxOps, filled=True))  # type: ignore[misc]
            if args.peaks and (args.models or not large):
                checks.append(lambda path=path: peaks(path, tally))  # type: ignore[misc]
            for check in checks:
                check()
            print(f"{path.name}: {len(tally.wrong)} wrong so far", flush=True)
    for what, count in tally.counts.items():
        print(f"{what}: {count} compared")
    for what, offs in tally.off.items():
        worst, where = max(offs, key=lambda item: abs(item[0]))
        close = sum(abs(off) <= 0.001 for off, _ in offs), sum(abs(off) <= 0.05 for off, _ in offs)
        shares = f"{close[0]} within 0.1 %, {close[1]} within 5 %"
        print(f"{what}: {len(offs)} compared, {shares}; at most {worst:+.1%}: {where}")
    for line in tally.wrong:
        print(line)
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    plain_errors.run(main)
