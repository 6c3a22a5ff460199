"""The bundled model behind a server, for tests that ask it as clients do.

with serving(model, slots=True) as url: …
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.serve.engine import Engine, ModelPool
from ggufkit.serve.server import Server
from ggufkit.serve.settings import Settings

__all__ = ["TEMPLATE", "Client", "chat_model", "serving"]

# ChatML with tools, the way Hermes and Qwen write it.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>\\n' + (c.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat_model(fixtures: Path, folder: Path, **metadata: Any) -> Path:
    """The bundled model with a chat template, as a file in `folder`."""
    plain = convert(fixtures / "pylib-llama", folder / "plain.gguf", "Q8_0")
    path = folder / "chat.gguf"
    with ggufkit.open(plain) as source:
        fields = {**source.fields, "tokenizer.chat_template": TEMPLATE, **metadata}
        tensors = [(name, tensor.shape, tensor.format) for name, tensor in source.tensors.items()]
        with ggufkit.Writer(path, fields, tensors) as out:
            for name, tensor in source.tensors.items():
                out.write(name, 0, tensor.read(0, tensor.rows))
    return path


@contextmanager
def serving(
    model: Path,
    engine: dict[str, Any] | None = None,
    backend: str = "cpu",
    lora: Sequence[tuple[Path, float]] = (),
    mmproj: Path | None = None,
    **settings: Any,
) -> Iterator[str]:
    """A server in a thread of this process; its address."""

    def start(path: Path) -> Engine:
        return Engine(
            partial(ggufkit.load, path, backend=backend, threads=2, lora=lora, mmproj=mmproj), **(engine or {})
        )

    pool = ModelPool({"tiny": model}, start, lambda path: 0)
    with pool.lease("tiny"):
        pass
    server = Server(pool, Settings(port=0, **settings))
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    ready.wait(10)
    try:
        yield server.url
    finally:
        server.stop()
        thread.join(20)
        pool.close()


class Client:
    """Asks without any library: what is on the wire."""

    def __init__(self, url: str):
        self.host, _, port = url.removeprefix("http://").rpartition(":")
        self.port = int(port)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body)"""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of an answer that is no error."""
        status, _, data = self.ask("POST", path, body)
        assert status == 200, data
        return json.loads(data)

    def get(self, path: str) -> Any:
        """The JSON of a page."""
        status, _, data = self.ask("GET", path)
        assert status == 200, data
        return json.loads(data)

    def fail(self, path: str, **body: Any) -> tuple[int, Any]:
        """(status, JSON) of an answer that is an error."""
        status, _, data = self.ask("POST", path, body)
        assert status >= 400, data
        return status, json.loads(data)

    def events(self, path: str, **body: Any) -> list[tuple[str | None, Any]]:
        """(event, data) of a stream."""
        status, headers, data = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, data
        assert headers["content-type"].startswith("text/event-stream")
        found = []
        for block in data.decode().strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if "data" in lines:
                text = lines["data"]
                found.append((lines.get("event"), text if text == "[DONE]" else json.loads(text)))
        return found
