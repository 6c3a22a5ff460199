"""Make a large checkpoint that takes no room on the disk: a Llama whose weights are holes in its safetensors.

python tests/models/sparse_checkpoint.py big [--gigabytes 4]
"""

from __future__ import annotations

import argparse
import json
import shutil
from math import prod
from pathlib import Path

MODEL = Path(__file__).parents[2] / "fixtures" / "pylib-llama"
EMBD, FF = 4096, 14336


def write(folder: Path, gigabytes: float) -> None:
    """Write the checkpoint: the tokenizer of the bundled model, and as many layers as fill `gigabytes`."""
    config = json.loads((MODEL / "config.json").read_text())
    tokens = config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (tokens, EMBD),
        "lm_head.weight": (tokens, EMBD),
        "model.norm.weight": (EMBD,),
    }
    layers = 0
    while sum(nbytes("BF16", shape) for shape in shapes.values()) < gigabytes * 1e9:
        start = f"model.layers.{layers}."
        shapes |= {f"{start}self_attn.{x}_proj.weight": (EMBD, EMBD) for x in "qkvo"}
        shapes |= {f"{start}mlp.{x}_proj.weight": (FF, EMBD) for x in ("gate", "up")}
        shapes[f"{start}mlp.down_proj.weight"] = (EMBD, FF)
        shapes |= {f"{start}{x}_layernorm.weight": (EMBD,) for x in ("input", "post_attention")}
        layers += 1
    write_sparse(folder, config, layers, {name: ("BF16", shape) for name, shape in shapes.items()}, {})


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array of a dtype of safetensors, I32 or one of two bytes."""
    return (4 if kind == "I32" else 2) * prod(shape)


def write_sparse(
    folder: Path, config: dict, layers: int, arrays: dict[str, tuple[str, tuple[int, ...]]], filled: dict[str, int]
) -> None:
    """Write arrays, (dtype, shape) each, as holes, beside the bundled model's small files and its changed config.

    filled : end of a name → the byte that such arrays are full of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in MODEL.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    config |= {"hidden_size": EMBD, "intermediate_size": FF, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, (kind, shape) in arrays.items():
        size = nbytes(kind, shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + at)
        for name, entry in header.items():
            for end, byte in filled.items():
                if name.endswith(end):
                    begin, stop = entry["data_offsets"]
                    file.seek(start + begin)
                    file.write(bytes([byte]) * (stop - begin))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4)
    args = parser.parse_args()
    write(args.folder, args.gigabytes)
    print(f"{args.folder}: {(args.folder / 'model.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
