#!/usr/bin/env python3
"""Make a GGUF with the shape of Llama 3.2 1B and random weights, to measure speed with.

python tests/models/random_llama.py random-f16.gguf
ggufkit quantize random-f16.gguf random-q4_k_m.gguf Q4_K_M
python tools/bench/bench_model.py random-q4_k_m.gguf          # against llama.cpp

Any vocabulary would do: its tokens are numbers, and only their ids are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

TOKENS, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 128256, 2048, 8192, 16, 32, 8, 64


def metadata() -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "general.name": "Random weights, Llama 3.2 1B's shape",
        "general.file_type": 1,
        "llama.block_count": LAYERS,
        "llama.context_length": 131072,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.rope.dimension_count": HEAD,
        "llama.rope.freq_base": 500000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": TOKENS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"{i}" for i in range(3, TOKENS))],
        "tokenizer.ggml.scores": Value(ValueType.ARRAY, [0.0] * TOKENS, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [2, 3, 3] + [1] * (TOKENS - 3), ValueType.INT32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def tensors() -> Iterator[tuple[str, tuple[int, ...], Format]]:
    f16, f32 = FORMATS["F16"], FORMATS["F32"]
    yield "token_embd.weight", (TOKENS, WIDTH), f16
    for i in range(LAYERS):
        yield f"blk.{i}.attn_norm.weight", (WIDTH,), f32
        yield f"blk.{i}.attn_q.weight", (HEADS * HEAD, WIDTH), f16
        yield f"blk.{i}.attn_k.weight", (KV_HEADS * HEAD, WIDTH), f16
        yield f"blk.{i}.attn_v.weight", (KV_HEADS * HEAD, WIDTH), f16
        yield f"blk.{i}.attn_output.weight", (WIDTH, HEADS * HEAD), f16
        yield f"blk.{i}.ffn_norm.weight", (WIDTH,), f32
        yield f"blk.{i}.ffn_gate.weight", (INNER, WIDTH), f16
        yield f"blk.{i}.ffn_up.weight", (INNER, WIDTH), f16
        yield f"blk.{i}.ffn_down.weight", (WIDTH, INNER), f16
    yield "output_norm.weight", (WIDTH,), f32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with Writer(args.path, metadata(), list(tensors()), force=True) as out:
        for name, shape, format in tensors():
            if len(shape) == 1:
                out.write(name, 0, encode(np.ones((1, *shape), np.float32), format))
                continue
            for lo in range(0, shape[0], 512):
                rows = rng.standard_normal((min(512, shape[0] - lo), shape[1]), np.float32) * np.float32(0.02)
                out.write(name, lo, encode(rows, format))


if __name__ == "__main__":
    main()
