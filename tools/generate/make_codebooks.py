"""Make ggufkit/turboquant/levels.py: the Lloyd–Max levels of N(0, 1).

python tools/generate/make_codebooks.py > ggufkit/turboquant/levels.py
"""

from __future__ import annotations

from textwrap import wrap

from ggufkit.turboquant.codebooks import lloyd_max

HEAD = '''"""Lloyd–Max levels of N(0, 1) for 1 … 8 bits, the positive half: tools/generate/make_codebooks.py."""

from __future__ import annotations

__all__ = ["GAUSSIAN"]

GAUSSIAN = {'''


def main() -> None:
    print(HEAD)
    for bits in range(1, 9):
        levels = lloyd_max(bits)
        lines = wrap(" ".join(f"{level:.9f}" for level in levels[len(levels) // 2 :]), 108)
        if len(lines) == 1:
            print(f'    {bits}: "{lines[0]}",')
            continue
        print(f"    {bits}: (")
        print("\n".join(f'        "{line} "' for line in lines[:-1]))
        print(f'        "{lines[-1]}"\n    ),')
    print("}")


if __name__ == "__main__":
    main()
