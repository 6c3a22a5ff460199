#!/usr/bin/env python3
"""What a token costs besides arithmetic, and how much faster several conversations are in one pass.

    python tests/models/random_llama.py --narrow narrow.gguf
    python tools/bench/bench_step.py narrow.gguf                  # 30 layers of width 32: all that it takes is overhead
    python tools/bench/bench_step.py model.gguf --together 4 8

Passes that are played from a recording and those whose operations are done one by one take turns; medians. With
`--cpu-time` on one thread it can be measured on a busy machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from ggufkit.runtime import replay
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.model import Model, load

sys.path[:0] = [str(Path(__file__).parents[2] / "tools")]

import plain_errors

HOWS = {"played": replay.MOST, "one by one": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", type=int, nargs="*", default=[4], help="numbers of conversations beside one")
    parser.add_argument("--tokens", type=int, default=16, help="of each conversation in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process: for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    for path in options.models:
        with load(path, backend="cpu", threads=options.threads) as model:
            compare(model, options, clock)


def compare(model: Model, options: argparse.Namespace, clock) -> None:
    counts = [1, *options.together]
    seconds: dict[tuple[int, str], list[float]] = {(n, how): [] for n in counts for how in HOWS}
    caches = [model.new_cache(options.tokens * (options.rounds + 1) * len(HOWS) + 1) for _ in range(max(counts))]
    for turn in range(options.rounds + 1):
        for (n, how), found in seconds.items():
            replay.MOST = HOWS[how]
            for cache in caches:
                cache.truncate(0)
            start = clock()
            for token in range(options.tokens):
                model.step([Piece(cache, [3 + token + i]) for i, cache in enumerate(caches[:n])])
            if turn:
                found.append((clock() - start) / options.tokens)
    print(f"{model.gguf.path}, {options.threads} threads, ms per pass")
    for n in counts:
        played, one_by_one = (median(seconds[n, how]) for how in HOWS)
        ratios = [n * a / b for a, b in zip(seconds[1, "played"], seconds[n, "played"], strict=True)]
        more = f"   {median(ratios):.2f} x the tokens/s of one" if n > 1 else ""
        print(f"  {n} together   played {played * 1e3:8.3f}   one by one {one_by_one * 1e3:8.3f}{more}", flush=True)


if __name__ == "__main__":
    plain_errors.run(main)
