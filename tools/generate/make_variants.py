#!/usr/bin/env python3
"""Random checkpoints of transformers' classes with other sizes and options, for tools/verify/verify_variants.py.

    python tools/generate/make_variants.py --llama-cpp DIR FOLDER OUT       # all of variants.json
    python tools/generate/make_variants.py FOLDER OUT qwen35 gemma4-e       # some families, without references

FOLDER has `<family>/hf`: configurations and tokenizers that the variants change. OUT gets `<family>-<number>/hf`, and
with a checkout of llama.cpp what its converter makes of each: `ref_f16.gguf`, `ref_f32.gguf`, `ref_mmproj.gguf`.

Needs torch and transformers. variants.json has of each family

    variants          changes of config.json by dotted path, "$absent" takes a key out; `class`, `native`, `options`
    class, config     of families that FOLDER has no checkpoint of, and whose `tokenizer` they borrow
    hub               keys that the hub's config.json has and transformers' does not
    native            what only transformers is told
    rename            patterns of tensors' names whose replacements the hub has
    mtp               "qwen" or "glm": one more block that predicts further tokens
    bare_config       the converter reads config.json itself; plain_tokenizer: and tokenizer.json
    mmproj            there are encoders, too
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

ABSENT = "$absent"
FAMILIES: dict[str, Any] = json.loads((Path(__file__).parent / "variants.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--llama-cpp", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for family in arguments.families or FAMILIES:
        for number, variant in enumerate(FAMILIES[family]["variants"]):
            folder = arguments.out / f"{family}-{number}"
            settings = {**FAMILIES[family], **variant}
            try:
                make(settings, arguments.folder, family, folder)
            except Exception as e:
                print(f"{folder.name}: transformers: {type(e).__name__}: {str(e)[:200]}", flush=True)
                continue
            (folder / "variant.json").write_text(json.dumps({"options": settings.get("options", {})}))
            if arguments.llama_cpp:
                sys.path[:0] = [str(arguments.llama_cpp / "gguf-py"), str(arguments.llama_cpp)]
                reference(settings, folder)
            print(folder.name, flush=True)


# ---- checkpoints ------------------------------------------------------------------------------------------------


def make(settings: dict[str, Any], source: Path, family: str, out: Path) -> None:
    """Write `out/hf`."""
    own = "config" in settings
    donor = source / settings.get("tokenizer", family) / "hf"
    values = json.loads(json.dumps(settings["config"])) if own else json.loads((donor / "config.json").read_text())
    change(values, settings["set"])
    name = settings.get("class") or values["architectures"][0]
    values["architectures"] = [name]
    whole = json.loads(json.dumps(values))
    change(whole, settings.get("native", {}))
    whole.pop("transformers_version", None)
    model_class = getattr(transformers, name)
    config = model_class.config_class.from_dict(numbers(whole))
    dtype = values.get("dtype") or values.get("text_config", {}).get("dtype") or "bfloat16"
    model = model_class(config)
    fill(model, sum(map(ord, out.name)), dtype)
    shutil.rmtree(out, ignore_errors=True)
    folder = out / "hf"
    folder.mkdir(parents=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text()) if own else values
    change(written, settings.get("hub", {}))
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    tensors = load_file(folder / "model.safetensors")
    if settings.get("mtp"):
        further_block(tensors, settings["mtp"], written.get("text_config", written))
    for pattern, name in settings.get("rename", {}).items():
        tensors = {re.sub(pattern, name, old): tensor for old, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    for file in donor.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder / file.name)
    for file, contents in settings.get("files", {}).items():
        (folder / file).write_text(json.dumps(contents))


def change(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        if value == ABSENT:
            place.pop(last, None)
        else:
            place[last] = value


def numbers(values: Any) -> Any:
    """Infinities as transformers writes them, as numbers."""
    if isinstance(values, dict):
        return float(values["__float__"]) if "__float__" in values else {k: numbers(v) for k, v in values.items()}
    return [numbers(value) for value in values] if isinstance(values, list) else values


@torch.no_grad()
def fill(model: Any, seed: int, dtype: str) -> None:
    """Matrices of standard deviation 1/√columns, norms near what they were, decays and routers' biases as they are."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith("inv_freq"):
            continue
        noise, end = torch.randn(tensor.shape, generator=generator), name.split(".")[-1]
        if end == "A_log":
            values = torch.log(1 + 7 * torch.rand(tensor.shape, generator=generator))
        elif end == "dt_bias":
            values = 0.2 * noise - 1
        elif end in ("input_min", "output_min", "input_max", "output_max"):
            values = torch.full(tensor.shape, 8.0 if end.endswith("max") else -8.0)
        elif tensor.dim() <= 1:
            around = float(tensor.float().mean()) if tensor.numel() else 0.0
            values = (around if around > 0.5 or "norm" in name or end == "D" else 0.0) + 0.1 * noise
        else:
            columns = tensor[0].numel() if "conv" in name or "patch" in name else tensor.shape[-1]
            values = noise if "embed" in name else noise / columns**0.5
        if dtype != "float32":
            values = torch.round(values * 128) / 128  # which halves hold exactly
        tensor.copy_(values.to(tensor.dtype))


def further_block(tensors: dict[str, Any], kind: str, config: dict[str, Any]) -> None:
    """One block that predicts further tokens, under the names of the published ones; transformers has none."""
    generator, width, last = torch.Generator().manual_seed(5), config["hidden_size"], config["num_hidden_layers"] - 1
    layer = re.compile(rf"(.*layers\.){last}\.(.*)")
    copied = {match: tensor for name, tensor in tensors.items() if (match := layer.fullmatch(name))}
    prefix = next(iter(copied))[1]
    dtype = next(iter(copied.values())).dtype
    names = {"qwen": ("mtp.layers.0.", "mtp."), "glm": (f"{prefix}{last + 1}.",) * 2}[kind]
    for match, tensor in copied.items():
        tensors[names[0] + match[2]] = tensor[torch.randperm(len(tensor), generator=generator)].clone()
    ends = {
        "qwen": ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"),
        "glm": ("eh_proj", "enorm", "hnorm", "shared_head.norm"),
    }[kind]
    tensors[f"{names[1]}{ends[0]}.weight"] = (torch.randn(width, 2 * width, generator=generator) / 11).to(dtype)
    for end in ends[1:]:
        around = 0.0 if kind == "qwen" else 1.0
        tensors[f"{names[1]}{end}.weight"] = (around + 0.1 * torch.randn(width, generator=generator)).to(dtype)
    if kind == "glm":
        embedding = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
        for end in ("embed_tokens", "shared_head.head"):
            tensors[f"{names[1]}{end}.weight"] = embedding.clone()


# ---- references -------------------------------------------------------------------------------------------------


def reference(settings: dict[str, Any], out: Path) -> None:
    """What llama.cpp's converter makes of `out/hf`; where it makes nothing, `<file>.error` says why."""
    import conversion
    from conversion.base import ModelBase, ModelType, get_model_architecture
    from gguf import LlamaFileType

    folder = out / "hf"
    files = [("f16", "MOSTLY_F16"), ("f32", "ALL_F32")] + [("mmproj", "MOSTLY_F16")] * bool(settings.get("mmproj"))
    find_tokenizer = transformers.AutoTokenizer.from_pretrained
    if settings.get("plain_tokenizer"):
        transformers.AutoTokenizer.from_pretrained = plain_tokenizer
    for file, kind in files:
        encoders = file == "mmproj"
        target = out / f"ref_{file}.gguf"
        try:
            bare = json.loads((folder / "config.json").read_text()) if settings.get("bare_config") else None
            values = bare or ModelBase.load_hparams(folder, False)
            which = get_model_architecture(values, ModelType.MMPROJ if encoders else ModelType.TEXT)
            converter = conversion.get_model_class(which, mmproj=encoders)
            converter.no_mtp = not settings.get("options", {}).get("mtp", True)
            with torch.inference_mode():
                more = {} if bare is None else {"hparams": bare}
                converter(folder, getattr(LlamaFileType, kind), target, **more).write()
        except (Exception, SystemExit) as e:
            target.unlink(missing_ok=True)
            target.with_suffix(".error").write_text(f"{type(e).__name__}: {e}")
    transformers.AutoTokenizer.from_pretrained = find_tokenizer


def plain_tokenizer(folder: Path, *arguments: Any, **more: Any) -> Any:
    """tokenizer.json as it lies in the folder, whatever transformers would make of the model's type."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    settings = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    if settings.get("add_bos_token"):
        type(tokenizer).add_bos_token = True
    return tokenizer


if __name__ == "__main__":
    main()
