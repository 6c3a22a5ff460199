#!/usr/bin/env python3
"""Is a file's KL divergence what was predicted? Plans from the smallest types to the largest, written and measured.

    python tools/verify/verify_prediction.py -f calib.txt -j judge.txt -c 256              # the bundled model
    python tools/verify/verify_prediction.py model-F32.gguf -f calib.txt -j judge.txt --statistics stats.gguf

Each budget is planned, with GPTQ (or --method plain) written, and judged on a text that calibration has not seen, by
the numbers of `ggufkit perplexity`. Wrong are predictions that are more than 30 % off, and a frontier that rises.
With --folder files are kept, and those that are there are taken as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ggufkit
from ggufkit.calibrate.allocation import allocation
from ggufkit.calibrate.fisher import collect
from ggufkit.calibrate.job import with_gptq
from ggufkit.calibrate.statistics import Statistics, read_statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.cli.text import file_windows
from ggufkit.evaluate.compare import compare
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantization
from ggufkit.policy.recipe import recipe_of

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools")]

import plain_errors

BITS = (2.7, 3.0, 3.3, 3.7, 4.1, 4.6, 5.1, 5.6, 6.2, 7.0)
FAR = 0.3


def calibrated(model: Path, text: Path, context: int, tokens: int) -> Statistics:
    import numpy as np

    with ggufkit.load(model, backend=Tape()) as loaded:
        windows = file_windows(loaded, text, context, tokens // context)
        return collect(loaded, np.stack([seen for seen, _ in windows]), (str(text),))


def planned(model: Path, statistics: Statistics, folder: Path, budgets: list[float], method: str) -> dict[Path, float]:
    """The files of all budgets, with their predicted divergence; also tells whether the frontier falls."""
    found, options = {}, None
    with ggufkit.open(model) as gguf:
        for bits in budgets:
            recipe = replace(recipe_of("Q8_0"), imatrix=statistics.imatrix("statistics"))
            plan = allocation(gguf, recipe, statistics, bits=bits, options=options)
            options = plan.options
            path = folder / f"{method}-{bits}.gguf"
            found[path] = plan.predicted if method == "plain" else plan.after_gptq()
            if not path.exists():
                job = quantization(gguf, path, plan.recipe)
                (job if method == "plain" else with_gptq(job, gguf, statistics)).write()
            print(f"{path.name}: predicted {found[path]:.5f}", flush=True)
        points = plan.points(40)
    assert all(a.nbytes < b.nbytes and a.cost >= b.cost for a, b in pairwise(points)), "the frontier rises"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="in F32, F16 or BF16; default the bundled one")
    parser.add_argument("-f", "--text", type=Path, required=True, help="to calibrate on")
    parser.add_argument("-j", "--judge", type=Path, required=True, help="to measure on")
    parser.add_argument("-c", "--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration")
    parser.add_argument("--chunks", type=int, default=16, help="windows to measure on")
    parser.add_argument("--statistics", type=Path, help="of `ggufkit calibrate`, in place of -f")
    parser.add_argument("--method", choices=["gptq", "plain"], default="gptq")
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    wrong = 0
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = options.model or convert(ROOT / "fixtures" / "pylib-llama", folder / "source.gguf", "F32", force=True)
        statistics = (
            read_statistics(options.statistics)
            if options.statistics
            else calibrated(model, options.text, options.context, options.tokens)
        )
        predicted = planned(model, statistics, folder, list(options.bits), options.method)
        base = stack.enter_context(ggufkit.load(model, backend="cpu"))
        models = [stack.enter_context(ggufkit.load(path, backend="cpu")) for path in predicted]
        windows = file_windows(base, options.judge, options.context, options.chunks)
        measured = compare(base, models, windows).models
        print("bits per weight       bytes  predicted   measured          ±  predicted / measured")
        for found, expected in zip(measured, predicted.values(), strict=True):
            kld, error = found.divergence.facts()["kld"]
            far = abs(expected / kld - 1) > FAR
            wrong += far
            print(
                f"{found.bpw:15.2f} {found.nbytes:11,} {expected:10.5f} {kld:10.5f} {error:10.5f} "
                f"{expected / kld:10.2f}{'  more than 30 % off' if far else ''}"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    plain_errors.run(main)
