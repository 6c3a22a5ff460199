#!/usr/bin/env python3
"""What looking into a large model costs: time, memory, bytes from a server, against gguf-py's dump.

    python tools/bench/bench_files.py [--rounds 7] [--gigabytes 10] [--tokens 152064]

The model is a sparse file in the temporary folder. Commands are run in turns; CPU time (user and system) says more
than the clock on a busy machine. gguf-dump runs once, it takes long.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import ggufkit


def run(command: list[str]) -> tuple[float, float, float]:
    """(seconds on the clock, of CPU, peak memory in MB)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Handler(BaseHTTPRequestHandler):
    """Serves one file by ranges and counts its bytes."""

    protocol_version = "HTTP/1.1"
    path_of_file = Path()
    sent = requests = 0

    def do_GET(self) -> None:
        lo, hi = map(int, re.findall(r"\d+", self.headers["Range"]))
        size = self.path_of_file.stat().st_size
        hi = min(hi, size - 1)
        with self.path_of_file.open("rb") as file:
            file.seek(lo)
            body = file.read(hi + 1 - lo)
        Handler.sent += len(body)
        Handler.requests += 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {lo}-{hi}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", default="10")
    parser.add_argument("--tokens", default="152064")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "big.gguf")
        make = [sys.executable, Path(__file__).parents[2] / "tests" / "models" / "sparse_gguf.py", path]
        subprocess.run([*make, "--gigabytes", options.gigabytes, "--tokens", options.tokens], check=True)
        python, verb = [sys.executable], [sys.executable, "-m", "ggufkit"]
        commands = {
            "python -c pass": [*python, "-c", "pass"],
            "import click": [*python, "-c", "import click"],
            "ggufkit inspect": [*verb, "inspect", path],
            "ggufkit get": [*verb, "get", path, "general.name"],
        }
        for command in commands.values():
            run(command)
        rounds = [{name: run(command) for name, command in commands.items()} for _ in range(options.rounds)]
        rows = {name: tuple(median(r[name][i] for r in rounds) for i in range(3)) for name in commands}
        rows["gguf-dump"] = run([*python, "-m", "gguf.scripts.gguf_dump", path])
        inspect = rows["ggufkit inspect"]
        print(f"{'':18}{'clock ms':>10}{'CPU ms':>10}{'peak MB':>10}{'CPU / inspect':>16}")
        for name, (clock, cpu, memory) in rows.items():
            print(f"{name:18}{1e3 * clock:10.0f}{1e3 * cpu:10.0f}{memory:10.0f}{cpu / inspect[1]:16.2f}")

        Handler.path_of_file = Path(path)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["no_proxy"] = "*"
        clock, _, _ = run([*verb, "inspect", f"http://127.0.0.1:{server.server_port}/big.gguf"])
        with ggufkit.open(path) as model:
            header = model.data_offset
        print(f"\nfrom a server: header {header} bytes, {Handler.sent} bytes in {Handler.requests} requests")
        print(f"               {Handler.sent / header:.2f} times the header, {1e3 * clock:.0f} ms")
        server.shutdown()


if __name__ == "__main__":
    main()
