#!/usr/bin/env python3
"""An arm64 machine in a folder, and whether it gives the bytes that this one gives.

    apt-get install qemu-user-static debootstrap
    python tools/verify/arm64/check.py make MACHINE                     # as root; some 600 MB
    python tools/verify/arm64/check.py run MACHINE                      # all jobs: hours
    python tools/verify/arm64/check.py run MACHINE products run:Q8_0 --body i8mm --body dotprod --body plain
    python tools/verify/arm64/check.py run MACHINE encode:Q4_K --mac    # as a Mac sees itself
    python tools/verify/arm64/check.py shell MACHINE -m ggufkit doctor

QEMU is 20 to 50 times slower than the machine; kernels that were compiled are kept in the folder. Timings say nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
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


def python(machine: Path, arguments: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the machine's Python on this checkout."""
    for part in ("ggufkit", "tests", "tools", "fixtures"):
        shutil.copytree(ROOT / part, machine / "project" / part, dirs_exist_ok=True)
    settings = {"PYTHONPATH": "/site:/project", "HOME": "/root", "NUMBA_CACHE_DIR": "", **settings}
    inside = [word for name, value in settings.items() for word in ("-E", f"{name}={value}")]
    command = ["chroot", machine, QEMU, "-cpu", "max", *inside, "/usr/bin/python3", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def compare(machine: Path, jobs: list[str], bodies: list[str], mac: bool) -> int:
    script = "tools/verify/arm64/jobs.py"
    if not jobs:
        jobs = subprocess.run([sys.executable, ROOT / script, "list"], capture_output=True, text=True, check=True)
        jobs = jobs.stdout.split()
    wrong = 0
    for job in jobs:
        here = [sys.executable, ROOT / script, job]
        expected = subprocess.run(here, stdout=subprocess.PIPE, text=True, check=True).stdout
        for body in bodies or [""]:
            settings = {"GGUFKIT_BODIES": f"dot={body}"} if body else {}
            if mac:
                settings |= {"NUMBA_CPU_NAME": "apple-m1", "NUMBA_CPU_FEATURES": ""}
            found = python(machine, [f"/project/{script}", job], settings).stdout
            wrong += found != expected
            verdict = "the same" if found == expected else f"DIFFERS: {found.strip()!r}"
            print(f"{expected.strip()}  {body}  {verdict}", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "shell"])
    parser.add_argument("machine", type=Path)
    parser.add_argument("--body", action="append", default=[], help="force this body of products")
    parser.add_argument("--mac", action="store_true", help="with an M1's name and no features from LLVM")
    options, rest = parser.parse_known_args()
    if options.what == "make":
        make(options.machine)
    elif options.what == "shell":
        print(python(options.machine, rest, {}).stdout, end="")
    else:
        sys.exit(1 if compare(options.machine, rest, options.body, options.mac) else 0)


if __name__ == "__main__":
    main()
