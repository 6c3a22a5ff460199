#!/usr/bin/env python3
"""Speeds, each against its reference in the same run: interleaved rounds, medians, one core.

    python tools/bench/bench_formats.py encode decode             # tables on the terminal
    python tools/bench/bench_formats.py encode --formats Q4_K,Q6_K --markdown

Sections: encode (against ggml_quantize_chunk), decode (against to_float, and gguf-py's NumPy decoders), products
(against vec_dot, row by row; and a kernel that only reads).
A section is a function that takes the options and yields the rows of its table; add it to SECTIONS.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from ggufkit.formats import codec
from ggufkit.formats.table import Format, format_by_name, formats

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import ggml
import plain_errors

COLS = 4096
CALLS = 50  # of `several`
DECODED = 1 << 17  # weights: what the library decodes at a time, so that the core sets the speed and not memory


def interleaved(
    functions: list[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each function, round by round; one unmeasured round first.

    clock : `time.thread_time` for what runs in this thread alone, so that other programs disturb it less.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = clock()
            function()
            if turn:
                times.append(clock() - start)
    return seconds


def ratio(reference: list[float], own: list[float]) -> float:
    return median(r / o for r, o in zip(reference, own, strict=True))


def several(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


def rows_for(seconds_a_row: float, target: float = 0.06) -> int:
    """Enough rows for a call of about `target` seconds; at most 8 M weights, at least 16 rows."""
    return int(min(max(target / max(seconds_a_row, 1e-9), 16), 8e6 // COLS))


def chosen(options: argparse.Namespace, encodable: bool) -> list[Format]:
    if options.formats:
        return [format_by_name(name) for name in options.formats.split(",")]
    everything = (format for format in formats() if format.is_quantized or format.name in ("F16", "BF16"))
    return [format for format in everything if not encodable or format.encodable]


# ---- encode -----------------------------------------------------------------------------------------------------


def reference_encoder(x: np.ndarray, format: Format, importance: np.ndarray | None) -> Callable[[], object]:
    out = np.empty((len(x), format.row_bytes(x.shape[1])), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    call = ggml.library().ggml_quantize_chunk
    return lambda: call(format.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)


def own_encoder(x: np.ndarray, format: Format, importance: np.ndarray | None) -> Callable[[], object]:
    out = np.empty((len(x), format.row_bytes(x.shape[1])), np.uint8)
    return lambda: codec.encode(x, format, importance, out=out, threads=1)


def bench_encode(options: argparse.Namespace) -> Iterator[tuple]:
    yield "format", "reference M/s", "ggufkit M/s", "ratio", "with importance: reference", "ggufkit", "ratio"
    rng = np.random.default_rng(0)
    importance = rng.random(COLS).astype(np.float32)
    for format in chosen(options, encodable=True):
        row: list[object] = [format.name]
        for weights in (None, importance):
            if weights is None and format.needs_importance:
                row += [None, None, None]
                continue
            x = (rng.standard_t(4, (8, COLS)) * 0.02).astype(np.float32)
            call = reference_encoder(x, format, weights)
            call()  # libggml builds its grids on the first call
            start = time.perf_counter()
            call()
            rows = rows_for((time.perf_counter() - start) / len(x))
            x = (rng.standard_t(4, (rows, COLS)) * 0.02).astype(np.float32)
            pair = [reference_encoder(x, format, weights), own_encoder(x, format, weights)]
            reference, own = interleaved(pair, options.rounds, time.thread_time)
            row += [x.size / median(reference) / 1e6, x.size / median(own) / 1e6, ratio(reference, own)]
        yield tuple(row)


# ---- decode -----------------------------------------------------------------------------------------------------


def reference_decoder(blocks: np.ndarray, format: Format, cols: int) -> Callable[[], object]:
    out = np.empty((len(blocks), cols), np.float32)
    to_float = ggml.traits(format.id).to_float
    return lambda: to_float(blocks.ctypes.data, out.ctypes.data, out.size)


def own_decoder(blocks: np.ndarray, format: Format, cols: int) -> Callable[[], object]:
    out = np.empty((len(blocks), cols), np.float32)
    return lambda: codec.decode(blocks, format, out=out, threads=1)


def numpy_decoder(blocks: np.ndarray, format: Format) -> Callable[[], object] | None:
    """gguf-py's decoder, or None if it has none."""
    import gguf

    kind = gguf.GGMLQuantizationType.__members__.get(format.name)
    if kind not in gguf.quants._type_traits:
        return None
    return lambda: gguf.quants.dequantize(blocks, kind)


def bench_decode(options: argparse.Namespace) -> Iterator[tuple]:
    yield "format", "reference M/s", "ggufkit M/s", "ratio", "gguf-py M/s", "ratio"
    rng = np.random.default_rng(0)
    for format in chosen(options, encodable=False):
        if not ggml.traits(format.id).to_float:
            continue
        x = (rng.standard_t(4, (DECODED // COLS, COLS)) * 0.02).astype(np.float32)
        blocks = ggml.quantize(x, format.id, np.ones(COLS, np.float32))
        calls = [reference_decoder(blocks, format, COLS), own_decoder(blocks, format, COLS)]
        if (numpy_call := numpy_decoder(blocks, format)) is not None:
            calls.append(numpy_call)
        # Several calls in turn: each finds its own arrays in the cache.
        times = interleaved([partial(several, call) for call in calls], options.rounds, time.thread_time)
        reference, own, *theirs = times
        rates = [CALLS * x.size / median(seconds) / 1e6 for seconds in times]
        row = [format.name, rates[0], rates[1], ratio(reference, own)]
        yield (*row, rates[2], ratio(theirs[0], own)) if theirs else (*row, None, None)


# ---- tokenize ---------------------------------------------------------------------------------------------------


def bench_tokenize(options: argparse.Namespace) -> Iterator[tuple]:
    """A text that is seen for the first time, and again: words are remembered."""
    import llama_vocab

    from ggufkit.gguf.reader import open as open_gguf
    from ggufkit.tokenizer.run.tokenizer import Tokenizer
    from ggufkit.tokenizer.run.vocab import read_vocab

    shared = Path(__file__).parents[3] / "shared"
    text = (shared / "text" / "eval.txt").read_text()
    yield "vocabulary", "reference MB/s", "first MB/s", "ratio", "again MB/s", "ratio"
    for path in sorted((shared / "vocab").glob("*.gguf")):
        with open_gguf(path) as model:
            vocab = read_vocab(model)
        fresh = [Tokenizer(vocab) for _ in range(options.rounds + 1)]
        known = Tokenizer(vocab)
        with llama_vocab.Vocab(path) as reference:
            calls = [
                lambda reference=reference: reference.tokenize(text),
                lambda fresh=fresh: fresh.pop().encode(text),
                lambda known=known: known.encode(text),
            ]
            theirs, first, again = interleaved(calls, options.rounds)
        rates = [len(text) / 1e6 / median(seconds) for seconds in (theirs, first, again)]
        name = path.stem.removeprefix("ggml-vocab-")
        yield name, rates[0], rates[1], ratio(theirs, first), rates[2], ratio(theirs, again)


# ---- products ---------------------------------------------------------------------------------------------------

PRODUCT_BYTES = 300_000_000  # of weights: more than the caches hold


def bench_products(options: argparse.Namespace) -> Iterator[tuple]:
    """One row of activations from memory (GB of weights per second) and in the cache, then many (billion products)."""
    from ggufkit.formats.codec import frozen
    from ggufkit.runtime.cpu.bandwidth import read_all
    from ggufkit.runtime.cpu.products import product_of
    from ggufkit.runtime.cpu.weight import Activations, Weight
    from ggufkit.tensors.tensor import Tensor

    yield "format", "reference GB/s", "ggufkit GB/s", "ratio", "reading GB/s", "in cache: ratio", "128 rows, G/s"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, COLS)).astype(np.float32)
    one, many = Activations(x), Activations(rng.standard_normal((128, COLS)).astype(np.float32))
    for format in chosen(options, encodable=True):
        if product_of(format) is None or not ggml.cpu_traits(format.id).vec_dot:
            continue
        some = ggml.quantize((rng.standard_normal((64, COLS)) * 0.02).astype(np.float32), format.id)
        blocks = frozen(np.tile(some, (PRODUCT_BYTES // some.nbytes, 1)))
        tensor = Tensor("w", (len(blocks), COLS), format, partial(rows_of, blocks))
        small = Tensor("w", (512, COLS), format, tensor.read)
        calls = [
            ggml.vec_dots(blocks, format.id, x),
            partial(Weight(tensor, 1).multiply, one),
            partial(read_all, [blocks.reshape(-1)], 1),
        ]
        reference, own, reading = interleaved(calls, options.rounds)
        cached = [ggml.vec_dots(blocks[:512], format.id, x), partial(Weight(small, 1).multiply, one)]
        cached_ratio = ratio(*interleaved([partial(several, call) for call in cached], 15))
        (matrix,) = interleaved([partial(Weight(small, 1).multiply, many)], options.rounds)
        yield (
            format.name,
            *(blocks.nbytes / median(seconds) / 1e9 for seconds in (reference, own)),
            ratio(reference, own),
            blocks.nbytes / median(reading) / 1e9,
            cached_ratio,
            128 * small.size / median(matrix) / 1e9,
        )


def rows_of(blocks: np.ndarray, lo: int, hi: int) -> np.ndarray:
    return blocks[lo:hi]


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[tuple]]] = {
    "encode": bench_encode,
    "decode": bench_decode,
    "products": bench_products,
    "tokenize": bench_tokenize,
}


def shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return str(value)


def show(rows: Iterator[tuple], markdown: bool) -> None:
    for number, row in enumerate(rows):
        cells = [shown(value) for value in row]
        if markdown:
            print("| " + " | ".join(cells) + " |", flush=True)
            if number == 0:
                print("|---|" + "---:|" * (len(row) - 1), flush=True)
        else:
            widths = [10, *[max(14, len(cell) + 2) for cell in cells[1:]]]
            print("".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--formats", help="comma-separated; default all")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--markdown", action="store_true", help="tables for the README")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for section in options.sections or SECTIONS:
        print(f"\n{section}, one core, {platform.machine()} {platform.system()}, M weights/s\n")
        show(SECTIONS[section](options), options.markdown)


if __name__ == "__main__":
    plain_errors.run(main)
