"""Files on a server: how much is transferred, redirects, tokens, and what a server may do wrong."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import ggufkit
from ggufkit.errors import FileError, UsageError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.copy import write_shards
from ggufkit.gguf.writer import Writer
from ggufkit.storage import http as remote
from ggufkit.storage.http import RemoteSource, hub_address

F32 = FORMATS["F32"]


class Handler(BaseHTTPRequestHandler):
    """Serves the files of `server.folder` by ranges; `server.rules` answers some paths otherwise."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        if (rule := server.rules.get(self.path)) is not None:
            rule(self)
        else:
            self.serve(server.folder / self.path.lstrip("/").split("?")[0])

    def serve(self, file):
        if not file.exists():
            return self.answer(404)
        size = file.stat().st_size
        lo, hi = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if lo >= size:
            return self.answer(416, {"Content-Range": f"bytes */{size}"})
        hi = min(hi, size - 1)
        with file.open("rb") as f:
            f.seek(lo)
            body = f.read(hi + 1 - lo)
        self.server.sent += len(body)
        headers = {"Content-Range": f"bytes {lo}-{hi}/{size}", "ETag": f'"{file.stat().st_mtime_ns}"'}
        return self.answer(206, headers, body)

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tmp_path):
    servers = []

    def serve():
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.folder, server.rules, server.requests, server.sent = tmp_path, {}, [], 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a reader that hangs up
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def model(tmp_path):
    """A header of about 1 MB and 100 MB of data, a hole but for the first rows."""
    path = tmp_path / "model.gguf"
    metadata = {"general.architecture": "llama", "tokens": [f"token {i}" for i in range(60_000)]}
    with Writer(path, metadata, [("w", (25_000, 1000), F32)]) as out:
        out.write("w", 0, np.arange(2000, dtype="<f4").reshape(2, 1000).view("u1"))
        out.wrote("w", out.layout.infos["w"].nbytes)
    return path


def test_header_alone_is_fetched(server, model):
    with ggufkit.open(f"{server.url}/model.gguf") as m:
        header = m.data_offset
        assert m.metadata["tokens"][-1] == "token 59999"
        assert m.size == model.stat().st_size
        assert header < server.sent < 2 * header
        before = server.sent
        assert m.tensors["w"].floats(1, 2)[0, :3].tolist() == [1000, 1001, 1002]
        assert server.sent - before == 4000
        assert len({headers["Host"] for _, headers in server.requests}) == 1


def test_small_file_takes_one_request(server, tmp_path):
    with Writer(tmp_path / "small.gguf", {"k": 1}, []):
        pass
    with ggufkit.open(f"{server.url}/small.gguf") as m:
        assert m.metadata["k"] == 1
    assert len(server.requests) == 1


def test_threads_read_at_the_same_time(server, model):
    from concurrent.futures import ThreadPoolExecutor

    with ggufkit.open(f"{server.url}/model.gguf") as m, ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda i: m.tensors["w"].floats(i % 2, i % 2 + 1)[0, 0], range(40)))
    assert rows == [0, 1000] * 20


def test_split_model_is_opened_by_any_file(server, model):
    with ggufkit.open(model) as m:
        paths = write_shards(m, model.with_name("part"), max_tensors=1, no_tensor_first_split=True)
    assert len(paths) == 2
    with ggufkit.open(f"{server.url}/part-00002-of-00002.gguf?download=true") as m:
        assert m.metadata["tokens"][0] == "token 0"
        assert m.tensors["w"].floats(1, 2)[0, 0] == 1000
    with ggufkit.open(f"{server.url}/part-00002-of-00002.gguf", shards=False) as m:
        assert "tokens" not in m.metadata
    model.with_name("part-00001-of-00002.gguf").unlink()
    with pytest.raises(FileError, match=r"part-00001-of-00002[.]gguf: does not exist.*shards=False"):
        ggufkit.open(f"{server.url}/part-00002-of-00002.gguf")


def test_gguf_inside_a_file_on_a_server(server, tmp_path):
    with Writer(tmp_path / "m.gguf", {"k": 7}, []):
        pass
    (tmp_path / "archive.bin").write_bytes(bytes(100_000) + (tmp_path / "m.gguf").read_bytes())
    with ggufkit.open(f"{server.url}/archive.bin", offset=100_000) as m:
        assert m.metadata["k"] == 7


def test_redirect_is_followed_once_and_its_end_remembered(serve, model):
    hub, storage = serve(), serve()
    hub.rules["/model.gguf"] = lambda h: h.answer(302, {"Location": f"{storage.url}/model.gguf?signed=1"})
    with ggufkit.open(f"{hub.url}/model.gguf") as m:
        assert m.metadata["tokens"][0] == "token 0"
    assert len(hub.requests) == 1
    assert len(storage.requests) > 2


def test_expired_redirect_is_asked_for_again(serve, model):
    hub, storage = serve(), serve()
    signed = iter(range(100))
    hub.rules["/model.gguf"] = lambda h: h.answer(307, {"Location": f"{storage.url}/model.gguf?{next(signed)}"})
    with ggufkit.open(f"{hub.url}/model.gguf") as m:
        storage.rules["/model.gguf?0"] = lambda h: h.answer(403)
        assert m.tensors["w"].floats(1, 2)[0, 0] == 1000
    assert len(hub.requests) == 2


def test_token_goes_to_the_hub_alone(serve, model, monkeypatch):
    hub, storage = serve(), serve()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    path = "/owner/repo/resolve/main/model.gguf"
    hub.rules[path] = lambda h: h.answer(302, {"Location": f"{storage.url}/model.gguf"})
    with ggufkit.open("hf://owner/repo/model.gguf"):
        pass
    assert [headers.get("Authorization") for _, headers in hub.requests] == ["Bearer secret"]
    assert {headers.get("Authorization") for _, headers in storage.requests} == {None}


def test_hub_address_is_resolved(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_address("hf://a/b/c d.gguf") == "https://huggingface.co/a/b/resolve/main/c%20d.gguf"
    assert hub_address("hf://a/b@v1.0/q/c.gguf") == "https://huggingface.co/a/b/resolve/v1.0/q/c.gguf"
    with pytest.raises(UsageError, match="hf://owner/repo/file"):
        hub_address("hf://a/b")


def test_passing_faults_are_tried_again(server, model):
    faults = iter([503, 429, 503])

    def flaky(handler):
        status = next(faults, None)
        if status:
            handler.answer(status, {"Retry-After": "0"})
        else:
            handler.serve(model)

    server.rules["/flaky.gguf"] = flaky
    with ggufkit.open(f"{server.url}/flaky.gguf") as m:
        assert m.tensors["w"].rows == 25_000


def cut_short(handler):
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 0-65535/100000")
    handler.send_header("Content-Length", "65536")
    handler.end_headers()
    handler.wfile.write(b"GGUF")
    handler.close_connection = True


WRONG = {
    "no ranges": (lambda h: h.answer(200, {}, b"GGUF" * 100), "does not serve parts of files"),
    "missing": (lambda h: h.answer(404), "does not exist .HTTP 404"),
    "gated": (lambda h: h.answer(401, {"X-Error-Message": "Access to \x1b[2Jmodel is restricted"}), "set HF_TOKEN"),
    "broken": (lambda h: h.answer(500), "HTTP 500 Internal Server Error, 4 times"),
    "endless redirect": (lambda h: h.answer(302, {"Location": "/x.gguf"}), "more than 10 redirects"),
    "other scheme": (lambda h: h.answer(302, {"Location": "file:///etc/passwd"}), "redirects from http to file"),
    "nowhere": (lambda h: h.answer(302), "without the address"),
    "no content range": (lambda h: h.answer(206, {}, b"GGUF"), "does not say which bytes"),
    "other bytes": (lambda h: h.answer(206, {"Content-Range": "bytes 5-8/100"}, b"GGUF"), "does not say which bytes"),
    "cut short": (cut_short, "IncompleteRead.*4 times"),
}


@pytest.mark.parametrize("what", WRONG)
def test_server_fault_is_one_clear_line(server, what):
    rule, words = WRONG[what]
    server.rules["/x.gguf"] = rule
    with pytest.raises(FileError, match=words) as caught:
        RemoteSource(f"{server.url}/x.gguf")
    assert str(caught.value).isprintable()


def test_address_that_answers_nothing_is_refused():
    with pytest.raises(FileError, match="cannot read http"):
        ggufkit.open("http://127.0.0.1:9/model.gguf")
    with pytest.raises(FileError, match="no host"):
        ggufkit.open("http:///model.gguf")


def test_file_that_changes_meanwhile_is_noticed(server, model):
    with ggufkit.open(f"{server.url}/model.gguf") as m:
        model.touch()
        with pytest.raises(FileError, match="changed on the server"):
            m.tensors["w"].floats(0, 1)


def test_empty_file_is_no_gguf(server, tmp_path):
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ggufkit.GgufkitError, match="it is empty"):
        ggufkit.open(f"{server.url}/empty.gguf")
