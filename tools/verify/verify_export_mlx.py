#!/usr/bin/env python3
"""Models exported for mlx-lm: its logits against ours, its names of arrays, and the way back.

    python tools/verify/verify_export_mlx.py model.gguf …             # of any size that runs here
    python tools/verify/verify_export_mlx.py --tiny                   # the checkpoints of tests/models

For each model the greatest KL divergence of a position in float32; whether mlx-lm would save the arrays under other
names; and the tensors that are others once the folder is converted again. Exit code 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_mlx import export_mlx

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import plain_errors
from verify_runtime import divergence

TOKENS = np.random.default_rng(1).integers(5, 90, 23).astype(np.int32)
LIMIT = 1e-5


@dataclass(frozen=True)
class Found:
    """What an export turned out to be.

    Attributes
    ----------
    apart : greatest KL divergence of a position.
    renamed : arrays that mlx-lm has other names for.
    changed : tensors that are others after the way back, but for those that mlx-lm does without.
    """

    apart: float
    renamed: list[str]
    changed: list[str]


def verify(path: Path, scratch: Path) -> Found:
    """Export, load with mlx-lm, compare, convert back."""
    folder = scratch / "mlx"
    export_mlx(path, folder, dtype="float32")
    logits, names = mlx_lm_logits(folder, TOKENS)
    with ggufkit.load(path, backend="mlx") as model:
        own = model.forward(TOKENS, model.new_cache(64, "F32", "F32"), logits="all")
    back = convert(folder, scratch / "back.gguf", "F32", pre="llama-bpe")
    there, again = _tensors(path), _tensors(back)
    skipped = "nextn", f"blk.{_layers(path)}."
    changed = [n for n in there if not n.startswith(skipped) and ".nextn." not in n and there[n] != again.get(n)]
    written = {name for file in folder.glob("*.safetensors") for name in _written(file)}
    width = min(own.shape[1], logits.shape[1])  # rows without a token
    apart = divergence(own[:, :width], logits[:, :width]).max()
    return Found(float(apart), sorted(written - names), changed)


def mlx_lm_logits(folder: Path, tokens: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """Of all tokens, and the names that mlx-lm has for its arrays."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    names = {name for name, _ in tree_flatten(model.parameters())}
    return np.array(model(mx.array(tokens)[None])[0].astype(mx.float32)), names


def _layers(path: Path) -> int:
    """Blocks but for those that predict further tokens."""
    with open_gguf(path) as model:
        name = model.metadata["general.architecture"]
        counts = (model.metadata.get(f"{name}.{key}", 0) for key in ("block_count", "nextn_predict_layers"))
        blocks, further = (int(count) for count in counts)
        return blocks - further if further else 1 << 30


def _tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    """Name → number of weights and their float32 numbers."""
    with open_gguf(path) as model:
        return {t.name: (t.size, t.floats().tobytes()) for t in model.tensors.values()}


def _written(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    yield from (name for name in header if name != "__metadata__")


def tiny(folder: Path) -> Iterator[tuple[str, Path]]:
    """The checkpoints of tests/models, converted to F32."""
    from tiny_checkpoints import write
    from tiny_families import FAMILIES

    for name, make in FAMILIES.items():
        try:
            hf = write(make(), folder / name)
            yield name, convert(hf, folder / f"{name}.gguf", "F32", pre="llama-bpe")
        except GgufkitError as e:
            print(f"{name:<20} {e}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        models: list[tuple[str, Path]] = [(path.stem, path) for path in options.models]
        for name, path in [*models, *(tiny(Path(folder)) if options.tiny else ())]:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    found = verify(path, Path(scratch))
                except (GgufkitError, ValueError, TypeError) as e:
                    print(f"{name:<20} {str(e)[:90]}", flush=True)
                    continue
            notes = [f"mlx-lm has other names: {found.renamed[:3]}"] if found.renamed else []
            notes += [f"not the same again: {found.changed[:3]}"] if found.changed else []
            print(f"{name:<20} {found.apart:.1e}  {'; '.join(notes)}", flush=True)
            failed += found.apart > LIMIT or bool(notes)
    return failed > 0


if __name__ == "__main__":
    sys.exit(plain_errors.run(main))
