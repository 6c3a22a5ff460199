#!/usr/bin/env python3
"""Which file of `arch/specs` has which class and which architecture: ggufkit/arch/catalogue.py.

    python tools/generate/make_catalogue.py

A test compares it with the specs.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

from ggufkit.arch import specs

TARGET = Path(specs.__path__[0]).parent / "catalogue.py"


def catalogue() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(Hugging Face class → modules, architecture → modules), in the order of the modules' names."""
    classes: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(specs.__path__):
        for spec in getattr(importlib.import_module(f"{specs.__name__}.{module.name}"), "SPECS", ()):
            for table, keys in ((classes, spec.models), (names, [spec.name])):
                for key in keys:
                    if module.name not in table.setdefault(key, []):
                        table[key].append(module.name)
    return dict(sorted(classes.items())), dict(sorted(names.items()))


def text() -> str:
    """The module's source."""
    classes, names = catalogue()
    lines = ['"""Where the specs are: made by tools/generate/make_catalogue.py, and held true by a test."""', ""]
    lines += ["from __future__ import annotations", "", '__all__ = ["ARCHITECTURES", "CLASSES"]', ""]
    for name, what, table in (
        ("CLASSES", "Hugging Face class → the files that have it.", classes),
        ("ARCHITECTURES", "Architecture → the files that have it.", names),
    ):
        lines += [f"# {what}", f"{name}: dict[str, tuple[str, ...]] = {{"]
        for key, modules in table.items():
            items = ", ".join(json.dumps(module) for module in modules)
            lines.append(f"    {json.dumps(key)}: ({items}{',' if len(modules) == 1 else ''}),")
        lines += ["}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
