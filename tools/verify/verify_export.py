#!/usr/bin/env python3
"""Exported folders in transformers: every weight loaded, and our logits of the GGUF that they were made of.

    python tools/verify/verify_export.py FOLDER                  # FOLDER/<name>/hf each
    python tools/verify/verify_export.py --type Q4_0 FOLDER llama qwen2
    python tools/verify/verify_export.py --families              # tests/models' own tiny checkpoints

Each checkpoint is converted and exported, and the folder converted again: tensors must have the same numbers, and no
key of the GGUF another value. Then transformers loads it: no weight may be missing, but poolers, which a GGUF lacks,
and none unexpected, but blocks behind the last. The numbers are the greatest difference of a logit (of encoders, of a
state), as a part of the greatest, from ours on the CPU, which has GELU in a table of halves as llama.cpp does, and from
transformers' of the checkpoint itself. With a type, those matrices that stay quantized, which compressed-tensors
decodes, are compared with the same ones decoded by ggufkit.

Needs transformers, torch and compressed-tensors. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_huggingface import export_hf
from ggufkit.tokenizer.run.vocab import NORMAL, read_vocab

# Of transformers' numbers for the checkpoint, and of ours.
LIMITS = {"source": 1e-4, "ours": 1e-3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--type", default="F32")
    parser.add_argument("--families", action="store_true")
    arguments = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in _checkpoints(arguments, Path(scratch)):
            try:
                with tempfile.TemporaryDirectory() as own:
                    said, good = compare(folder, Path(own), arguments.type, "llama-bpe" if arguments.families else None)
            except GgufkitError as e:
                said, good = f"{type(e).__name__}: {str(e)[:150]}", True
            except Exception as e:
                said, good = f"FAILED {type(e).__name__}: {str(e)[:300]}", False
            print(f"{name:<22} {said}", flush=True)
            failed += not good
    return bool(failed)


def _checkpoints(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Path]]:
    if arguments.families:
        sys.path.append(str(Path(__file__).parents[2] / "tests" / "models"))
        from tiny_checkpoints import write
        from tiny_families import FAMILIES

        names = [str(arguments.folder), *arguments.names] if arguments.folder else sorted(FAMILIES)
        yield from ((name, write(FAMILIES[name](), scratch / name)) for name in names)
        return
    for folder in sorted(arguments.folder.iterdir()):
        if (folder / "hf").is_dir() and (not arguments.names or folder.name in arguments.names):
            yield folder.name, folder / "hf"


def compare(folder: Path, scratch: Path, type_: str, pre: str | None) -> tuple[str, bool]:
    """What to say of a checkpoint, and whether all is well."""
    path = convert(folder, scratch / "a.gguf", type_, threads=2, pre=pre)
    export_hf(path, scratch / "out", dtype="float32" if type_ == "F32" else None)
    with open_gguf(path) as model:
        pre = pre and model.get("tokenizer.ggml.pre", str, "default")
    again = convert(scratch / "out", scratch / "b.gguf", "F32" if type_ == "F32" else "auto", threads=2, pre=pre)
    # Embeddings and the output are decoded to float16 where others stay quantized.
    ends = (
        () if type_ == "F32" else ("token_embd.weight", "output.weight", "position_embd.weight", "token_types.weight")
    )
    lost = [name for name in differences(path, again) if name not in ends]
    if lost:
        return f"DIFFERS {lost[:5]}", False
    if (loader := _loader(scratch / "out")) is None:
        return "comes back the same; transformers has no such class", True
    found = outputs(scratch / "out", loader)
    plain = scratch / "plain"
    if type_ != "F32":
        export_hf(path, plain, dtype="float32", decode=True)
    said, good = "", True
    for name, run in (
        ("ours", lambda: _ours(path, loader)),
        ("source", lambda: outputs(plain if plain.exists() else folder, loader, strict=False)),
    ):
        try:
            reference = run()
        except Exception as e:
            said += f"  {name}: {type(e).__name__} {str(e)[:60]}"
            continue
        apart = float(np.abs(found - reference).max() / np.abs(reference).max())
        said += f"  {name} {apart:.1e}"
        # Quantized matrices of ours are multiplied with activations of 8 bits, which may choose other experts.
        good &= apart <= (LIMITS[name] if type_ == "F32" else LIMITS["ours"]) or (name == "ours" and type_ != "F32")
    return said, good


def differences(path: Path, again: Path) -> list[str]:
    """Tensors that are not the same bytes, and keys of the first file that the second lacks or has otherwise."""
    with open_gguf(path) as a, open_gguf(again) as b:
        found = [
            name
            for name in {**a.tensors, **b.tensors}
            if name not in a.tensors
            or name not in b.tensors
            or a.tensors[name].shape != b.tensors[name].shape
            or not np.array_equal(a.tensors[name].floats(), b.tensors[name].floats())
        ]
        if _words(a) != _words(b):
            found.append("the vocabulary")
        ours = [key for key in a.metadata if not key.startswith(("general.", "ggufkit."))]
        return found + [k for k in ours if not k.endswith(_SEEN) and b.metadata.get(k) != a.metadata[k]]


# Keys that `_words` compares: llama.cpp takes tokens that end a text for control tokens, whatever a file calls them,
# and scores matter for pieces alone.
_SEEN = ("token_type", "scores")


def _words(model: GGUF) -> tuple[object, ...]:
    vocab = read_vocab(model)
    pieces = vocab.kind in ("spm", "unigram")
    scores = [s for s, kind in zip(vocab.scores, vocab.attributes, strict=True) if pieces and kind & NORMAL]
    return vocab.texts, vocab.special(), scores


def _loader(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    name, known = config["architectures"][0], config["model_type"] in transformers.CONFIG_MAPPING
    if name.endswith("ForCausalLM"):
        return transformers.AutoModelForCausalLM if known else None
    return getattr(transformers, name, None)


def _ids(vocabulary: int) -> np.ndarray:
    return np.arange(24) * 7 % vocabulary


def _ours(path: Path, loader: Any) -> np.ndarray:
    with ggufkit.load(path) as model:
        ids = _ids(model.vocabulary)
        if "SequenceClassification" in loader.__name__:
            return np.asarray(model.embed(ids, "rank"))[None]
        if model.weights.output is None or re.search(r"(?<!LMHead)Model$", loader.__name__):
            return np.asarray(model.embed(ids, "none"))
        return np.asarray(model.forward(ids, model.new_cache(len(ids), "F32", "F32"), "all"))


def _is_elsewhere(name: str, layers: int) -> bool:
    """Whether a weight is of a pooler, or of a block behind the last."""
    block = re.search(r"layers\.(\d+)\.", name)
    return "pooler." in name or (block is not None and int(block[1]) >= layers)


def outputs(folder: Path, loader: Any, strict: bool = True) -> np.ndarray:
    """Logits, or an encoder's states, of a folder as transformers has them, (tokens, …)."""
    model, report = loader.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if strict else ()))
    config = getattr(model.config, "text_config", model.config)
    lost = {
        kind: left
        for kind in kinds
        if (left := [name for name in report.get(kind) or () if not _is_elsewhere(str(name), config.num_hidden_layers)])
    }
    if lost:
        raise ValueError(f"not all weights were loaded: {lost}")
    ids = torch.tensor(_ids(config.vocab_size))[None]
    more = {"decoder_input_ids": ids} if "ForConditionalGeneration" in loader.__name__ else {}
    with torch.no_grad():
        result = model.eval()(input_ids=ids, **more)
    values: np.ndarray = getattr(result, "logits", getattr(result, "last_hidden_state", None)).float().numpy()
    return values if "SequenceClassification" in loader.__name__ else values[0]


if __name__ == "__main__":
    sys.exit(main())
