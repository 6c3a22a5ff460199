"""Make a large GPTQ checkpoint that takes no room on the disk: a Llama of 4 bits whose codes and scales are holes.

The zero points, a hundredth of it, are there, as they are in symmetric checkpoints: codes need not be looked at.

python tests/models/sparse_gptq.py big [--gigabytes 4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sparse_checkpoint import EMBD, FF, MODEL, nbytes, write_sparse

GROUP = 128


def write(folder: Path, gigabytes: float) -> None:
    """Write the checkpoint: the tokenizer of the bundled model, and as many layers as fill `gigabytes`."""
    config = json.loads((MODEL / "config.json").read_text())
    tokens = config["vocab_size"]
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("F16", (tokens, EMBD)),
        "lm_head.weight": ("F16", (tokens, EMBD)),
        "model.norm.weight": ("F16", (EMBD,)),
    }
    layers = 0
    while sum(nbytes(kind, shape) for kind, shape in arrays.values()) < gigabytes * 1e9:
        start = f"model.layers.{layers}."
        shapes = {f"self_attn.{x}_proj": (EMBD, EMBD) for x in "qkvo"}
        shapes |= {"mlp.gate_proj": (FF, EMBD), "mlp.up_proj": (FF, EMBD), "mlp.down_proj": (EMBD, FF)}
        for name, (out, into) in shapes.items():
            arrays[f"{start}{name}.qweight"] = "I32", (into // 8, out)
            arrays[f"{start}{name}.qzeros"] = "I32", (into // GROUP, out // 8)
            arrays[f"{start}{name}.scales"] = "F16", (into // GROUP, out)
        arrays |= {f"{start}{x}_layernorm.weight": ("F16", (EMBD,)) for x in ("input", "post_attention")}
        layers += 1
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}
    write_sparse(folder, config, layers, arrays, {".qzeros": 0x77})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4)
    args = parser.parse_args()
    write(args.folder, args.gigabytes)
    print(f"{args.folder}: {(args.folder / 'model.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
