#!/usr/bin/env python3
"""Chat templates of models against the table of styles: what a template writes for a call, the parser must read back.

    python tools/verify/verify_replies.py llama.cpp/models/templates        # files *.jinja
    python tools/verify/verify_replies.py model.gguf other.gguf

A line each: the style that was found, the thoughts, whether the template tells the model of its tools. Exits with 1
where a template writes a call that is not read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.runtime.chat import ChatTemplate, read_template
from ggufkit.serve.replies.detect import manner_of, reads_back
from ggufkit.tokenizer.run.vocab import read_vocab

sys.path.insert(0, str(Path(__file__).parents[1]))

import plain_errors


def templates(path: Path) -> Iterator[tuple[str, ChatTemplate | GgufkitError]]:
    """(name, template), or why there is none."""
    if path.is_dir():
        for file in sorted(path.glob("*.jinja")):
            yield from templates(file)
        return
    try:
        if path.suffix == ".gguf":
            with ggufkit.open(path) as gguf:
                yield path.name, read_template(gguf, read_vocab(gguf))
        else:
            tokens = {"bos_token": "<s>", "eos_token": "</s>"}
            yield path.name, ChatTemplate(path.read_text("utf-8"), path.name, tokens)
    except GgufkitError as e:
        yield path.name, e


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    counts = {True: 0, False: 0, None: 0}
    for path in parser.parse_args().paths:
        for name, template in templates(path):
            if isinstance(template, GgufkitError):
                print(f"{name:60} {template}")
                continue
            manner, read = manner_of(template), reads_back(template)
            counts[read] += 1
            said = {True: "reads back", False: "NOT READ", None: "writes no call"}[read]
            thoughts = manner.thoughts.closing if manner.thoughts else "-"
            shows = "shows tools" if manner.shows_tools else ""
            print(f"{name:60} {manner.style.name:20} {thoughts:24} {said:16} {shows}")
    print(f"{counts[True]} read back, {counts[False]} not, {counts[None]} write no call")
    return counts[False] > 0


if __name__ == "__main__":
    plain_errors.run(main)
