#!/usr/bin/env python3
"""An engine under fire for as long as one likes: requests of all kinds, many of them left, and nothing may be lost.

python tools/drills/soak_serve.py model.gguf --requests 2000 --minutes 30

Checked: every request ends, once; whoever waits for the end gets the tokens that the same request gives alone (seeds,
samplers, prefixes in common, guesses); memory is the same in the last fifth as in the second one, within 5 %; closing
waits for those that are still there.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import ggufkit
from ggufkit.runtime.sampling import Sampling
from ggufkit.serve.engine import Engine, Finished, QueueFull, Request

KINDS = 40  # different requests, each known by what it gives alone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = soak(
        Path(options.model), options.requests, options.minutes * 60, options.clients, options.threads, options.seed
    )
    for problem in problems:
        print(problem)
    return int(bool(problems))


def soak(
    path: Path, requests: int, seconds: float, clients: int = 12, threads: int | None = None, seed: int = 0
) -> list[str]:
    """What went wrong."""
    load = partial(ggufkit.load, path, threads=threads, backend="cpu")
    engine = Engine(load, context=512, slots=6, queue=clients, cache_ram=64 << 20, lookup=True)
    kinds = _kinds(engine, random.Random(seed))
    expected = [_tokens(engine, kind) for kind in kinds]
    engine.drop_caches().result()
    problems: list[str] = []
    ends: Counter[str] = Counter()
    memory: list[int] = []
    lock, left, stop_at = threading.Lock(), [requests], time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        while True:
            with lock:
                if not left[0] or time.monotonic() > stop_at:
                    return
                left[0] -= 1
                if left[0] % max(1, requests // 200) == 0:
                    memory.append(_resident())
            which = chance.randrange(KINDS)
            end, problem = _one(engine, kinds[which], expected[which], chance)
            with lock:
                ends[end] += 1
                if problem:
                    problems.append(f"request {which}: {problem}")
            if seconds / requests > 0.2:  # spread over the time there is
                time.sleep(chance.random() * 2 * clients * seconds / requests)

    workers = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    last = [engine.submit(kinds[0]) for _ in range(3)]
    engine.close(drain=None)
    for stream in last:
        if [token.id for token in stream.result()[0]] != expected[0]:
            problems.append("a request that the closing engine finished gave other tokens")
    fifth = len(memory) // 5
    if fifth >= 4:
        early, late = (sorted(some)[len(some) // 2] for some in (memory[fifth : 2 * fifth], memory[-fifth:]))
        print(f"memory: {early >> 20} MB, then {late >> 20} MB ({100 * (late / early - 1):+.1f} %)")
        if abs(late / early - 1) > 0.05:
            problems.append("memory is not flat")
    metrics = engine.metrics()
    print(f"{sum(ends.values())} requests: {dict(ends)}")
    print(metrics)
    if metrics.running or metrics.waiting:
        problems.append(f"{metrics.running} run and {metrics.waiting} wait after the end")
    return problems


def _kinds(engine: Engine, chance: random.Random) -> list[Request]:
    """Requests of which many begin alike."""
    known = engine.model.vocabulary - 10
    beginnings = [[chance.randrange(3, known) for _ in range(n)] for n in (0, 40, 150)]
    found = []
    for number in range(KINDS):
        rest = [chance.randrange(3, known) for _ in range(chance.choice([1, 5, 30, 120]))]
        how = chance.choice([{"temperature": 0.0}, {"temperature": 1.0}, {"mirostat": 2}, {"repeat_penalty": 1.3}])
        found.append(
            Request(
                chance.choice(beginnings) + rest,
                max_tokens=chance.choice([1, 8, 40]),
                sampling=Sampling(seed=number, **how),
                ignore_ends=True,
                logprobs=chance.choice([None, 0, 3]),
            )
        )
    return found


def _tokens(engine: Engine, request: Request) -> list[int]:
    return [token.id for token in engine.submit(request).result()[0]]


def _one(engine: Engine, request: Request, expected: list[int], chance: random.Random) -> tuple[str, str]:
    """Ask for one, leave it or not: how it ended, and what was wrong."""
    while True:
        try:
            stream = engine.submit(request)
            break
        except QueueFull as full:
            time.sleep(min(full.retry_after, 0.05))
    leave = chance.choice([None, None, 0, chance.randrange(40)])
    tokens: list[int] = []
    finished: Finished | None = None
    if leave == 0:
        stream.cancel()
    for event in stream:
        if isinstance(event, Finished):
            finished = event
        else:
            tokens.append(event.id)
            if len(tokens) == leave:
                stream.cancel()
    assert finished is not None
    if finished.reason == "error":
        return "error", str(finished.error)
    if tokens != expected[: len(tokens)]:
        return finished.reason, f"{tokens} instead of {expected}"
    if finished.reason != "cancelled" and tokens != expected:
        return finished.reason, f"{len(tokens)} tokens instead of {len(expected)}"
    return finished.reason, ""


def _resident() -> int:
    """Bytes of memory of this process that are its own; the mapped model comes and goes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


if __name__ == "__main__":
    sys.exit(main())
