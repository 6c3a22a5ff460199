"""Make ggufkit/formats/iquants/codebooks.py from the tables of the gguf package.

python tools/generate/make_iq_codebooks.py > ggufkit/formats/iquants/codebooks.py
"""

from __future__ import annotations

import base64
import textwrap

import numpy as np
from gguf import quants

NAMES = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")

HEAD = '''"""The rows of the IQ formats' codebooks. Made by tools/generate/make_iq_codebooks.py; a test checks them.

A row is a number of its levels' numbers, the first level in the lowest digit: base 3 for rows of eight, base 8 for
rows of four. The numbers are uint16, little-endian, in base 64.

Source: the tables `iq1s_grid`, `iq2xxs_grid` … `iq3s_grid` of ggml/src/ggml-common.h of llama.cpp.
"""

from __future__ import annotations

__all__ = ["LEVELS", "ROWS"]
'''


def main() -> None:
    print(HEAD)
    print("# format → what the levels stand for")
    print("LEVELS = {")
    for name in NAMES:
        print(f'    "{name}": {tuple(getattr(quants, name).grid_map)},')
    print("}")
    print("\n# format → its rows\nROWS = {")
    for name in NAMES:
        print(f'    "{name}": """')
        print("\n".join(textwrap.wrap(base64.b64encode(rows(name)).decode(), 118)))
        print('""",')
    print("}")


def rows(name: str) -> bytes:
    source = getattr(quants, name)
    source.init_grid()
    grid = np.asarray(source.grid[0, 0])  # (rows, 4 or 8)
    levels = np.searchsorted(source.grid_map, grid)
    digits = len(source.grid_map) ** np.arange(grid.shape[1])
    return (levels @ digits).astype("<u2").tobytes()


if __name__ == "__main__":
    main()
