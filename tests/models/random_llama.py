#!/usr/bin/env python3
"""Make a GGUF with the shape of Llama 3.2 1B, or a narrow one, and random weights, to measure speed with.

python tests/models/random_llama.py random-f16.gguf
ggufkit quantize random-f16.gguf random-q4_k_m.gguf Q4_K_M
python tools/bench/bench_model.py random-q4_k_m.gguf          # against llama.cpp

Any vocabulary would do: its tokens are numbers, and only their ids are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer


class Shape(NamedTuple):
    tokens: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int


LLAMA_1B = Shape(128256, 2048, 8192, 16, 32, 8, 64)
NARROW = Shape(512, 32, 96, 30, 2, 1, 16)  # next to no arithmetic: what a token costs besides


def metadata(shape: Shape) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "general.name": "Random weights",
        "general.file_type": 1,
        "llama.block_count": shape.layers,
        "llama.context_length": 131072,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head,
        "llama.attention.value_length": shape.head,
        "llama.rope.dimension_count": shape.head,
        "llama.rope.freq_base": 500000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": shape.tokens,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"{i}" for i in range(3, shape.tokens))],
        "tokenizer.ggml.scores": Value(ValueType.ARRAY, [0.0] * shape.tokens, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [2, 3, 3] + [1] * (shape.tokens - 3), ValueType.INT32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], Format]]:
    f16, f32 = FORMATS["F16"], FORMATS["F32"]
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "token_embd.weight", (shape.tokens, shape.width), f16
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm.weight", (shape.width,), f32
        yield f"blk.{i}.attn_q.weight", (queries, shape.width), f16
        yield f"blk.{i}.attn_k.weight", (keys, shape.width), f16
        yield f"blk.{i}.attn_v.weight", (keys, shape.width), f16
        yield f"blk.{i}.attn_output.weight", (shape.width, queries), f16
        yield f"blk.{i}.ffn_norm.weight", (shape.width,), f32
        yield f"blk.{i}.ffn_gate.weight", (shape.inner, shape.width), f16
        yield f"blk.{i}.ffn_up.weight", (shape.inner, shape.width), f16
        yield f"blk.{i}.ffn_down.weight", (shape.width, shape.inner), f16
    yield "output_norm.weight", (shape.width,), f32


def write(path: str, shape: Shape) -> None:
    """The model as F16."""
    rng = np.random.default_rng(0)
    with Writer(path, metadata(shape), list(tensors(shape)), force=True) as out:
        for name, sizes, format in tensors(shape):
            if len(sizes) == 1:
                out.write(name, 0, encode(np.ones((1, *sizes), np.float32), format))
                continue
            for lo in range(0, sizes[0], 512):
                rows = rng.standard_normal((min(512, sizes[0] - lo), sizes[1]), np.float32) * np.float32(0.02)
                out.write(name, lo, encode(rows, format))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--narrow", action="store_true", help="30 layers of width 32")
    args = parser.parse_args()
    write(args.path, NARROW if args.narrow else LLAMA_1B)


if __name__ == "__main__":
    main()
