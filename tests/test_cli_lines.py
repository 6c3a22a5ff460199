"""Messages typed at a terminal: what Ctrl-C keeps, lines that go on, what is typed ahead."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty")

CHILD = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from ggufkit.cli.lines import read_message, typed_ahead
with typed_ahead():
    if "busy" in sys.argv:
        try:
            print("READY", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("GOT", repr(sys.stdin.readline()), flush=True)
    else:
        print("READY", flush=True)
        for _ in range(2):
            print("GOT", repr(read_message()), flush=True)
"""


class Terminal:
    """A child at the other end of a pseudo terminal."""

    def __init__(self, *arguments: str):
        self.handle, end = pty.openpty()
        ends = {"stdin": end, "stdout": end, "stderr": end}
        self.child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], start_new_session=True, **ends)
        os.close(end)
        self.seen = b""
        self.wait(b"READY")

    def wait(self, text: bytes) -> None:
        """Until the child has written `text` after what was waited for before."""
        until = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            self.read()
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def interrupt(self, shown: bytes) -> None:
        """Ctrl-C, until it shows: one that comes just before the child waits for a key is seen with the next."""
        while shown not in self.seen:
            self.type(b"\x03")
            until = time.monotonic() + 2
            while shown not in self.seen and time.monotonic() < until:
                self.read()
        self.wait(shown)

    def read(self) -> None:
        if select.select([self.handle], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the child has ended
                self.seen += os.read(self.handle, 4096)

    def type(self, text: bytes) -> None:
        os.write(self.handle, text)

    def close(self) -> None:
        self.child.wait(60)
        os.close(self.handle)


def test_ctrl_c_shows_what_was_typed_again():
    terminal = Terminal()
    terminal.wait(b"> ")
    terminal.type(b"half a")
    terminal.wait(b"half a")
    terminal.interrupt(b"> half a")
    terminal.type(b" line\n")
    terminal.wait(b"GOT 'half a line'")
    terminal.wait(b"> ")
    terminal.interrupt(b"GOT None")
    terminal.close()


def test_backslash_goes_on_with_the_next_line():
    terminal = Terminal()
    terminal.wait(b"> ")
    terminal.type(b"one\\\n")
    terminal.wait(b"\n")
    terminal.type(b"two\n")
    terminal.wait(rb"GOT 'one\ntwo'")
    terminal.wait(b"> ")
    terminal.type(b"\x04")
    terminal.wait(b"GOT None")
    terminal.close()


def test_ctrl_c_of_an_answer_leaves_what_was_typed_ahead():
    terminal = Terminal("busy")
    terminal.type(b"next question")
    terminal.wait(b"next question")
    terminal.interrupt(b"^C")
    terminal.type(b"?\n")
    terminal.wait(rb"GOT 'next question?\n'")
    terminal.close()
