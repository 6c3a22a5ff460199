"""The files that the manual's examples name, so that a test can run every one of them.

stock(folder)      # Llama-3.2-1B, model-F16.gguf, model-Q4_K_M.gguf, imatrix.gguf, wiki.test.raw, …
copy_of(folder, target)

Behind Llama-3.2-1B stands the bundled checkpoint. Only `model.gguf` is edited in its place; the others may be links.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

from tiny_checkpoints import save, write
from tiny_families import FAMILIES

import ggufkit
from ggufkit.cli import cli
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantize

# What other examples begin with.
COMMANDS = (
    "set {0}/model.gguf --token 300 '<|im_end|>' --force",
    "imatrix {0}/model-F16.gguf -f {0}/calibration.txt -c 256 -o {0}/imatrix.gguf",
    "calibrate {0}/model-F16.gguf -f {0}/calibration.txt -c 256 --chunks 1 -o {0}/stats.gguf",
    "quantize --imatrix {0}/imatrix.gguf {0}/model-BF16.gguf {0}/model-IQ3_XXS.gguf IQ3_XXS",
    "split --split-max-size 3M {0}/model.gguf {0}/part",
)

__all__ = ["copy_of", "stock"]

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def stock(folder: Path) -> Path:
    """Make the files in `folder`."""
    checkpoint = folder / "Llama-3.2-1B"
    shutil.copytree(ROOT / "fixtures" / "pylib-llama", checkpoint)
    (folder / "fixtures").mkdir()
    (folder / "fixtures" / "pylib-llama").symlink_to(checkpoint)
    for name, type in (("F16", "F16"), ("BF16", "BF16"), ("f16", "F16")):
        convert(checkpoint, folder / f"model-{name}.gguf", type, force=True)
    for preset in ("Q4_K_M", "Q4_0"):
        quantize(folder / "model-BF16.gguf", folder / f"model-{preset}.gguf", preset)
    with ggufkit.edit(folder / "model-F16.gguf", folder / "model.gguf") as edit:
        for key in ("general.url", "general.source.url"):
            edit.set(key, ggufkit.Value(ggufkit.ValueType.STRING, "https://example.org"))
        edit.set("llama.rope.scale", ggufkit.Value(ggufkit.ValueType.FLOAT32, 1.0))
        edit.set("my.note", ggufkit.Value(ggufkit.ValueType.STRING, "hello"))
        edit.set("tokenizer.chat_template", ggufkit.Value(ggufkit.ValueType.STRING, TEMPLATE))
    (folder / "template.jinja").write_text(TEMPLATE)
    text = "".join(path.read_text("utf-8") for path in sorted((ROOT / "ggufkit" / "formats").glob("*.py"))[:2])
    for name in ("wiki.test.raw", "text.txt", "calibration.txt"):
        (folder / name).write_text(text[:9000])
    (folder / "questions.txt").write_text("What is a GGUF file?\nWhat is a block?\n")
    (folder / "prompt.txt").write_text("def main(")
    (folder / "long.txt").write_text(text[:300])
    (folder / "code.py").write_text(text[:300])
    whole = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf.part").write_bytes(whole[: len(whole) // 2])  # a download that stopped
    (folder / "mine.toml").write_text('base = "Q4_K_M"\n\n[[rule]]\ntype = "Q8_0"\nrole = "attn_v"\n')
    convert(write(FAMILIES["xlm-roberta"](), folder / "bge-small"), folder / "bge-small.gguf", "F16")
    convert(
        write(FAMILIES["bert-classifier"](), folder / "reranker"), folder / "bge-reranker.gguf", "F16", pre="jina-v2-en"
    )
    _adapter(folder / "my-adapter")
    for line in COMMANDS:
        cli.main(shlex.split(line.format(folder)), standalone_mode=False)
    return folder


def _adapter(folder: Path) -> None:
    """A LoRA adapter of Llama-3.2-1B."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "base_model_name_or_path": "somebody/Llama-3.2-1B"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    save(
        folder / "adapter_model.safetensors", {f"{at}.lora_A.weight": (4, 256), f"{at}.lora_B.weight": (256, 4)}, "F32"
    )


def copy_of(folder: Path, target: Path) -> Path:
    """The files of `folder` in `target`, which the examples may change."""
    return Path(shutil.copytree(folder, target, symlinks=True, copy_function=_link_or_copy))


def _link_or_copy(source: str, target: str) -> None:
    if os.path.basename(source) == "model.gguf":
        shutil.copy(source, target)
    else:
        os.link(source, target)
