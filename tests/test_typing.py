"""The façade as people and type checkers see it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ggufkit

ROOT = Path(__file__).parent.parent

# What NumPy takes for an array; Any is in it.
ARRAY_LIKE = (
    "numpy._typing._array_like._Buffer | numpy._typing._array_like._SupportsArray[numpy.dtype[Any]] | "
    "numpy._typing._nested_sequence._NestedSequence[numpy._typing._array_like._SupportsArray[numpy.dtype[Any]]] | "
    "complex | bytes | str | numpy._typing._nested_sequence._NestedSequence[complex | bytes | str]"
)

# What another module of the package may not take the place of.
FUNCTIONS = sorted(name for name in ggufkit.__all__ if name.islower() and not name.startswith("_"))


def test_every_public_name_is_there_for_type_checkers_too():
    tree = ast.parse(Path(ggufkit.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    imported = {alias.asname: node.module.removeprefix("ggufkit.") for node in block.body for alias in node.names}
    assert imported == ggufkit._PUBLIC
    assert [name for name in ggufkit.__all__ if not hasattr(ggufkit, name)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_verbs_are_functions_with_docstrings_also_after_all_is_imported(name):
    for module in set(ggufkit._PUBLIC.values()):
        importlib.import_module(f"ggufkit.{module}")
    function = getattr(ggufkit, name)
    assert callable(function)
    assert len(function.__doc__.splitlines()[0]) < 130
    assert function.__name__ == name


def test_unknown_names_are_told():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        ggufkit.quantise  # noqa: B018


def test_the_facade_reveals_its_types(tmp_path):
    """No public name is Any to mypy, and no signature has Any in it."""
    names = [name for name in ggufkit.__all__ if name != "__version__"]
    code = "import ggufkit\n" + "".join(f"reveal_type(ggufkit.{name})\n" for name in names)
    code += (
        "plan = ggufkit.plan('a.gguf', 'Q4_K_M')\nreveal_type(plan.size)\nreveal_type(plan.tensors[0].format.name)\n"
        "with ggufkit.open('a.gguf') as model:\n    reveal_type(model)\n    reveal_type(model.tensors['x'].floats())\n"
        "with ggufkit.edit('a.gguf') as e:\n    reveal_type(e)\n"
        "with ggufkit.load('a.gguf') as m:\n    reveal_type(m.generate('x'))\n"
        "ggufkit.quantise('a')\n"
    )
    script = tmp_path / "uses.py"
    script.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = re.findall(r'Revealed type is "(.*)"', run.stdout)
    assert len(found) == len(names) + 6, run.stdout
    plain = [text.replace(ARRAY_LIKE, "ArrayLike") for text in found]
    assert [text for text in plain if re.search(r"\bAny\b", text) and not text.endswith("gguf.values.Value")] == []
    errors = [line for line in run.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, errors
    assert '"quantise"' in errors[0]


@pytest.mark.slow
def test_the_package_is_clean_under_mypy_strict():
    run = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.stdout.startswith("Success"), run.stdout
