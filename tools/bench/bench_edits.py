"""What an edit of a large model costs: time, memory, bytes written; against gguf-py's scripts.

    python tools/bench/bench_edits.py [--rounds 7] [--gigabytes 10] [--tokens 152064] [--dense]

The model is a sparse file in the temporary folder; --dense writes its data out, so that a copy is one. Commands are run
in turns; CPU time (user and system) says more than the clock on a busy machine. gguf-py's run once, they take long, and
gguf-new-metadata, which writes all the data, only with --dense.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import ggufkit

TEMPLATE = "{% for message in messages %}" + "{{ message.content }}" * 150 + "{% endfor %}"


def run(command: list[str]) -> tuple[float, float, float, float]:
    """(ms on the clock, of CPU, peak memory in MB, kB written)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    clock = time.perf_counter() - start
    written = re.search(r"wchar: (\d+)", Path(f"/proc/{process.pid}/io").read_text())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    cpu = usage.ru_utime + usage.ru_stime
    return 1e3 * clock, 1e3 * cpu, usage.ru_maxrss / 1024, int(written[1]) / 1e3 if written else -1


def fill(path: str) -> None:
    """Replace the holes of a sparse model by bytes."""
    with ggufkit.open(path) as model:
        start, size = model.data_offset, model.size
    noise = os.urandom(1 << 20)
    with open(path, "r+b", buffering=0) as file:
        file.seek(start)
        while (left := size - file.tell()) > 0:
            file.write(noise[:left])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", default="10")
    parser.add_argument("--tokens", default="152064")
    parser.add_argument("--dense", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "big.gguf")
        make = [sys.executable, Path(__file__).parents[2] / "tests" / "models" / "sparse_gguf.py", path]
        subprocess.run([*make, "--gigabytes", options.gigabytes, "--tokens", options.tokens], check=True)
        if options.dense:
            fill(path)
        python, verb = [sys.executable], [sys.executable, "-m", "ggufkit"]
        template = os.path.join(folder, "template.jinja")
        Path(template).write_text(TEMPLATE)
        outgrown = [*verb, "set", path, "--from-file", "tokenizer.chat_template", template]
        rows = {
            "outgrown template, a copy": run(outgrown),
            "undo of it, a copy": run([*verb, "undo", path]),
            "with --spare 64K, a copy": run([*verb, "set", path, "--spare", "64K"]),
        }
        commands = {
            "python -c pass": lambda i: [*python, "-c", "pass"],
            "import click": lambda i: [*python, "-c", "import click"],
            "get": lambda i: [*verb, "get", path, "general.name"],
            "set, same size": lambda i: [*verb, "set", path, f"general.file_type={i + 1}"],
            "set, spare room": lambda i: [*verb, "set", path, f"tokenizer.chat_template={TEMPLATE[i:]}"],
            "undo": lambda i: [*verb, "undo", path],
        }
        rounds = [{name: run(command(i)) for name, command in commands.items()} for i in range(options.rounds)]
        rows |= {name: tuple(median(r[name][k] for r in rounds) for k in range(4)) for name in commands}
        set_value = [*python, "-m", "gguf.scripts.gguf_set_metadata", path, "general.file_type", "3", "--force"]
        rows["gguf-set-metadata"] = run(set_value)
        if options.dense:
            copy = [path, os.path.join(folder, "copy.gguf"), "--chat-template-file", template]
            rows["gguf-new-metadata"] = run([*python, "-m", "gguf.scripts.gguf_new_metadata", *copy])
        print(f"{'':28}{'clock ms':>10}{'CPU ms':>10}{'peak MB':>10}{'kB written':>14}")
        for name, (clock, cpu, memory, written) in rows.items():
            print(f"{name:28}{clock:10.0f}{cpu:10.0f}{memory:10.0f}{written:14.1f}")


if __name__ == "__main__":
    main()
