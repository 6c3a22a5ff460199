"""Files and servers of strangers: work and memory are bounded by what is really there."""

import json
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import closing

import pytest
import tiny_checkpoints
from tiny_families import FAMILIES

import ggufkit
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.pytorch import read_pytorch
from ggufkit.checkpoint.safetensors import read_safetensors
from ggufkit.errors import CheckpointError, FileError, GgufkitError
from ggufkit.gguf.hashes import read_manifest
from ggufkit.storage import http
from ggufkit.storage.http import RemoteSource


def quickly(seconds=2.0):
    """Fails when the block takes more time of the CPU."""

    class Timed:
        def __enter__(self):
            self.start = time.process_time()

        def __exit__(self, *exc):
            assert time.process_time() - self.start < seconds

    return Timed()


# ---- safetensors ------------------------------------------------------------------------------------------------


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"k%d":0' % i for i in range(60_000)) + b',"k59999":0}',
        b"{" + b'"' + b"x" * 1_000_000 + b'":0,"' + b"x" * 1_000_000 + b'":0}',
        {"a": ENTRY | {"shape": [1] * 400_000}},
        {"a": ENTRY | {"shape": [2] * 400_000}},
        {"a": ENTRY | {"shape": [10**4000]}},
        {"a": ENTRY | {"data_offsets": [0, 10**4000]}},
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        {"a": ENTRY | {"shape": [1 << 62, 1 << 62]}},
        {"a": ENTRY | {"dtype": "F" * 1_000_000}},
        {"a": ENTRY | {"shape": "1" * 100_000}},
        {"a" * 1_000_000: ENTRY | {"shape": [3]}},
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(13),
)
def test_safetensors_headers_take_their_size(tmp_path, header):
    path = safetensors(tmp_path / "x.safetensors", header, b"\0" * 4)
    with quickly(), pytest.raises(CheckpointError) as error:
        list(read_safetensors(path))
    assert len(str(error.value)) < 1000


# ---- pickles ----------------------------------------------------------------------------------------------------


def torch_file(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/version", "3")
    return path


DICT = b"ccollections\nOrderedDict\nq\x00"
PAIRS = b"](" + b"".join(b"U\x05%05dK\x01\x86" % i for i in range(10_000)) + b"eq\x01"
AGAIN = {
    "a dict of the same list": DICT + PAIRS + b"(" + b"h\x00h\x01\x85R" * 10_000 + b"t.",
    "a dict of a dict": DICT + PAIRS + b"h\x00h\x01\x85Rq\x02(" + b"h\x00h\x02\x85R" * 10_000 + b"t.",
    "a new object of the same list": DICT + PAIRS + b"(" + b"h\x00h\x01\x85\x81" * 10_000 + b"t.",
    "a size of the same list": b"ctorch\nSize\nq\x00" + PAIRS + b"(" + b"h\x00h\x01\x85R" * 10_000 + b"t.",
    "a size of a text": b"ctorch\nSize\nq\x00X\x00\x00\x10\x00"
    + b"a" * (1 << 20)
    + b"q\x01("
    + b"h\x00h\x01\x85R" * 10_000
    + b"t.",
    "names of long texts": b"X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x01(" + b"h\x01h\x01\x93" * 10_000 + b"t.",
    "a text that is not there": b"X\xff\xff\xff\x7fa.",
    "a long number": b"L" + b"9" * 1_000_000 + b"L\n.",
    "bytes that are not there": b"\x8e" + b"\xff" * 7 + b"\x00abc.",
    "no end of marks": b"(" * 100_000 + b".",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 300_000 + b".",
    "a tuple of itself, as a key": b"}(" + b")" + b"\x85" * 100_000 + b"K\x01u.",
}


@pytest.mark.parametrize("name", AGAIN)
def test_pickles_take_their_size(tmp_path, name):
    path = torch_file(tmp_path / "x.bin", AGAIN[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quickly(10), pytest.raises(CheckpointError):
        list(read_pytorch(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB


def test_a_plain_state_is_read_however_large(tmp_path):
    """The limit counts what is named again, not what is there."""
    state = {f"layer {i}": i for i in range(50_000)}
    path = torch_file(tmp_path / "x.bin", pickle.dumps(state, 2))
    with pytest.raises(CheckpointError, match="no tensor"):
        list(read_pytorch(path))


# ---- what is no file --------------------------------------------------------------------------------------------


@pytest.fixture
def gguf_file(tmp_path):
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 4) + b"name" + struct.pack("<IQ", 8, 1) + b"x"
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    return path


def special(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(str(path))
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.write(b"ggufkit undo 1\n{}\n")
            file.truncate(1 << 40)
    return path


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
@pytest.mark.parametrize(
    "read",
    [ggufkit.open, read_manifest, lambda path: list(read_safetensors(path)), lambda path: list(read_pytorch(path))],
    ids=["gguf", "manifest", "safetensors", "torch"],
)
def test_what_is_no_file_is_named(tmp_path, kind, read):
    path = special(kind, tmp_path / "x")
    with quickly(), pytest.raises(FileError):
        read(path)


@pytest.mark.parametrize("kind", ["fifo", "socket", "zero", "folder", "sparse"])
@pytest.mark.parametrize("end", [".journal", ".undo"])
def test_odd_journals_stop_nobody(gguf_file, kind, end):
    special(kind, gguf_file.with_name(gguf_file.name + end))
    with quickly():
        if (kind, end) == ("sparse", ".journal"):
            with pytest.raises(FileError, match="limit"):
                ggufkit.open(gguf_file)
        else:
            with ggufkit.open(gguf_file) as found:
                assert found.metadata["name"] == "x"
    with quickly(), pytest.raises(GgufkitError):
        ggufkit.undo(gguf_file)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "README.md", "model.safetensors", "generation_config.json", "tokenizer.model"],
)
def test_a_checkpoint_folder_has_files(tmp_path, name):
    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with quickly(), pytest.raises(FileError, match="FIFO"):
        open_checkpoint(folder)


def test_notes_of_a_run_that_claim_a_terabyte(tmp_path):
    from ggufkit.jobs.convert import convert

    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "m")
    target = tmp_path / "out.gguf"
    convert(folder, target, "F32", pre="gpt-2")
    wanted = target.read_bytes()
    target.unlink()
    notes = tmp_path / "out.gguf.partial.resume"
    with open(notes, "wb") as file:
        file.truncate(1 << 40)
    with quickly(20):
        convert(folder, target, "F32", pre="gpt-2")
    assert target.read_bytes() == wanted


# ---- servers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A server that does with each connection what it is told; gives its address."""
    sockets = []

    def serve(answer):
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def talk(connection):
            with connection:
                connection.settimeout(20)
                try:
                    connection.recv(65536)
                    for part in answer() if callable(answer) else [answer]:
                        connection.sendall(part)
                except OSError:
                    pass

        def loop():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=loop, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/m.gguf"

    yield serve
    for listening in sockets:
        listening.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(http, "_PAUSE", 0.001)
    monkeypatch.setattr(http, "_TIMEOUT", 0.4)
    monkeypatch.setattr(http, "_GRACE", 0.2)
    monkeypatch.setenv("no_proxy", "*")


PART = b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\n"
MANY = b"9" * 5000
ANSWERS = {
    "a negative chunk": PART + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabcdef",
    "a chunk of thousands of digits": PART + b"Transfer-Encoding: chunked\r\n\r\n" + MANY + b"\r\nabcdef",
    "a chunk that is no number": PART + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabcdef",
    "a negative length": PART + b"Content-Length: -5\r\n\r\nabcdef",
    "a length of thousands of digits": PART + b"Content-Length: " + MANY + b"\r\n\r\nabcdef",
    "a range of thousands of digits": b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-" + MANY + b"/" + MANY + b"\r\n\r\n",
    "a range in other digits": "HTTP/1.1 206 P\r\nContent-Range: bytes 0-\u0669/\u0661\u0660\r\n\r\n".encode(),
    "a wait of thousands of digits": b"HTTP/1.1 503 N\r\nRetry-After: " + MANY + b"\r\nContent-Length: 0\r\n\r\n",
    "a status of thousands of digits": b"HTTP/1.1 " + MANY + b" X\r\n\r\n",
    "no end of the status": b"HTTP/1.1 " + b"x" * 100_000,
    "nothing": b"",
    "thousands of headers": b"HTTP/1.1 206 P\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
}
PLACES = [
    "http://[::1",
    "http://[::1]:99999999/x",
    "http://a:b:c/",
    "http://" + "a" * 300 + ".example/",
    "http://\u2100.example/",
    "http://.example..com/",
    "http://127.0.0.1:-5/",
    "http://127.0.0.1:\u0663/",
    "http:///x",
    "//[",
    "ftp://x/",
    "http://exa mple/",
    "http://x\x00y/",
]


@pytest.mark.parametrize("name", ANSWERS)
def test_malformed_answers_end_in_one_line(answering, name):
    with pytest.raises(GgufkitError) as error:
        RemoteSource(answering(ANSWERS[name])).read(0, 10)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("place", PLACES)
def test_redirects_to_malformed_hosts(answering, place):
    answer = f"HTTP/1.1 302 F\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(FileError) as error:
        RemoteSource(answering(answer))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("place", [p for p in PLACES if p.startswith("http:")])
def test_malformed_addresses(place):
    with pytest.raises(GgufkitError):
        RemoteSource(place)


def drip(head, piece, pause=0.05):
    def parts():
        yield head
        while True:
            time.sleep(pause)
            yield piece

    return parts


@pytest.mark.parametrize(
    "parts",
    [
        drip(b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-99999/100000\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 206 P\r\nX: ", b"x"),
        drip(b"H", b"T"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(PART + b"Transfer-Encoding: chunked\r\n\r\n1", b"0"),
        drip(b"HTTP/1.1 206 P\r\n", b"A: b\r\n"),
        drip(b"", b"", 5.0),
    ],
    ids=["body", "header", "status", "continue", "chunk", "headers", "silence"],
)
def test_dripping_servers_are_given_up(answering, parts, monkeypatch):
    monkeypatch.setattr(http, "_FLOOR", 1 << 20)
    start = time.monotonic()
    with pytest.raises(FileError):
        RemoteSource(answering(parts))
    assert time.monotonic() - start < 10


def test_inspect_beside_a_fifo_ends(gguf_file):
    os.mkfifo(f"{gguf_file}.journal")
    command = [sys.executable, "-m", "ggufkit", "inspect", "--summary", gguf_file]
    assert subprocess.run(command, timeout=60, capture_output=True, check=False).returncode == 0
