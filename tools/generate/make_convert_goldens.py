"""Make `fixtures/convert.json` and `fixtures/adapters.json`: what llama.cpp's converters make of the tiny checkpoints
of `tiny_families` and the tiny adapters of `tiny_adapters`.

    python tools/generate/make_convert_goldens.py LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp; its converter needs PyTorch, transformers and for Mistral's own format
mistral-common, which this environment must have.
The tiny vocabularies have no pre-tokenizer that llama.cpp would recognise, so it is told that it is GPT-2's.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from ggufkit.gguf import reader
from ggufkit.gguf.header import Field, ValueType

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

from tiny_adapters import ADAPTERS, write_adapter
from tiny_checkpoints import write
from tiny_families import FAMILIES

PRE_TOKENIZER = "gpt-2"
RANKS = ("qwen.tiktoken", "hy.tiktoken", "tiktoken.model")  # what only code beside the checkpoints reads


def reference(folder: Path, out: Path, outtype: str, target: Path | None = None) -> None:
    """Convert with llama.cpp, in a process of its own: its converter keeps tensors and names in its classes."""
    process = multiprocessing.get_context("fork").Process(target=_reference, args=(folder, out, outtype, target))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"llama.cpp's converter refuses {folder}")


def _reference(folder: Path, out: Path, outtype: str, target: Path | None) -> None:
    import conversion
    import torch
    import transformers
    from conversion.base import ModelType, TextModel, get_model_architecture
    from gguf import LlamaFileType

    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer(folder)
    find = transformers.AutoTokenizer.from_pretrained

    def from_pretrained(at: Path, *arguments: Any, **more: Any) -> Any:
        if more.get("trust_remote_code") and (Path(at) / "config.json").read_text().find("THUDM/chatglm3") >= 0:
            return RemoteSentencePiece(Path(at) / "tokenizer.model")
        name = next((name for name in RANKS if (Path(at) / name).is_file()), None)
        return find(at, *arguments, **more) if name is None else RemoteTokenizer(Path(at) / name)

    transformers.AutoTokenizer.from_pretrained = from_pretrained
    if (folder / "params.json").is_file():
        from conversion.mistral import MistralModel, MistralMoeModel

        mixture = "moe" in json.loads((folder / "params.json").read_text())
        model = MistralMoeModel if mixture else MistralModel
        # What that of mixtures looks for in config.json is not there; it only wants the file.
        (folder / "config.json").write_text("{}")
    else:
        hyperparameters = conversion.ModelBase.load_hparams(folder, False)
        model = conversion.get_model_class(get_model_architecture(hyperparameters, ModelType.TEXT))
    more = {} if target is None else {"target_model_dir": target}
    with torch.inference_mode():
        model(folder, getattr(LlamaFileType, f"MOSTLY_{outtype}"), out, **more).write()


def pre_tokenizer(folder: Path) -> str:
    return "kimi-k2" if (folder / "tiktoken.model").is_file() else PRE_TOKENIZER


class RemoteSentencePiece:
    """What the code beside ChatGLM 3 makes of its SentencePiece model."""

    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor

        self.tokenizer, self.sp_model = self, SentencePieceProcessor(str(path))
        names = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
        names += ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
        self.names = {self.sp_model.vocab_size() + number: name for number, name in enumerate(names)}

    def get_vocab(self) -> dict[str, int]:
        return {name: token for token, name in self.names.items()}

    def _convert_id_to_token(self, token: int) -> str:
        if token in self.names or token >= self.sp_model.vocab_size():
            return self.names.get(token, "")
        return str(self.sp_model.IdToPiece(token))


class RemoteTokenizer:
    """What the code beside Qwen's, HunYuan's and Kimi's checkpoints makes of tiktoken's files."""

    def __init__(self, path: Path):
        ranks = [line.split() for line in path.read_text().splitlines()]
        self.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in ranks}
        self.model, self._mergeable_ranks = self, self.mergeable_ranks
        names = {
            "qwen.tiktoken": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            "hy.tiktoken": ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"),
        }.get(path.name)
        first = len(ranks)
        if names is None:
            settings = json.loads((path.parent / "tokenizer_config.json").read_text())
            known = {int(token): entry["content"] for token, entry in settings["added_tokens_decoder"].items()}
            numbers = range(first, first + 256)
            self.special_tokens = {known.get(i, f"<|reserved_token_{i}|>"): i for i in numbers}
            self.eos_id = self.special_tokens[settings["eos_token"]]
        else:
            texts = (*names, *(f"<|extra_{number}|>" for number in range(205)))
            self.special_tokens = {text: first + number for number, text in enumerate(texts)}
        self.vocab_size = first + len(self.special_tokens)

    def get_vocab(self) -> dict[str, int]:
        return self.special_tokens


def summary(path: Path) -> dict[str, Any]:
    """A file's contents: key → [type, value or digest], tensor → [shape, type, digest]; and the digest of it all."""
    with reader.open(path) as model:
        return {
            "metadata": {key: [field.describe(), _contents(field)] for key, field in model.fields.items()},
            "tensors": {
                tensor.name: [list(tensor.shape), tensor.format.name, _digest(tensor.read(0, tensor.rows))]
                for tensor in model.tensors.values()
            },
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


def _contents(field: Field) -> Any:
    return _digest(field.raw) if field.type is ValueType.ARRAY and field.count > 16 else field.value


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("names", nargs="*", help="only these families; the others' references stay")
    arguments = parser.parse_args()
    source = arguments.llama_cpp
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    known = ROOT / "fixtures" / "convert.json"
    found = json.loads(known.read_text(encoding="utf-8")) if arguments.names else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, tiny in FAMILIES.items():
            if arguments.names and name not in arguments.names:
                continue
            folder = write(tiny(), Path(scratch) / name / "hf")
            out = Path(scratch) / "reference.gguf"
            target = folder / "target" if (folder / "target").is_dir() else None
            reference(folder, out, "F16", target)
            found[name] = summary(out)
            reference(folder, out, "Q8_0", target)
            found[name]["Q8_0"] = hashlib.sha256(out.read_bytes()).hexdigest()
    _write("convert", found)
    if not arguments.names:
        _write("adapters", _adapters(source))


def _adapters(source: Path) -> dict[str, Any]:
    """Adapter → type → digest of the file that convert_lora_to_gguf.py makes of it."""
    found: dict[str, Any] = {}
    environment = os.environ | {"PYTHONPATH": str(source / "gguf-py")}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (base, _) in ADAPTERS.items():
            adapter = write_adapter(name, Path(scratch) / name / "adapter")
            model = write(FAMILIES[base](), Path(scratch) / name / "base")
            found[name] = {}
            for type in ("F32", "F16", "Q8_0"):
                out = Path(scratch) / "reference.gguf"
                script = [sys.executable, str(source / "convert_lora_to_gguf.py"), "--base", str(model)]
                script += ["--outtype", type.lower(), "--outfile", str(out), str(adapter)]
                subprocess.run(script, check=True, env=environment, capture_output=True)
                found[name][type] = hashlib.sha256(out.read_bytes()).hexdigest()
    return found


def _write(name: str, found: dict[str, Any]) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(golden, ensure_ascii=False)}" for name, golden in found.items()]
    (ROOT / "fixtures" / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
