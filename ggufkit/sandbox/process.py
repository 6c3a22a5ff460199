"""A child process for what strangers wrote, with limits on time, memory and output.

The process is started when the first question comes, and again after one that had to be ended.
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

from ggufkit.errors import GgufkitError

__all__ = ["Busy", "Child"]

# Seconds on the clock beyond those of computing, on a machine that is busy.
_PATIENCE = 30.0


class Busy(GgufkitError):
    """Too many questions wait."""


class Child:
    """A process that runs `child.py`, and one question to it at a time.

    Parameters
    ----------
    most : questions that wait; one more is refused. None for any number.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most, self._asking = most, 0
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.end)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request, which may take `seconds` of computing; ``{"failed": why}`` where it takes more.

        Raises
        ------
        Busy : too many wait.
        """
        line = json.dumps({**request, "seconds": seconds})
        if self._most is not None and self._asking > self._most:
            raise Busy(f"{self._asking} grammars and schemas wait to be compiled; try again")
        self._asking += 1
        try:
            return self._answer(line, seconds)
        finally:
            self._asking -= 1

    def _answer(self, line: str, seconds: float) -> dict[str, Any]:
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
        """End the process; the next question starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()
