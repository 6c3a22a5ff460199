"""The shape of the project: imports point down, heavy ones are lazy, the top level holds what it should."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ggufkit.arch.registry import known_models

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ggufkit"

# From the ground up. A module may import from its own floor and from those below.
FLOORS = [
    ["arrays", "errors"],
    ["storage", "kernels", "sandbox", "media"],
    ["formats"],
    ["tensors", "turboquant", "numbers"],
    ["gguf"],
    ["checkpoint", "importance"],
    ["policy", "tokenizer"],
    ["arch"],
    ["runtime"],
    ["jobs"],
    ["evaluate"],
    ["calibrate"],
    ["memory"],
    ["web"],
    ["serve"],
    ["verbs"],
    ["cli"],
    ["__init__", "__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = {"gguf", "jinja2", "mlx", "numba", "numpy", "PIL", "rich", "sentencepiece", "tokenizers"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A module's name without ``ggufkit.``; of a package's ``__init__`` the package's."""
    return path.relative_to(PACKAGE).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")


NAMES = {name_of(path): path for path in modules()}


def room_of(path: Path) -> str:
    return name_of(path).split(".")[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> frozenset[str]:
    """Names of the modules of ggufkit that a module imports at run time, inside functions and by their names, too."""
    tree = tree_of(path)
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            # of a name that is put together, what it begins with: "ggufkit.formats.{family}"
            text = ast.unparse(node.args[0]).strip("f'\"").split("{")[0]
            found.add(text if text.startswith("ggufkit.") else "")
    return frozenset(filter(None, (_module(name) for name in found if name.startswith("ggufkit."))))


def _module(name: str) -> str | None:
    """The module that a dotted name is of or in."""
    parts = name.split(".")[1:]
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in NAMES:
            return ".".join(parts[:n])
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room_of(path)
    assert here in FLOOR, f"{here} has no floor: add it to FLOORS where it belongs"
    above = {name for name in imported(path) if FLOOR[name.split(".")[0]] > FLOOR[here]}
    assert above == set()


def test_every_room_is_on_one_floor_and_in_the_architecture_page():
    rooms = [room for floor in FLOORS for room in floor]
    assert sorted(rooms) == sorted({room_of(path) for path in modules()})
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    missing = [room for room in rooms if f"`{room}/`" not in page and f"`{room}.py`" not in page]
    assert set(missing) <= {"__init__", "__main__"}


def test_no_two_files_import_each_other():
    """No circle, however long, imports inside functions included."""
    waiting = {name: set(imported(path)) - {name} for name, path in NAMES.items()}
    while free := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in free:
            del waiting[name]
    # What is left is in a circle, or needs one.
    circle = {name: sorted(needed & waiting.keys()) for name, needed in waiting.items()}
    assert circle == {}


def test_files_are_short():
    long = {name: lines for name, path in NAMES.items() if (lines := len(path.read_text().splitlines())) > 500}
    assert long == {}


# Where names of architectures are spelled: the specs, what belongs to one architecture alone, and other things' names.
ARCHITECTURE_NAMES = {spec.name for specs in known_models().values() for spec in specs} - {"bert", "t5"}
NOT_ARCHITECTURES = {
    "tokenizer": "tokenizers and their pre-tokenizers are called after the models that had them first",
    "gguf.checks.tokenizer": "so are the kinds of tokenizers",
    "cli": "examples in help",
    "checkpoint.packed.bitnet": "a way to quantize that models of other architectures have, too",
    "serve.replies.styles": "ways to write calls of tools are called after the models that had them first",
    "checkpoint.packed.registry": "the layouts' names, that one among them",
}


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a module, without its docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_architectures_are_named_in_arch_alone():
    named = {
        f"{name}: {text}"
        for name, path in NAMES.items()
        if not {room_of(path), name} & {"arch", *NOT_ARCHITECTURES}
        for text in texts_of(path)
        if re.fullmatch(r"([a-z0-9_-]+)([.][a-z_]+)*", text)
        and text != "llama.cpp"
        and text.split(".")[0] in ARCHITECTURE_NAMES
    }
    assert named == set()


def test_top_level_holds_what_it_should():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "ggufkit", "tests", "tools", "fixtures", "README.md", "CHANGELOG.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("statement", ["import ggufkit", "import ggufkit.cli", "import ggufkit.gguf.header"])
def test_start_up_imports_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(run.stdout.split()) & HEAVY == set()


def test_only_jit_compiles():
    for path in modules():
        if path.relative_to(PACKAGE).as_posix() != "kernels/jit.py":
            text = path.read_text()
            assert "njit" not in text.replace("numba.njit`", ""), f"{path} compiles by itself"
