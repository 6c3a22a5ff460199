#!/usr/bin/env python3
"""The names that checkpoints give to tensors, and which tensors each architecture has: ggufkit/arch/names.json.

    python tools/generate/make_names.py            # from the installed gguf package
    PYTHONPATH=llama.cpp/gguf-py python tools/generate/make_names.py

    {"names": [["blk.{bid}.attn_q", ["model.layers.{bid}.self_attn.q_proj", …]], …],
     "own": {"arctic": [[17, "blk.{bid}.ffn_norm", [...]], …]},   for one architecture alone: in the place of names[17]
     "architectures": {"llama": [0, 3, …], …}}                    positions in `names`

Of two tensors that share a name the later one of an architecture has it.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf

TARGET = Path(__file__).parents[2] / "ggufkit" / "arch" / "names.json"


def main() -> None:
    table = gguf.TensorNameMap
    known = [*table.mappings_cfg.items(), *table.block_mappings_cfg.items()]
    blocks = len(table.mappings_cfg)
    names = [[gguf.TENSOR_NAMES[tensor], list(keys)] for tensor, keys in known]
    own = {}
    for arch, tensors in table.arch_block_mappings_cfg.items():
        place = {tensor: blocks + i for i, tensor in enumerate(table.block_mappings_cfg)}
        own[gguf.MODEL_ARCH_NAMES[arch]] = [
            [place.get(tensor), gguf.TENSOR_NAMES[tensor], list(keys)]
            for tensor, keys in tensors.items()
            if tensor in gguf.MODEL_TENSORS[arch]
        ]
    architectures = {
        gguf.MODEL_ARCH_NAMES[arch]: [i for i, (tensor, _) in enumerate(known) if tensor in tensors]
        for arch, tensors in gguf.MODEL_TENSORS.items()
    }
    lines = [json.dumps(entry) for entry in names]
    per = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in architectures.items()]
    text = (
        '{"names": [\n'
        + ",\n".join(lines)
        + '\n],\n"own": '
        + json.dumps(own)
        + ',\n"architectures": {\n'
        + ",\n".join(per)
        + "\n}}\n"
    )
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
