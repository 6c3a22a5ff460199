"""Attacks on the server: bounded, answered, and nothing leaks."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from drills.crowd_serve import alive
from served import Client, chat_model, serving

from ggufkit.errors import UsageError
from ggufkit.serve.security import require_safe
from ggufkit.serve.settings import Settings

USER = [{"role": "user", "content": "def main("}]
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return chat_model(fixtures, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(model):
    limits = {"body": 1 << 16, "seconds": 0.5, "connections": 40, "origins": ("https://good.example",)}
    with serving(model, {"context": 512, "slots": 2, "queue": 1}, hosts=("models.lan",), **limits) as url:
        client = Client(url)
        client.post("/v1/chat/completions", messages=USER, max_tokens=2)  # its kernels are compiled now
        yield client


@pytest.fixture(scope="module")
def guarded(model):
    with serving(model, {"context": 512}, keys=("another-key", KEY), slots=True, metrics=True) as url:
        yield Client(url)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:99", 200),
        ("[::1]:8080", 200),
        ("models.lan:80", 200),
        ("chat.localhost", 200),
    ],
)
def test_only_its_own_names_are_answered(client, host, status):
    for path in ("/v1/models", "/", "/health"):
        assert client.ask("GET", path, headers={"Host": host})[0] == status


def test_pages_from_elsewhere_get_nothing(client):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://good.example.evil"):
        status, headers, _ = client.ask("POST", "/v1/chat/completions", {"messages": USER}, {"Origin": origin})
        assert status == 403
        assert "access-control-allow-origin" not in headers
        assert client.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": origin})[0] == 403
    good = {"Origin": "https://good.example"}
    status, headers, _ = client.ask("GET", "/v1/models", headers=good)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://good.example")
    assert "access-control-allow-credentials" not in headers
    status, headers, _ = client.ask("OPTIONS", "/v1/chat/completions", headers=good)
    assert status == 204
    assert "authorization" in headers["access-control-allow-headers"]
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.ask("GET", "/v1/models", headers=own)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer  {KEY}"}, 200),
        ({"X-Api-Key": "another-key"}, 200),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"Authorization": KEY}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"X-Api-Key": "ä" * 9}, 401),
    ],
)
def test_keys(guarded, headers, status):
    sent = {name: value.encode("utf-8").decode("latin-1") for name, value in headers.items()}
    for path in ("/v1/models", "/api/tags", "/slots", "/metrics"):
        assert guarded.ask("GET", path, headers=sent)[0] == status
    assert guarded.ask("GET", "/health", headers=sent)[0] == 200


def test_a_refusal_has_the_shape_of_its_dialect(guarded):
    assert json.loads(guarded.ask("POST", "/v1/chat/completions", {})[2])["error"]["code"] == "invalid_api_key"
    assert json.loads(guarded.ask("POST", "/v1/messages", {})[2])["error"]["type"] == "authentication_error"
    assert isinstance(json.loads(guarded.ask("POST", "/api/chat", {})[2])["error"], str)


def test_metrics_and_slots_are_shown_where_asked_for(client, guarded):
    assert client.ask("GET", "/metrics")[0] == client.ask("GET", "/slots")[0] == 403
    key = {"Authorization": f"Bearer {KEY}"}
    text = guarded.ask("GET", "/metrics", headers=key)[2].decode()
    assert 'ggufkit_requests_total{model="tiny"} ' in text
    assert len(json.loads(guarded.ask("GET", "/slots", headers=key)[2])) == 4


def test_other_machines_need_a_key():
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(UsageError, match="no key"):
            require_safe(Settings(host=host))
        require_safe(Settings(host=host, keys=(KEY,)))
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        require_safe(Settings(host=host))
    with pytest.raises(UsageError, match="fewer than 8"):
        require_safe(Settings(keys=("short",)))


def nested(depth: int) -> dict:
    """A schema in a schema in …"""
    schema: dict = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


# 2^24 ways to put it together.
BOMB = {"allOf": [{"anyOf": [{"properties": {f"{name}{i}": {"type": "integer"}}} for name in "ab"]} for i in range(24)]}
BODIES = {
    "not JSON": (b"{", 400, "not JSON"),
    "no object": (b"[1]", 400, "object"),
    "deep": (b"[" * 60000, 400, "deep"),
    "deep tools": (
        json.dumps({"messages": USER, "tools": [{"function": {"name": "f", "parameters": nested(300)}}]}).encode(),
        400,
        "deep",
    ),
    "NaN": (b'{"temperature": NaN}', 400, "NaN"),
    "a number of 5,000 digits": (b'{"seed": 1' + b"0" * 5000 + b"}", 400, "not JSON"),
    "bytes that are no UTF-8": (b'{"model": "\xff\xfe"}', 400, "not JSON"),
    "too large": (b" " * 70000, 413, "bytes"),
    "half a character": (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}', 200, ""),
    "no messages": (b"{}", 400, "messages"),
    "an image": (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}',
        400,
        "messages[0].content[0].image_url.url",
    ),
    "temperature": (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400, "temperature"),
    "n": (b'{"messages": [{"role": "user", "content": "x"}], "n": 1000000}', 400, "n is"),
    "stops": (
        b'{"messages": [{"role": "user", "content": "x"}], "stop": ' + json.dumps(["x"] * 99).encode() + b"}",
        400,
        "stop",
    ),
    "top_logprobs": (
        b'{"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 999}',
        400,
        "top_logprobs",
    ),
    "a schema bomb": (
        json.dumps({"messages": USER, "response_format": {"type": "json_object", "schema": BOMB}}).encode(),
        400,
        "schema",
    ),
    "a grammar bomb": (
        json.dumps({"messages": USER, "grammar": "root ::= " + "(" * 9000 + "[a]" + ")" * 9000}).encode(),
        400,
        "parentheses",
    ),
    "a template's variables": (
        json.dumps({"messages": USER, "max_tokens": 1, "chat_template_kwargs": {"messages": "x"}}).encode(),
        200,
        "",
    ),
}


def chat(**fields) -> bytes:
    return json.dumps({"messages": USER, "max_tokens": 2, **fields}).encode()


BODIES |= {
    "a number beyond all floats": (chat(max_tokens=10**4000), 400, "max_tokens"),
    "a seed beyond all floats": (chat(seed=10**4000), 400, "seed"),
    "an infinite bias": (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": 1e999}}', 400, "bias"),
    "a bias for a digit that is none": (chat(logit_bias={"\u00b2": 1}), 200, ""),
    "a bias for two signs": (chat(logit_bias={"--5": 1}), 200, ""),
    "a bias for a long text": (chat(logit_bias=[["a" * 20000, 1]]), 400, "characters"),
    "half a character in a regular expression": (chat(regex="\ud800+"), 400, "half a character"),
    "half a character in a grammar": (chat(grammar='root ::= "\ud800"'), 400, "half a character"),
    "half a character in a schema": (chat(json_schema={"const": "\ud800"}), 400, "schema"),
    "many values": (b'{"messages": [' + b"[]," * 21000 + b"1]}", 400, "messages"),
    "more text than the context holds": (chat(messages=[{"role": "user", "content": "x" * 60000}]), 400, "context"),
    "a million characters": (chat(regex="a{1000000000}"), 400, "regular expression"),
    "a slow grammar": (chat(grammar='root ::= a\na ::= a a | [a-z ]* | ""', max_tokens=400), 400, "grammar"),
    "a schema of itself": (chat(json_schema={"$ref": "#"}), 400, "schema"),
    "a tool that looks like a grammar": (
        chat(tools=[{"type": "function", "function": {"name": 'a"/\n %json {} |'}}], tool_choice="required"),
        200,
        "",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(client, name):
    body, status, words = BODIES[name]
    start = time.monotonic()
    found, _, data = client.ask("POST", "/v1/chat/completions", body)
    assert (found, words in data.decode()) == (status, True), data[:300]
    assert time.monotonic() - start < 20
    assert len(data) < 5000


def test_a_body_without_a_length_is_bounded(client):
    connection = http.client.HTTPConnection(client.host, client.port, timeout=20)
    parts = (b"x" * 5000 for _ in range(100))
    try:
        connection.request("POST", "/v1/chat/completions", parts, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was closed while we were still sending: as good
    finally:
        connection.close()
    with socket.create_connection((client.host, client.port)) as liar:
        liar.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n"
        )
        liar.settimeout(10)
        assert b"413" in liar.recv(100)


@pytest.mark.parametrize(
    "request_",
    [
        b"Content-Length: 15\r\nContent-Length: 2\r\n\r\n" + b'{"content":"x"}',
        b"Transfer-Encoding: xchunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length : 1\r\n\r\n1",
        b"Host: evil.example\r\nContent-Length: 1\r\n\r\n1",
        b"X: a\0b\r\nContent-Length: 1\r\n\r\n1",
        b"X: " + b"a" * (1 << 20) + b"\r\n\r\n",
    ],
)
def test_requests_that_may_be_read_in_two_ways_are_refused(client, request_):
    assert b" 400 " in raw(client, b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + request_)[:20]


def test_requests_after_each_other_and_in_one_another(client):
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    answers = raw(client, (one + b"\r\n") * 50 + one + b"Connection: close\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 OK") == 51
    # The chunks count and no length beside them, so what follows them is a request of its own.
    body = b'Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"content":"x"}\r\n0\r\n\r\n'
    smuggled = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + body + one + b"Connection: close\r\n\r\n"
    answers = raw(client, smuggled)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b'{"tokens"' in answers


def raw(client: Client, data: bytes) -> bytes:
    """All that comes back."""
    found = b""
    with socket.create_connection((client.host, client.port), timeout=10) as one, contextlib.suppress(ConnectionError):
        one.sendall(data)
        while part := one.recv(1 << 16):
            found += part
    return found


def test_slow_clients_are_not_waited_for(client):
    with socket.create_connection((client.host, client.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        slow.settimeout(10)
        assert b"408" in slow.recv(100)


LONG = json.dumps({"prompt": "x", "n_predict": 400, "ignore_eos": True, "stream": True, "n_probs": 100})
WAITED_FOR = {
    "a head": b"GET /health HTTP/1.1\r\nHost: ",
    "another request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health",
    "a body": b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
    "a reader": f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LONG)}\r\n\r\n{LONG}".encode(),
}


def test_nobody_is_waited_for_too_long(model, monkeypatch):
    for name in ("HEAD_SECONDS", "IDLE_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(f"ggufkit.serve.connections.{name}", 0.3)
    with serving(model, {"context": 512}, seconds=0.3) as url:
        client = Client(url)
        crowd = {}
        for what, sent in WAITED_FOR.items():
            crowd[what] = one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.connect((client.host, client.port))
            one.sendall(sent)
        deadline = time.monotonic() + 20
        while left := [what for what, one in crowd.items() if alive(one)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        for one in crowd.values():
            one.close()
        assert client.ask("GET", "/health")[0] == 200


def test_a_crowd_that_waits_keeps_nobody_out(model):
    with serving(model, {"context": 64}, connections=20) as url:
        client = Client(url)
        crowd = [socket.create_connection((client.host, client.port)) for _ in range(200)]
        for one in crowd[:100]:
            with contextlib.suppress(OSError):
                one.sendall(WAITED_FOR["a body"])
        deadline = time.monotonic() + 10
        while (found := client.ask("POST", "/completion", {"prompt": "x", "n_predict": 1}))[0] != 200:
            assert (found[0], found[1]["retry-after"]) == (503, "1")
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert sum(map(alive, crowd)) <= 40
        for one in crowd:
            one.close()


@pytest.mark.slow
def test_thousands_of_connections(model):
    tool = Path(__file__).parents[1] / "tools" / "drills" / "crowd_serve.py"
    how = ("--connections", "2000", "--seconds", "0.5", "--rounds", "1", "--soon", "10")
    done = subprocess.run([sys.executable, str(tool), str(model), *how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bodies_share_their_room(model):
    big = b"x" * 300_000
    with serving(model, {"context": 64}, body=1 << 20, bodies=1 << 20) as url:
        client = Client(url)
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        crowd = [socket.create_connection((client.host, client.port)) for _ in range(6)]
        for one in crowd:
            one.sendall(head + big)
        crowd[0].settimeout(10)
        answer = crowd[0].recv(2000)  # the first has to go
        assert b" 503 " in answer
        assert b"retry-after: 1" in answer.lower()
        assert client.post("/tokenize", content="x")["tokens"]
        assert client.post("/tokenize", content="a " * 200_000)["tokens"]
        for one in crowd:
            one.close()


def test_a_full_queue_says_when_to_come_back(client, monkeypatch):
    from ggufkit.serve.engine.engine import Engine

    once = Engine._pass

    def slowly(engine):  # so that those who are answered are not done before the fourth asks
        time.sleep(0.01)
        once(engine)

    monkeypatch.setattr(Engine, "_pass", slowly)
    long = {"prompt": "x", "n_predict": 400, "ignore_eos": True, "stream": True}
    held = []
    for _ in range(3):  # two slots, one waits
        connection = http.client.HTTPConnection(client.host, client.port, timeout=30)
        connection.request("POST", "/completion", json.dumps(long))
        held.append((connection, connection.getresponse()))
    status, headers, data = client.ask("POST", "/v1/chat/completions", {"messages": USER})
    assert status == 429, data
    assert int(headers["retry-after"]) >= 1
    for connection, _ in held:
        connection.close()
    deadline = time.monotonic() + 20
    while client.ask("POST", "/completion", {"prompt": "x", "n_predict": 1})[0] != 200:  # those who left are let go
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_control_tokens_in_a_message_are_letters(client, model):
    import ggufkit

    with ggufkit.open(model) as gguf:
        control = gguf.metadata["tokenizer.ggml.tokens"][2]
    assert control == "</s>"
    plain = client.post("/tokenize", content="a </s> b", parse_special=False)["tokens"]
    asked = [{"role": "user", "content": "a </s> b"}]
    counted = client.post("/v1/messages/count_tokens", messages=asked)["input_tokens"]
    harmless = client.post("/v1/messages/count_tokens", messages=[{"role": "user", "content": ""}])["input_tokens"]
    assert counted >= harmless + len(plain) - 2
    assert 2 in client.post("/tokenize", content="a </s> b")["tokens"]


def test_templates_are_bounded(model):
    bomb = "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}"
    with serving(model, {"context": 64}, template=bomb) as url:
        start = time.monotonic()
        status, answer = Client(url).fail("/v1/chat/completions", messages=USER)
        assert status == 400
        assert "template" in answer["error"]["message"]
        assert time.monotonic() - start < 20
        assert Client(url).post("/completion", prompt="def", n_predict=2)["content"]


def test_nothing_of_the_machine_is_told(client, model):
    answers = [client.ask("GET", path) for path in ("/props", "/v1/models", "/api/tags", "/nothing", "/")]
    answers += [client.ask("POST", path, {"model": "tiny"}) for path in ("/api/show", "/v1/embeddings")]
    for _, headers, data in answers:
        assert str(model.parent).encode() not in data
        assert "server" not in headers
        assert headers["x-content-type-options"] == "nosniff"
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/models/../../x"):
        assert client.ask("GET", path)[0] in (403, 404)


def test_a_crowd_is_answered(client):
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(client.ask("GET", "/health")[0])
        except OSError:
            statuses.append(0)

    threads = [threading.Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 503}
    assert client.ask("GET", "/health")[0] == 200
