"""The tools start; the fuzzer and the drills run for a moment; none uses private names of the package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufkit.jobs.convert import convert

ROOT = Path(__file__).parent.parent
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
# What needs a package that the tests do not install.
NEEDS = {"make_torch_fixtures": "torch"}


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("drills/fuzz_gguf.py", ("--cases", "200")),
        ("drills/fuzz_configs.py", ("--cases", "250")),
        ("drills/crash_edits.py", ("--edits", "4", "--rewrites", "2")),
        ("drills/break_quantize.py", ("kill", "--times", "2", "--layers", "1")),
        ("generate/make_manual.py", ("--check",)),
    ],
)
def test_drill_runs_for_a_moment(tool: str, arguments: tuple[str, ...]):
    done = run(tool, *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_busy_machine_is_made_for_a_moment(tmp_path: Path):
    model = convert(ROOT / "fixtures" / "pylib-llama", tmp_path / "model.gguf", "Q8_0")
    done = run("drills/busy_machine.py", str(model), "--rounds", "1", "--tokens", "4", "--loops", "2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_tool_imports_public_names_that_exist(path: Path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ggufkit":
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            for alias in node.names:
                assert not alias.name.startswith("_"), f"{node.module}.{alias.name} is private"
                if not hasattr(module, alias.name):
                    __import__(f"{node.module}.{alias.name}")
