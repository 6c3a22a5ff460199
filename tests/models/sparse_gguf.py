"""Make a large GGUF that takes no room on the disk: a header like Qwen2.5's, and tensors that are holes.

python tests/models/sparse_gguf.py big.gguf [--gigabytes 10] [--tokens 152064]
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer


def metadata(tokens: int) -> dict[str, object]:
    words = [f"token{i:06d}"[: 3 + i % 9] for i in range(tokens)]
    return {
        "general.architecture": "qwen2",
        "general.name": "Sparse",
        "qwen2.block_count": 80,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": 8192,
        "qwen2.attention.head_count": 64,
        "qwen2.attention.head_count_kv": 8,
        "general.file_type": 15,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [1] * tokens, ValueType.INT32),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairwise(words)],
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=152064)
    args = parser.parse_args()
    q4_k = FORMATS["Q4_K"]
    rows = int(args.gigabytes * 1e9 / 560 / q4_k.row_bytes(8192))
    tensors = [(f"blk.{i // 7}.{'abcdefg'[i % 7]}.weight", (rows, 8192), q4_k) for i in range(560)]
    with Writer(args.path, metadata(args.tokens), tensors, force=True) as out:
        for name, info in out.layout.infos.items():
            out.wrote(name, info.nbytes)  # the data stays a hole
    print(f"{args.path}: header {out.layout.data_offset} bytes, file {out.layout.size} bytes")


if __name__ == "__main__":
    main()
