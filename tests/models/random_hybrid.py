#!/usr/bin/env python3
"""Make a GGUF with the shape of Qwen3.5 0.8B or Granite 4 H 1B and random weights, to measure speed with.

python tests/models/random_hybrid.py qwen35 random-qwen35.gguf
python tools/bench/bench_model.py random-qwen35.gguf          # against llama.cpp
python tests/models/random_hybrid.py granitehybrid --narrow narrow.gguf --type F32
python tools/bench/bench_step.py narrow.gguf                  # what a token costs besides arithmetic
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

Shapes = Iterator[tuple[str, tuple[int, ...]]]
TOKENS, FEW_TOKENS = 65536, 512


def real(value: float) -> Value:
    return Value(ValueType.FLOAT32, value)


def qwen35(narrow: bool) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]:
    width, inner, layers, heads, kv_heads, head = (32, 64, 32, 2, 1, 16) if narrow else (1024, 3584, 24, 8, 2, 256)
    key_heads = value_heads = 2 if narrow else 16
    size = 16 if narrow else 128
    keys = {
        "block_count": layers,
        "context_length": 262144,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": real(1e-6),
        "rope.dimension_count": head // 4,
        "rope.dimension_sections": [1, 1, 0, 0] if narrow else [11, 11, 10, 0],
        "rope.freq_base": real(1e7),
        "full_attention_interval": 4,
        "ssm.conv_kernel": 4,
        "ssm.state_size": size,
        "ssm.group_count": key_heads,
        "ssm.time_step_rank": value_heads,
        "ssm.inner_size": value_heads * size,
    }

    def tensors() -> Shapes:
        yield "token_embd.weight", (FEW_TOKENS if narrow else TOKENS, width)
        yield "output_norm.weight", (width,)
        for i in range(layers):
            at = f"blk.{i}."
            yield f"{at}attn_norm.weight", (width,)
            yield f"{at}post_attention_norm.weight", (width,)
            yield f"{at}ffn_gate.weight", (inner, width)
            yield f"{at}ffn_up.weight", (inner, width)
            yield f"{at}ffn_down.weight", (width, inner)
            if i % 4 == 3:
                yield f"{at}attn_q.weight", (2 * heads * head, width)
                yield f"{at}attn_k.weight", (kv_heads * head, width)
                yield f"{at}attn_v.weight", (kv_heads * head, width)
                yield f"{at}attn_output.weight", (width, heads * head)
                yield f"{at}attn_q_norm.weight", (head,)
                yield f"{at}attn_k_norm.weight", (head,)
                continue
            channels = (2 * key_heads + value_heads) * size
            yield f"{at}attn_qkv.weight", (channels, width)
            yield f"{at}attn_gate.weight", (value_heads * size, width)
            yield f"{at}ssm_alpha.weight", (value_heads, width)
            yield f"{at}ssm_beta.weight", (value_heads, width)
            yield f"{at}ssm_conv1d.weight", (channels, 4)
            yield f"{at}ssm_a", (value_heads,)
            yield f"{at}ssm_dt.bias", (value_heads,)
            yield f"{at}ssm_norm.weight", (size,)
            yield f"{at}ssm_out.weight", (width, value_heads * size)

    return keys, list(tensors())


def granitehybrid(narrow: bool) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]:
    width, inner, layers, heads, kv_heads, head = (32, 64, 30, 2, 1, 16) if narrow else (1536, 4096, 40, 12, 4, 128)
    channels, states, groups, count = (64, 16, 1, 4) if narrow else (3072, 128, 1, 48)
    full = (5, 15, 25, 35)
    keys = {
        "block_count": layers,
        "context_length": 1048576,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": [kv_heads if i in full else 0 for i in range(layers)],
        "attention.layer_norm_rms_epsilon": real(1e-5),
        "attention.scale": real(1 / head),
        "rope.dimension_count": head,
        "rope.scaling.finetuned": False,
        "embedding_scale": real(12),
        "residual_scale": real(0.22),
        "logit_scale": real(6),
        "ssm.conv_kernel": 4,
        "ssm.state_size": states,
        "ssm.group_count": groups,
        "ssm.time_step_rank": count,
        "ssm.inner_size": channels,
    }

    def tensors() -> Shapes:
        yield "token_embd.weight", (FEW_TOKENS if narrow else TOKENS, width)
        yield "output_norm.weight", (width,)
        wide = channels + 2 * groups * states
        for i in range(layers):
            at = f"blk.{i}."
            yield f"{at}attn_norm.weight", (width,)
            yield f"{at}ffn_norm.weight", (width,)
            yield f"{at}ffn_gate.weight", (inner, width)
            yield f"{at}ffn_up.weight", (inner, width)
            yield f"{at}ffn_down.weight", (width, inner)
            if i in full:
                yield f"{at}attn_q.weight", (heads * head, width)
                yield f"{at}attn_k.weight", (kv_heads * head, width)
                yield f"{at}attn_v.weight", (kv_heads * head, width)
                yield f"{at}attn_output.weight", (width, heads * head)
                continue
            yield f"{at}ssm_in.weight", (channels + wide + count, width)
            yield f"{at}ssm_conv1d.weight", (wide, 4)
            yield f"{at}ssm_conv1d.bias", (wide,)
            yield f"{at}ssm_dt.bias", (count,)
            yield f"{at}ssm_a", (count, 1)
            yield f"{at}ssm_d", (count, 1)
            yield f"{at}ssm_norm.weight", (groups, channels // groups)
            yield f"{at}ssm_out.weight", (width, channels)

    return keys, list(tensors())


MODELS = {"qwen35": qwen35, "granitehybrid": granitehybrid}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("path")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument(
        "--narrow", action="store_true", help="some 30 layers of width 32: all that it takes is overhead"
    )
    args = parser.parse_args()
    keys, shapes = MODELS[args.model](args.narrow)
    tokens = FEW_TOKENS if args.narrow else TOKENS
    rng = np.random.default_rng(0)

    def format_of(name: str, shape: tuple[int, ...]) -> Format:
        matrix = len(shape) == 2 and (shape[1] >= 256 or args.narrow) and "norm" not in name
        return FORMATS[args.type if matrix else "F32"]

    metadata: dict[str, Any] = {
        "general.architecture": args.model,
        **{f"{args.model}.{key}": value for key, value in keys.items()},
        f"{args.model}.vocab_size": tokens,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"{i}" for i in range(3, tokens))],
        "tokenizer.ggml.scores": Value(ValueType.ARRAY, [0.0] * tokens, ValueType.FLOAT32),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [2, 3, 3] + [1] * (tokens - 3), ValueType.INT32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    infos = [(name, shape, format_of(name, shape)) for name, shape in shapes]
    with Writer(args.path, metadata, infos, force=True) as out:
        for name, shape, format in infos:
            rows, cols = (1, shape[0]) if len(shape) == 1 else shape
            if name.endswith("ssm_a"):
                out.write(name, 0, encode(np.full((rows, cols), -1, np.float32), format))
            elif "norm" in name:
                out.write(name, 0, encode(np.ones((rows, cols), np.float32), format))
            else:
                for lo in range(0, rows, 1024):
                    part = rng.standard_normal((min(1024, rows - lo), cols), np.float32) * np.float32(0.02)
                    out.write(name, lo, encode(part, format))


if __name__ == "__main__":
    main()
