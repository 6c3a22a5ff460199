"""`ggufkit bench`: how fast a model runs, as llama-bench measures it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, human_bytes, human_count
from ggufkit.cli.prompt import runtime_options
from ggufkit.cli.text import cache_options
from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    from ggufkit.evaluate.speed import Speed
    from ggufkit.runtime.model import Model

__all__ = ["command"]


class _Numbers(click.ParamType):
    """Whole numbers with commas between them."""

    name = "N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = (-1,)
        if min(numbers) < 0:
            self.fail(f"{value!r} is not a list of whole numbers like 128,512", param, ctx)
        return numbers


@click.command()
@click.argument("model")
@click.option(
    "-p",
    "--n-prompt",
    "prompts",
    type=_Numbers(),
    default="512",
    show_default=True,
    help="Lengths of prompts to read; 0: no such test.",
)
@click.option(
    "-n",
    "--n-gen",
    "lengths",
    type=_Numbers(),
    default="128",
    show_default=True,
    help="Numbers of tokens to generate; 0: no such test.",
)
@click.option(
    "-d",
    "--n-depth",
    "depths",
    type=_Numbers(),
    default="0",
    show_default=True,
    help="Tokens in the context before each test.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each test is repeated.",
)
@click.option(
    "--no-warmup",
    is_flag=True,
    help="Leave out the run before the measurement, which reads the file and loads the kernels.",
)
@click.option("--kv", metavar="A,B,…", help="Compare cache types instead: q8_0,q4_0,tq6/tq4,small; or all.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The text that cache types are compared on.")
@click.option(
    "-c",
    "--ctx-size",
    "contexts",
    type=_Numbers(),
    default="512",
    show_default=True,
    help="Lengths of the context at which cache types are compared.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Compare on at most so many windows of the text.")
@cache_options
@runtime_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    model: str,
    prompts: tuple[int, ...],
    lengths: tuple[int, ...],
    depths: tuple[int, ...],
    repetitions: int,
    no_warmup: bool,
    kv: str | None,
    file: Path | None,
    contexts: tuple[int, ...],
    chunks: int | None,
    types: tuple[str, str],
    on: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure the speed of MODEL in tokens per second, with llama-bench's tests and flags.

    pp512 is a prompt of 512 random tokens, tg128 is 128 tokens one by one. Whoever generates a token reads all
    weights, so tg comes with the share of the memory's speed that it reaches; a kernel that only reads the weights
    measures that between the tests.

    With --kv it compares types of keys and values: bytes, how far predictions move from those of a float32 cache, and
    tokens per second at the end of the context.

    \b
    ggufkit bench model.gguf
    ggufkit bench model.gguf -p 128,512 -n 64 -t 4 --json
    ggufkit bench model.gguf --kv f16,q8_0,q4_0,small,smallest -f text.txt -c 128,512
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.model import load

    if kv is not None:
        return _compare_caches(model, kv, file, contexts, chunks, lengths[0], repetitions, on, as_json)
    if file is not None or chunks is not None:
        raise UsageError("-f and --chunks belong to --kv")

    tests = [("pp", n, depth) for depth in depths for n in prompts if n]
    tests += [("tg", n, depth) for depth in depths for n in lengths if n]
    if not tests:
        raise UsageError("there is nothing to measure; give -p or -n a number above 0")
    ready_to_run(model, on, types)
    with load(model, **on) as loaded:
        if loaded.weights.output is None:
            raise UsageError(f"{printable(model)} makes embeddings and no text; bench has no test for it")
        results = _measure(loaded, tests, repetitions, types, on["threads"], warm=not no_warmup)
        _show(loaded, results, on["threads"], as_json)


def _compare_caches(
    path: str,
    kv: str,
    file: Path | None,
    contexts: tuple[int, ...],
    chunks: int | None,
    tokens: int,
    rounds: int,
    on: dict[str, Any],
    as_json: bool,
) -> None:
    from ggufkit.cli.progress import token_bar
    from ggufkit.cli.text import file_windows
    from ggufkit.evaluate.caches import measure_caches, pair_of_types
    from ggufkit.runtime.kv.types import PRESETS, TYPES
    from ggufkit.runtime.model import load

    names = [*TYPES, *list(PRESETS)[1:]] if kv == "all" else kv.split(",")
    pairs = list(dict.fromkeys(pair_of_types(name.strip()) for name in names))
    results = []
    with load(path, **on) as model:
        if model.weights.output is None:
            raise UsageError(f"{printable(path)} makes embeddings and no text; its cache cannot be compared")
        for context in contexts:
            windows = None if file is None else file_windows(model, file, context, chunks)
            seen = 0 if windows is None else windows.count * (windows.length - 1) * (len(pairs) + 1)
            with token_bar(seen + len(pairs) * (context + rounds * tokens), f"context {context}") as advance:
                results += measure_caches(model, pairs, context, windows, tokens=tokens, rounds=rounds, advance=advance)
    if as_json:
        echo_json([asdict(cost) for cost in results])
        return
    head = ("keys", "values", "context", "bytes", "per token", "KLD", "±", "same top", "tokens/s")
    rows = []
    for cost in results:
        known = cost.kld == cost.kld
        rows.append(
            (
                cost.keys,
                cost.values,
                cost.context,
                human_bytes(cost.bytes),
                human_bytes(cost.bytes // cost.context),
                f"{cost.kld:.5f}" if known else "",
                f"{cost.error:.5f}" if known else "",
                f"{100 * cost.same_top:.2f} %" if known else "",
                f"{cost.rate:.2f}" if cost.rate == cost.rate else "",
            )
        )
    echo_table(rows, head, right=range(2, 9))


def _measure(
    model: Model,
    tests: list[tuple[str, int, int]],
    repetitions: int,
    types: tuple[str, str],
    threads: int | None,
    warm: bool,
) -> list[tuple[Speed, float | None]]:
    """The tests' speeds; of generation on the CPU also the bytes per second that its memory gives."""
    from ggufkit.cli.progress import token_bar
    from ggufkit.evaluate.speed import measure_generation, measure_prompt, read_speed
    from ggufkit.runtime.cpu.ops import CpuOps

    results: list[tuple[Speed, float | None]] = []
    with token_bar(repetitions * sum(n for _, n, _ in tests), "bench") as advance:
        if warm:
            measure_prompt(model, max((n for kind, n, _ in tests if kind == "pp"), default=1), repetitions=1)
            measure_generation(model, 1, repetitions=1)
        for kind, n, depth in tests:
            run = measure_prompt if kind == "pp" else measure_generation
            reads = kind == "tg" and isinstance(model.ops, CpuOps)
            before = read_speed(model, threads) if reads else 0
            speed = run(model, n, depth, repetitions, types, advance)
            results.append((speed, max(before, read_speed(model, threads)) if reads else None))
    return results


def _show(model: Model, results: list[tuple[Speed, float | None]], threads: int | None, as_json: bool) -> None:
    from ggufkit.evaluate.speed import bytes_a_token
    from ggufkit.gguf.summary import summary
    from ggufkit.kernels.threads import thread_count

    size = sum(tensor.nbytes for tensor in model.gguf.tensors.values())
    weights = sum(tensor.size for tensor in model.gguf.tensors.values())
    a_token = bytes_a_token(model)
    shares = [None if read is None else speed.mean * a_token / read for speed, read in results]
    kind = f"{model.hyper.name} {summary(model.gguf).get('file_type', '')}".strip()
    backend = type(model.ops).__name__.removesuffix("Ops").upper()
    if as_json:
        echo_json(
            {
                "model": model.gguf.path,
                "kind": kind,
                "bytes": size,
                "weights": weights,
                "backend": backend,
                "threads": thread_count(threads),
                "bytes_a_token": a_token,
                "tests": [
                    {
                        "test": speed.test,
                        "tokens_per_second": speed.mean,
                        "deviation": speed.deviation,
                        "repetitions": list(speed.rates),
                        "memory_bytes_per_second": read,
                        "memory_share": share,
                    }
                    for (speed, read), share in zip(results, shares, strict=True)
                ],
            }
        )
        return
    head = ("model", "size", "params", "backend", "threads", "test", "tokens/s", "of memory's speed")
    rows = []
    for (speed, read), share in zip(results, shares, strict=True):
        rate = f"{speed.mean:.2f} ± {speed.deviation:.2f}"
        memory = "" if share is None else f"{100 * share:.0f} % of {human_bytes(int(read or 0))}/s"
        rows.append(
            (
                printable(kind),
                human_bytes(size),
                human_count(weights),
                backend,
                thread_count(threads),
                speed.test,
                rate,
                memory,
            )
        )
    echo_table(rows, head, right=range(1, 8))
