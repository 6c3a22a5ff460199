"""Devices to run on: names of Macs and GPUs with their memory and bandwidth, and this machine.

    device("m4-pro-48")     a Mac: one memory, of which the GPU may take a share
    device("rtx-4090")      a card with memory of its own
    device("24G")           a card with so many bytes
    this_machine()          what the system says

Sizes are the vendors' nominal ones, in GiB; bandwidths theirs, in GB/s.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ggufkit.errors import UsageError, printable

__all__ = ["DEVICES", "Device", "device", "this_machine"]

_GIB = 1 << 30

# What llama.cpp's --fit leaves free on each GPU.
_MARGIN = _GIB


@dataclass(frozen=True)
class Device:
    """A place for weights.

    Attributes
    ----------
    name : for people.
    kind : ``"card"`` with memory of its own, ``"unified"`` where GPU and CPU share one, ``"host"`` for a CPU alone.
    memory : bytes that it has.
    usable : bytes that a model may take: of unified memory the GPU's share, of a card what llama.cpp's --fit would use.
    bandwidth : bytes per second from memory; 0 where it is not known.
    engine : what runs models there, unless asked otherwise.
    """

    name: str
    kind: str
    memory: int
    usable: int
    bandwidth: float = 0.0
    engine: str = "llama.cpp"

    def for_engine(self, engine: str) -> Device:
        """The same for an engine: this package's CPU backend may take all of a unified memory.

        Raises
        ------
        UsageError : the engine does not run there.
        """
        if self.kind == "card" and engine != "llama.cpp":
            raise UsageError(f"{self.name} is a card, on which {engine} does not run", "take {engine=llama.cpp}")
        return replace(self, usable=self.memory) if self.kind == "unified" and engine == "cpu" else self


def _mac_share(memory: int) -> int:
    """Of small memories macOS gives the GPU two thirds, of others three quarters (`iogpu.wired_limit_mb` 0)."""
    return memory * 3 // 4 if memory >= 36 * _GIB else memory * 2 // 3


# name: (GB/s, GiB, …), a device for each size
_MACS = {
    "m1": (68, 8, 16),
    "m1-pro": (200, 16, 32),
    "m1-max": (400, 32, 64),
    "m1-ultra": (800, 64, 128),
    "m2": (100, 8, 16, 24),
    "m2-pro": (200, 16, 32),
    "m2-max": (400, 32, 64, 96),
    "m2-ultra": (800, 64, 128, 192),
    "m3": (100, 8, 16, 24),
    "m3-pro": (150, 18, 36),
    "m3-max": (400, 36, 48, 64, 96, 128),
    "m3-ultra": (819, 96, 256, 512),
    "m4": (120, 16, 24, 32),
    "m4-pro": (273, 24, 48, 64),
    "m4-max": (546, 36, 48, 64, 128),
    "m5": (153, 16, 24, 32),
    "m5-pro": (307, 24, 48, 64),
    "m5-max": (614, 36, 48, 64, 128),
}

_CARDS = {
    "rtx-2060": (336, 6),
    "rtx-2080-ti": (616, 11),
    "rtx-3060": (360, 12),
    "rtx-3070": (448, 8),
    "rtx-3080": (760, 10),
    "rtx-3090": (936, 24),
    "rtx-4060": (272, 8),
    "rtx-4060-ti": (288, 8, 16),
    "rtx-4070": (504, 12),
    "rtx-4070-ti-super": (672, 16),
    "rtx-4080": (717, 16),
    "rtx-4090": (1008, 24),
    "rtx-5060-ti": (448, 8, 16),
    "rtx-5070": (672, 12),
    "rtx-5070-ti": (896, 16),
    "rtx-5080": (960, 16),
    "rtx-5090": (1792, 32),
    "rtx-a4000": (448, 16),
    "rtx-a5000": (768, 24),
    "rtx-a6000": (768, 48),
    "rtx-6000-ada": (960, 48),
    "rtx-pro-6000": (1792, 96),
    "t4": (320, 16),
    "l4": (300, 24),
    "l40s": (864, 48),
    "a10": (600, 24),
    "v100": (900, 16, 32),
    "a100": (1555, 40),
    "a100-80": (2039, 80),
    "h100": (3350, 80),
    "h200": (4800, 141),
    "b200": (8000, 180),
    "rx-6800-xt": (512, 16),
    "rx-7600": (288, 8),
    "rx-7800-xt": (624, 16),
    "rx-7900-xt": (800, 20),
    "rx-7900-xtx": (960, 24),
    "rx-9070-xt": (640, 16),
    "mi300x": (5300, 192),
    "arc-a770": (560, 16),
    "arc-b580": (456, 12),
}

_SHARED = {
    "ryzen-ai-max": (256, 64, 128),
    "dgx-spark": (273, 128),
    "jetson-orin": (204, 32, 64),
}


def _rows(table: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, bool, int, float]]:
    """(name, whether there are several sizes, bytes, bytes per second) of each device of a table."""
    for name, (bandwidth, *sizes) in table.items():
        for gib in sizes:
            yield name, len(sizes) > 1, gib * _GIB, bandwidth * 1e9


def _devices() -> Iterator[Device]:
    for name, _, memory, speed in _rows(_MACS):
        yield Device(f"{name}-{memory // _GIB}", "unified", memory, _mac_share(memory), speed, "mlx")
    for name, several, memory, speed in _rows(_CARDS):
        yield Device(f"{name}-{memory // _GIB}" if several else name, "card", memory, memory - _MARGIN, speed)
    for name, several, memory, speed in _rows(_SHARED):
        yield Device(f"{name}-{memory // _GIB}" if several else name, "unified", memory, memory * 3 // 4, speed)


DEVICES = {row.name: row for row in _devices()}

_BYTES = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT])(i?)B?", re.IGNORECASE)


def device(text: str) -> Device:
    """A device by its name, such as ``"m2-pro-16"`` or ``"RTX 4090"``, or a card with so much memory: ``"24G"``.

    A ``cpu-`` in front of bytes (``"cpu-64G"``) makes it a CPU with so much memory; ``"this"`` is this machine.

    Raises
    ------
    UsageError : there is none of this name.
    """
    name = re.sub(r"[\s_]+", "-", text.strip().lower())
    if name in ("this", "cpu"):
        return this_machine()
    host = name.startswith("cpu-")
    if (match := _BYTES.fullmatch(name.removeprefix("cpu-"))) is not None:
        base = 1024 if match[3] else 1000
        memory = int(float(match[1]) * base ** ("KMGT".index(match[2].upper()) + 1))
        if memory <= _MARGIN and not host:
            raise UsageError(f"a card of {printable(text)} has no room for a model: 1 GiB of it is left free")
        given = text.strip()
        if host:
            return Device(given, "host", memory, memory, engine="cpu")
        return Device(given, "card", memory, memory - _MARGIN)
    tries = (name, f"rtx-{name}", f"rx-{name}", name.removeprefix("nvidia-").removeprefix("geforce-"))
    for tried in tries:
        if tried in DEVICES:
            return DEVICES[tried]
    sizes = [row.name for row in DEVICES.values() if row.name.rpartition("-")[0] in tries]
    if sizes:
        raise UsageError(f"there are several {printable(text)}: {', '.join(sizes)}")
    from difflib import get_close_matches

    near = get_close_matches(name, DEVICES, n=3)
    known = f"did you mean {', '.join(near)}?" if near else "give its memory instead, such as 24G"
    raise UsageError(f"the device {printable(text)} is not known; {known}")


def this_machine() -> Device:
    """This machine: its memory, of which what is free now is usable; on a Mac the GPU's share of all of it."""
    memory, free = _system_memory()
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        chip = _sysctl("machdep.cpu.brand_string").lower().replace("apple ", "").replace(" ", "-")
        known = next((row for row in DEVICES.values() if row.name == f"{chip}-{round(memory / _GIB)}"), None)
        share = known.usable if known else _mac_share(memory)
        return Device("this Mac", "unified", memory, share, known.bandwidth if known else 0.0, "mlx")
    return Device("this machine", "host", memory, free, engine="cpu")


def _system_memory() -> tuple[int, int]:
    """(bytes of memory, bytes of it that programs could get now)."""
    if sys.platform == "darwin":
        memory = int(_sysctl("hw.memsize") or 0)
        return memory, memory
    if sys.platform == "win32":
        return _windows_memory()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = memory
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):  # a container's limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["file"])  # pages of files can go
        memory, free = min(memory, limit), min(free, max(0, limit - used))
    return memory, free


def _windows_memory() -> tuple[int, int]:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "_3", "_4", "_5", "_6", "_7")),
        ]

    status = Status(ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return status.total, status.free


def _sysctl(name: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""
