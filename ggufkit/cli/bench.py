"""`ggufkit bench`: how fast a model runs, as llama-bench measures it."""

from __future__ import annotations

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
    types: tuple[str, str],
    on: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure the speed of MODEL in tokens per second, with llama-bench's tests and flags.

    pp512 is a prompt of 512 random tokens, tg128 is 128 tokens one by one. Whoever generates a token reads all
    weights, so tg comes with the share of the memory's speed that it reaches; a kernel that only reads the weights
    measures that between the tests.

    \b
    ggufkit bench model.gguf
    ggufkit bench model.gguf -p 128,512 -n 64 -t 4 --json
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.model import load

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
