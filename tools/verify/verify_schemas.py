#!/usr/bin/env python3
"""Structured output against JSON-Schema-Test-Suite: what a model writes under each schema must validate.

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite
    python tools/verify/verify_schemas.py model.gguf JSON-Schema-Test-Suite/tests/draft2020-12 --most 50

Of each schema: refused with a reason, valid, or cut off by the limit of tokens. Exits with 1 where an output does not
validate.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.runtime.constrain.grammar import Grammar

sys.path.insert(0, str(Path(__file__).parents[1]))

import plain_errors


def schemas(folder: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(folder.glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            yield f"{file.stem}: {case['description']}", case["schema"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--most", type=int, default=10**6, help="how many schemas that compile")
    parser.add_argument("--tokens", type=int, default=120)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with ggufkit.load(options.model) as model:
        for name, schema in schemas(options.suite):
            if counts["valid"] + counts["cut off"] >= options.most:
                break
            try:
                grammar = Grammar.json_schema(schema)
                prompt = f"JSON that obeys {json.dumps(schema)[:300]}:\n"
                generation = model.generate(prompt, grammar=grammar, max_tokens=options.tokens, seed=1)
            except UsageError as e:
                counts["refused"] += 1
                print(f"refused   {name}: {e}")
                continue
            text = "".join(generation)
            if generation.reason != "end":
                counts["cut off"] += 1
                continue
            try:
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
                counts["valid"] += 1
            except re.error:  # Python's expressions are others
                counts["without a judge"] += 1
            except (ValueError, jsonschema.ValidationError) as e:
                counts["not valid"] += 1
                print(f"NOT VALID {name}: {text!r}: {str(e).splitlines()[0]}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return counts["not valid"] > 0


if __name__ == "__main__":
    plain_errors.run(main)
