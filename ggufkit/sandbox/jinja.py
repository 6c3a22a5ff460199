"""Jinja templates of strangers, run by `child.py`: at most a second of computing, 128 MB, and a few MB of text.

    check("{% for %}")                                  Broken("expected token …", line=1)
    render("{{ messages[0].content }}", {"messages": …})

The process is started when the first template comes, and again after one that had to be ended.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["BrokenTemplate", "FailedTemplate", "RefusedByTemplate", "check", "render"]

# Seconds of computing, and what a megabyte of input adds; seconds on the clock, on a machine that is busy.
_SECONDS, _PER_MEGABYTE = 1.0, 1.0
_PATIENCE = 30.0

# Characters of output, beyond four for each of the input.
_OUTPUT = 4 << 20


class BrokenTemplate(Exception):
    """It does not compile; `line` says where, or is None."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


class FailedTemplate(Exception):
    """It went wrong while it ran."""


class RefusedByTemplate(Exception):
    """It refused what it was given, by `raise_exception`."""


def check(source: str) -> bool:
    """Compile a template; returns whether it wants to load another one.

    Raises
    ------
    BrokenTemplate : it does not compile.
    """
    try:
        return bool(_ask({"source": source})["loads"])
    except FailedTemplate as e:
        raise BrokenTemplate(str(e)) from None


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Parameters
    ----------
    variables : what JSON can hold.

    Raises
    ------
    BrokenTemplate, FailedTemplate, RefusedByTemplate : it gives none.
    TypeError : a variable is nothing for JSON.
    """
    size = len(json.dumps(variables))
    text: str = _ask({"source": source, "variables": variables, "limit": _OUTPUT + 4 * size})["text"]
    return text


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(request)
    seconds = _SECONDS + _PER_MEGABYTE * len(text) / 1e6
    answer = _process.ask(json.dumps({**request, "seconds": seconds}), seconds)
    if "broken" in answer:
        raise BrokenTemplate(answer["broken"], answer["line"])
    if "refused" in answer:
        raise RefusedByTemplate(answer["refused"])
    if "failed" in answer:
        raise FailedTemplate(answer["failed"])
    return answer


class _Process:
    """The child, and one question to it at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            timer = threading.Timer(_PATIENCE + seconds, child.kill)
            timer.daemon = True
            timer.start()
            try:
                child.stdin.write(line + "\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except BrokenPipeError:
                answer = ""
            except BaseException:  # Ctrl-C: the answer would be taken for that of the next question
                self.end()
                raise
            finally:
                timer.cancel()
            if not answer.endswith("\n"):
                self.end()
                return {"failed": f"it takes more than {seconds:.0f} s of computing, or breaks its process"}
            found: dict[str, Any] = json.loads(answer)
            return found

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("child.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the parent
            )
        return self._child

    def end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


_process = _Process()
atexit.register(_process.end)
