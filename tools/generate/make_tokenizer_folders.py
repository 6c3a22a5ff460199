#!/usr/bin/env python3
"""Make fixtures/tokenizers: the same small tokenizers as transformers 4 and 5 save them.

    export PYTHONPATH=tests/models
    pip install 'transformers<5' sentencepiece && python tools/generate/make_tokenizer_folders.py
    pip install 'transformers>=5' && python tools/generate/make_tokenizer_folders.py

Each version fills fixtures/tokenizers/<kind>/transformers<version>-<class>.
"""

import json
import shutil
from pathlib import Path

import transformers
from tiny_checkpoints import bpe_files, sentencepiece_model, wordpiece_files
from tokenizers import AddedToken, Tokenizer

FOLDER = Path(__file__).parents[2] / "fixtures" / "tokenizers"
VERSION = transformers.__version__.split(".")[0]
MORE = ["<turn>", "<end_turn>"]


def bases(folder):
    """Kind → (folder to load from, classes, arguments)."""
    llama = folder / "llama"
    llama.mkdir(parents=True)
    (llama / "tokenizer.model").write_bytes(sentencepiece_model(unigram=False))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", **roles, "add_bos_token": True, "legacy": False}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    yield "llama", llama, ("LlamaTokenizer", "LlamaTokenizerFast")
    bert = folder / "bert"
    bert.mkdir()
    described = wordpiece_files()["tokenizer.json"]
    (bert / "tokenizer.json").write_text(json.dumps(described))
    (bert / "vocab.txt").write_text("\n".join(described["model"]["vocab"]) + "\n")
    yield "bert", bert, ("BertTokenizer", "BertTokenizerFast")


def save(tokenizer, kind, fixed=False):
    tokenizer.add_tokens(["plain word", AddedToken("<tool>", special=False, normalized=False)])
    if fixed:  # as sentence encoders are saved
        tokenizer.backend_tokenizer.enable_padding(length=16, pad_id=0, pad_token=tokenizer.pad_token or "!")
        tokenizer.backend_tokenizer.enable_truncation(max_length=16)
    target = FOLDER / kind / f"transformers{VERSION}-{type(tokenizer).__name__}{'-padded' if fixed else ''}"
    shutil.rmtree(target, ignore_errors=True)
    tokenizer.save_pretrained(target)
    for path in target.glob("tokenizer.json"):  # in lines, for those who look at changes
        path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=0))


def main():
    scratch = FOLDER / "scratch"
    for kind, folder, classes in bases(scratch):
        for name in dict.fromkeys(classes):
            cls = getattr(transformers, name)
            save(cls.from_pretrained(folder, additional_special_tokens=MORE), kind)
            if name.endswith("Fast"):
                save(cls.from_pretrained(folder, additional_special_tokens=MORE), kind, fixed=True)
    shutil.rmtree(scratch)
    text = json.dumps(bpe_files()["tokenizer.json"])
    for fixed in (False, True):
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text),
            bos_token="<|begin|>",
            eos_token="<|end|>",
            additional_special_tokens=MORE,
        )
        save(tokenizer, "bpe", fixed)


if __name__ == "__main__":
    main()
