"""The shape of the project: imports point down, heavy ones are lazy, the top level holds what it should."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ggufkit"

# From the ground up. A module may import from its own floor and from those below.
FLOORS = [
    ["arrays", "errors"],
    ["storage", "kernels"],
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
    ["verbs"],
    ["cli"],
    ["__init__", "__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = {"gguf", "jinja2", "mlx", "numba", "numpy", "rich", "sentencepiece", "tokenizers"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of ggufkit that a module imports at run time, inside functions too."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    rooms = {name.split(".")[1] for name in names if name.startswith("ggufkit.")}
    return {room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room_of(path)
    assert here in FLOOR, f"{here} has no floor: add it to FLOORS where it belongs"
    above = {room for room in imported_rooms(path) if FLOOR[room] > FLOOR[here]}
    assert above == set()


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
