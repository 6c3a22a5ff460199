#!/usr/bin/env python3
"""Requests at once: the engine beside llama.cpp's server, on the same file with the same threads, in one run.

python tools/bench/bench_serve.py model.gguf --threads 2                 # 1, 4 and 16 clients, in turns
python tools/bench/bench_serve.py model.gguf --threads 2 --latency       # the engine alone: waits and second turns

llama.cpp's server is that in the xllamacpp package, called without HTTP; neither side is asked through a socket.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import ggufkit
from ggufkit.runtime.sampling import Sampling
from ggufkit.serve.engine import Engine, Request, Token

GREEDY = Sampling(temperature=0)
Ask = Callable[[list[int], int], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--generate", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long prompt of --latency")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of --latency: CPU seconds per thread, on a busy machine"
    )
    options = parser.parse_args()
    slots = max(options.clients)
    context = max(options.long, 3000) + 512 if options.latency else options.prompt + options.generate + 8
    engine = Engine(
        partial(ggufkit.load, options.model, threads=options.threads, backend="cpu"), context=context, slots=slots
    )
    if options.latency:
        threads = options.threads
        latency(
            engine, options.long, (lambda: time.process_time() / threads) if options.cpu_time else time.perf_counter
        )
    else:
        compare(engine, options, slots)
    engine.close()


def compare(engine: Engine, options: argparse.Namespace, slots: int) -> None:
    """Requests per second of both, in turns."""
    sides: dict[str, Ask] = {"ggufkit": partial(ask_engine, engine), "llama.cpp": llama_cpp(options, slots)}
    rng = np.random.default_rng(0)
    most = engine.model.vocabulary - 10
    found: dict[tuple[int, str], list[float]] = {}
    for turn in range(options.rounds + 1):
        for clients in options.clients:
            for name, ask in sides.items():
                prompts = [rng.integers(3, most, options.prompt).tolist() for _ in range(max(clients, 2))]
                rate = requests_per_second(ask, prompts, clients, options.generate if turn else 4)
                if turn:  # the first one warms up
                    found.setdefault((clients, name), []).append(rate)
    one = {name: statistics.median(found[options.clients[0], name]) for name in sides}
    print("clients  requests/s: ggufkit  llama.cpp  ratio   against one client: ggufkit  llama.cpp")
    for clients in options.clients:
        a, b = (statistics.median(found[clients, name]) for name in sides)
        gain = [rate / one[name] for name, rate in zip(sides, (a, b), strict=True)]
        print(f"{clients:7} {a:20.3f} {b:10.3f} {a / b:6.2f} {gain[0]:29.2f} {gain[1]:10.2f}")


def requests_per_second(ask: Ask, prompts: list[list[int]], clients: int, generate: int) -> float:
    waiting, lock = list(prompts), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            assert ask(prompt, generate) == generate

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(prompts) / (time.perf_counter() - start)


def ask_engine(engine: Engine, prompt: list[int], generate: int) -> int:
    request = Request(prompt, max_tokens=generate, sampling=GREEDY, ignore_ends=True, reuse=False)
    return len(engine.submit(request).result()[0])


def llama_cpp(options: argparse.Namespace, slots: int) -> Ask:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx = slots * (options.prompt + options.generate + 8)
    params.n_parallel, params.n_gpu_layers, params.verbosity = slots, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.warmup, params.cache_prompt, params.cache_ram_mib = False, False, 0
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], generate: int) -> int:
        how = {"n_predict": generate, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": False}
        found = server.handle_completions({"prompt": prompt, **how})
        choices = found.get("usage", {}).get("completion_tokens") or found.get("tokens_predicted")
        return int(choices)

    return ask


def latency(engine: Engine, long: int, clock: Callable[[], float]) -> None:
    """How long a short request waits while a long prompt is read, and what a second turn of a conversation costs."""
    rng = np.random.default_rng(1)

    def prompt(n: int) -> list[int]:
        return rng.integers(3, engine.model.vocabulary - 10, n).tolist()

    def seconds(tokens: list[int], generate: int) -> tuple[float, list[int]]:
        start, first, ids = clock(), 0.0, []
        for event in engine.submit(Request(tokens, max_tokens=generate, sampling=GREEDY, ignore_ends=True)):
            if isinstance(event, Token):
                first = first or clock() - start
                ids.append(event.id)
        return first, ids

    seconds(prompt(600), 4)
    stream = engine.submit(Request(prompt(long), max_tokens=1, sampling=GREEDY, ignore_ends=True))
    time.sleep(1)
    waits = []
    while len(waits) < 7 and not any(one.read_tokens == one.prompt_tokens == long for one in engine.running()):
        waits.append(seconds(prompt(16), 1)[0])
    stream.cancel()
    shown = ", ".join(f"{wait:.2f}" for wait in waits)
    print(f"first token of 16 while {long} are read: {statistics.median(waits):.2f} s; {shown}")
    talk = prompt(3000)
    first, ids = seconds(talk, 32)
    second, _ = seconds([*talk, *ids, *prompt(24)], 8)
    print(
        f"first turn of 3000 tokens: {first:.2f} s; second turn, 24 more: {second:.3f} s, {100 * second / first:.1f} %"
    )


if __name__ == "__main__":
    main()
