#!/usr/bin/env python3
"""An arm64 machine in a folder, and whether it gives the bytes that this one gives.

    apt-get install qemu-user-static debootstrap
    python tools/verify/arm64/check.py make MACHINE                     # as root; some 600 MB
    python tools/verify/arm64/check.py run MACHINE                      # all jobs: some minutes
    python tools/verify/arm64/check.py run MACHINE products run:Q8_0 --body i8mm --body dotprod --body plain
    python tools/verify/arm64/check.py run MACHINE encode:Q4_K --cpu apple-m1
    python tools/verify/arm64/check.py shell MACHINE -m ggufkit doctor

QEMU is 20 to 50 times slower than the machine. So kernels are compiled here, for the emulated CPU (see `cross.py`);
they are kept in the folder. What `shell` runs asks the machine for its CPU, and compiles there. Timings say nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
QEMU = Path("/usr/bin/qemu-aarch64-static")
PACKAGES = (
    *("numpy", "numba", "llvmlite", "ml-dtypes", "tokenizers", "sentencepiece", "click", "rich", "jinja2"),
    *(
        "markupsafe",
        "markdown-it-py",
        "mdurl",
        "pygments",
        "huggingface-hub",
        "gguf",
        "pyyaml",
        "tqdm",
        "requests",
        "pytest",
        "iniconfig",
        "packaging",
        "pluggy",
    ),
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def make(machine: Path) -> None:
    """Debian's Python and the wheels of what ggufkit needs."""
    machine.mkdir(parents=True, exist_ok=True)
    debootstrap = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,libgomp1"]
    subprocess.run([*debootstrap, "bookworm", machine, "http://deb.debian.org/debian"], check=True)
    for package in sorted(machine.glob("var/cache/apt/archives/*.deb")):
        subprocess.run(["dpkg", "-x", package, machine], check=True)
    shutil.copy(QEMU, machine / "usr/bin")
    for name in ("null", "urandom"):
        device = machine / "dev" / name
        if not device.exists():
            number = os.makedev(1, {"null": 3, "urandom": 9}[name])
            os.mknod(device, 0o666 | 0o020000, number)
    wheels = machine / "wheels"
    download = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--no-deps", "-d", wheels]
    download += ["--python-version", "3.11", "--implementation", "cp"]
    for platform in PLATFORMS:
        download += ["--platform", platform]
    subprocess.run([*download, *PACKAGES], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(machine / "site")


FEATURES = "+neon,+fp-armv8,+fullfp16,+dotprod,+i8mm,+bf16"  # of those that QEMU has, what kernels may ask for


def renew(machine: Path) -> None:
    """Put this checkout into the machine, where a run may be under way."""
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("ggufkit", "tests", "tools", "fixtures"):
        shutil.copytree(ROOT / part, machine / "project" / part, ignore=ignored, dirs_exist_ok=True)


def python(machine: Path, arguments: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
    """The machine's Python; QEMU hands on the settings of its own process."""
    settings = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/site:/project", "HOME": "/root", **settings}
    command = [shutil.which("chroot") or "chroot", machine, QEMU, "-cpu", "max", "/usr/bin/python3", *arguments]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)


def target(cpu: str) -> dict[str, str]:
    """A CPU by its name; what the machine would find out itself is not asked, as kernels are compiled here."""
    return {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": FEATURES if cpu == "generic" else ""}


def compare(machine: Path, jobs: list[str], bodies: list[str], cpu: str, kernels: Path) -> int:
    """Do the jobs here and there; gives how many differ."""
    here, there = ROOT / "tools/verify/arm64", "/project/tools/verify/arm64/jobs.py"
    if not jobs:
        jobs = subprocess.run([sys.executable, here / "jobs.py", "list"], capture_output=True, text=True, check=True)
        jobs = jobs.stdout.split()
    note = [sys.executable, here / "cross.py", "note", kernels, *jobs]
    expected = subprocess.run(note, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    wrong = 0
    for body in bodies or [""]:
        settings = target(cpu) | ({"GGUFKIT_BODIES": body if "=" in body else f"dot={body}"} if body else {})
        crossing = [sys.executable, here / "cross.py", "compile", kernels, *jobs]
        cache = {"XDG_CACHE_HOME": str(machine / "root/.cache"), "NUMBA_DISABLE_INTEL_SVML": "1"}
        subprocess.run(crossing, env=dict(os.environ) | settings | cache, check=True)
        process = python(machine, [there, *jobs], settings)
        for line in expected:
            found = (process.stdout.readline() if process.stdout else "").rstrip("\n")
            wrong += found != line
            verdict = "the same" if found == line else f"DIFFERS: {found!r}"
            print(f"{cpu} {body}  {line}  {verdict}", flush=True)
        process.wait()
    print(f"{wrong} of {len(expected) * len(bodies or [''])} differ")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "shell"])
    parser.add_argument("machine", type=Path)
    parser.add_argument("--body", action="append", default=[], help="of products, or dot=…,lookup=…")
    parser.add_argument("--cpu", default="generic", help="compile for this one, whose instructions QEMU must have")
    options, rest = parser.parse_known_args()
    if options.what == "make":
        make(options.machine)
        return
    renew(options.machine)
    if options.what == "shell":
        process = python(options.machine, rest, {})
        print(process.communicate()[0], end="")
        sys.exit(process.returncode)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(1 if compare(options.machine, rest, options.body, options.cpu, Path(folder) / "kernels") else 0)


if __name__ == "__main__":
    main()
