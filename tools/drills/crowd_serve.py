#!/usr/bin/env python3
"""A server among thousands of connections that mean it no good; whoever means it well must be answered all the same.

    python tools/drills/crowd_serve.py model.gguf --connections 5000 --wait

A crowd, a fifth of each kind: says nothing; sends half a head; sends half a body; asks for a long stream and reads
nothing of it; sends request after request without waiting. Checked while it stands there, and after it has gone: an
honest client gets its answers within a second (or is told when to come back, where all slots are taken); the server
keeps to its limits of memory and descriptors; in the end it has no more of them than after the crowd before. With
``--wait`` the crowd does not go: the server has to end all of its connections by itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

STREAM = {"prompt": "x", "n_predict": 100_000, "ignore_eos": True, "stream": True, "n_probs": 10}
HEAD = "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
MOST = 512 << 20  # bytes that a crowd may add to a server's memory
DESCRIPTORS = 1024 + 512 + 256 + 64  # that stay, that are turned away, and that are files
GROWTH = 32 << 20  # and that a server may have more after a crowd than after the one before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=10.0, help="that each crowd stands there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soon", type=float, default=1.0, help="seconds that an honest client may have to wait")
    parser.add_argument("--wait", action="store_true", help="until the server has ended the last crowd by itself")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "ggufkit",
        "serve",
        options.model,
        "--port",
        str(port),
        "-c",
        "512",
        "--cache-ram",
        "16M",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if f":{port}" in line:  # it listens
                break
        said: list[str] = []
        threading.Thread(target=lambda: said.extend(server.stderr), daemon=True).start()
        for _ in range(3):
            ask(port, "POST", "/completion", {"prompt": "x", "n_predict": 2})
        problems = drill(
            server.pid, port, options.connections, options.seconds, options.rounds, options.soon, options.wait
        )
        if server.poll() is not None:
            problems.append(f"the server has ended with {server.returncode}")
        if said:
            problems.append("the server complains: " + "".join(said[:20]))
    finally:
        server.terminate()
        server.wait(60)
    for problem in problems:
        print(problem)
    return int(bool(problems))


def drill(server: int, port: int, connections: int, seconds: float, rounds: int, soon: float, wait: bool) -> list[str]:
    """What went wrong with the server of this process and port."""
    connections = min(connections, descriptors())
    problems: list[str] = []
    before = resources(server)
    print(f"before: {shown(before)}")
    after = []
    for number in range(rounds):
        honest = Honest(port, soon)
        start = time.monotonic()
        crowd = gather(port, connections)
        gathered = time.monotonic() - start
        time.sleep(seconds)
        during = resources(server)
        if wait and number == rounds - 1:
            problems += outlast(server, before[1])
        for one in crowd:
            one.close()
        honest.stop()
        time.sleep(2)
        after.append(resources(server))
        print(f"{len(crowd)} connections in {gathered:.1f} s: {shown(during)}; after it {shown(after[-1])}; {honest}")
        problems += honest.problems
        if during[0] - before[0] > MOST:
            problems.append(f"the crowd takes {during[0] - before[0] >> 20} MB, more than {MOST >> 20}")
        if during[1] - before[1] > DESCRIPTORS:
            problems.append(f"the crowd takes {during[1] - before[1]} descriptors, more than {DESCRIPTORS}")
    if after[-1][1] > before[1] + 3:
        problems.append(f"{after[-1][1] - before[1]} descriptors are left open")
    if rounds > 2 and after[-1][0] - after[-2][0] > GROWTH:
        problems.append("memory is not given back")
    if ask(port, "POST", "/completion", {"prompt": "x", "n_predict": 2})[0] != 200:
        problems.append("it does not answer any more")
    return problems


def descriptors() -> int:
    """How many connections this process may have, after its limit is raised."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = 10240 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - 64


def gather(port: int, count: int) -> list[socket.socket]:
    """Connections of all kinds."""
    stream = json.dumps(STREAM)
    lines = (
        "",
        "GET /health HTTP/1.1\r\nHost: local",
        HEAD.format(method="POST", path="/v1/chat/completions", length=1 << 20) + "{" + " " * 30_000,
        HEAD.format(method="POST", path="/completion", length=len(stream)) + stream,
        HEAD.format(method="GET", path="/v1/models", length=0) * 20,
    )
    crowd = []
    for number in range(count):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(5)
        with suppress(OSError):  # turned away
            one.connect(("127.0.0.1", port))
            one.setblocking(False)
            one.send(lines[number % len(lines)].encode())
        crowd.append(one)
    return crowd


def outlast(server: int, before: int, seconds: float = 150) -> list[str]:
    """Whether the server ends all of them by itself; nothing is read meanwhile, and nothing closed."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        time.sleep(2)
        left = resources(server)[1] - before
        if left <= 3:
            print(f"all are ended after {time.monotonic() - start:.0f} s")
            return []
    return [f"{left} connections stand there still after {seconds:.0f} s"]


def alive(one: socket.socket) -> bool:
    """Whether the other side has not ended a connection."""
    if hasattr(socket, "TCP_INFO"):
        return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1  # established
    return one.fileno() >= 0


class Honest:
    """A client that asks again and again, and notes how long it takes."""

    def __init__(self, port: int, soon: float):
        self.port, self.soon, self.problems = port, soon, []
        self._slowest, self._counts = 0.0, {}
        self._going = True
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while self._going:
            for method, path, body in (
                ("GET", "/health", None),
                ("POST", "/tokenize", {"content": "x"}),
                ("POST", "/completion", {"prompt": "x", "n_predict": 1}),
            ):
                start = time.monotonic()
                try:
                    status, later = ask(self.port, method, path, body)
                except OSError as e:
                    status, later = type(e).__name__, None
                took = time.monotonic() - start
                key = f"{path} {status}"
                self._counts[key] = self._counts.get(key, 0) + 1
                self._slowest = max(self._slowest, took)
                if status not in (200, 429, 503) or (status != 200 and not later):
                    self.problems.append(f"{key} after {took:.2f} s")
                if took > self.soon and path != "/completion":
                    self.problems.append(f"{path} took {took:.2f} s")
            time.sleep(0.05)

    def stop(self) -> None:
        self._going = False
        self._thread.join()

    def __str__(self) -> str:
        return f"honest: {self._counts}, the slowest {self._slowest:.2f} s"


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, str | None]:
    """(status, when to come back)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Retry-After")
    finally:
        connection.close()


def resources(process: int) -> tuple[int, int]:
    """Bytes of memory of a process that are its own, and its descriptors; zeros where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        memory = next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
        return memory, len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0, 0


def shown(found: tuple[int, int]) -> str:
    return f"{found[0] >> 20} MB, {found[1]} descriptors"


if __name__ == "__main__":
    sys.exit(main())
