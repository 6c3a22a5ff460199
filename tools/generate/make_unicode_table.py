"""Make ggufkit/tokenizer/run/unicode_data.py: the categories that llama.cpp's tokenizers see.

python tools/generate/make_unicode_table.py > ggufkit/tokenizer/run/unicode_data.py

llama.cpp carries a table of its own (Unicode 15.1); Python's changes with its version. The table is asked of the
library inside `xllamacpp`, character by character.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama_vocab

# `unicode_cpt_flags`: the bits of a category → the letter in the table.
CATEGORIES = {0x01: "X", 0x02: "N", 0x04: "L", 0x08: "Z", 0x10: "M", 0x20: "P", 0x40: "S", 0x80: "C"}

HEAD = '''"""Unicode categories of all characters, as llama.cpp has them: tools/generate/make_unicode_table.py.

Runs of characters from U+0000 on: the category (L letter, N number, M mark, P punctuation, S symbol, Z separator,
C control, format, private or surrogate, X unassigned), then how many in hexadecimal, 1 left out.
"""

RUNS = (
'''


def main() -> None:
    letters = (CATEGORIES[llama_vocab.flags(character) & 0xFF] for character in range(0x110000))
    runs = ((letter, sum(1 for _ in run)) for letter, run in itertools.groupby(letters))
    text = "".join(letter + (f"{n:x}" if n > 1 else "") for letter, n in runs)
    lines = (f'    "{line}"' for line in textwrap.wrap(text, 112))
    print(HEAD + "\n".join(lines) + "\n)")


if __name__ == "__main__":
    main()
