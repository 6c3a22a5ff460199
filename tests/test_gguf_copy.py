"""Copies: other metadata as gguf-new-metadata writes it, the other byte order for every format, steps of memory."""

import subprocess
import sys

import numpy as np
import pytest

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import FileError, UsageError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.copy import copy_model, write_shards
from ggufkit.gguf.reader import swapped
from ggufkit.gguf.writer import Writer

F32 = FORMATS["F32"]


def run(*args) -> int:
    try:
        main([str(a) for a in args])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.fixture
def model(tmp_path):
    """A tensor of every format, of random bytes."""
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(3)
    metadata = {
        "general.architecture": "llama",
        "general.name": "Old",
        "general.url": "x",
        "tokenizer.ggml.tokens": ["a", "b", "<eos>", "b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "old",
        "tokenizer.chat_template.tool": "old tool",
        "last": [1.5, 2.5],
    }
    tensors = [(format.name, (3, 2 * format.block_size), format) for format in FORMATS.values()]
    with Writer(path, metadata, tensors) as out:
        for name, _, format in tensors:
            out.write(name, 0, rng.integers(0, 256, (3, 2 * format.type_size), np.uint8))
    return path


def contents(path) -> dict[str, bytes]:
    with ggufkit.open(path) as m:
        return {t.name: t.read(0, t.rows).tobytes() for t in m.tensors.values()}


def test_new_metadata_equals_that_of_gguf_py(model, tmp_path):
    options = ["--general-name", "New", "--general-description", "Words", "--chat-template", "{{ new }}"]
    options += ["--special-token", "eos", "<eos>", "--remove-metadata", "general.url"]
    source, theirs, ours = (tmp_path / f"{name}.gguf" for name in ("source", "theirs", "ours"))
    with ggufkit.open(model) as m:
        copy_model(m, source, m.fields, names=("F32", "Q4_K", "Q8_0"))
    script = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", source, theirs, *options, "--force"]
    subprocess.run(script, check=True, capture_output=True)
    assert run("new-metadata", source, ours, *options) == 0
    with ggufkit.open(theirs) as m, ggufkit.open(ours) as n:
        assert dict(m.metadata) == dict(n.metadata)
        assert "tokenizer.chat_template.tool" not in n.metadata
    assert contents(ours) == contents(theirs) == contents(source)


def test_new_metadata_of_a_split_model_is_one_file(model, tmp_path):
    with ggufkit.open(model) as m:
        paths = write_shards(m, tmp_path / "part", max_tensors=9)
    assert (
        run("new-metadata", paths[1], tmp_path / "one.gguf", "--set", "last=arr[i32]:[7]", "--rm", "general.url") == 0
    )
    with ggufkit.open(tmp_path / "one.gguf") as m:
        assert m.metadata["last"] == [7]
        assert not [key for key in m.metadata if key.startswith("split.") or key == "general.url"]
    assert contents(tmp_path / "one.gguf") == contents(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--special-token", "eos", "none"], "no token is 'none'"),
        (["--special-token", "eos", "b"], "the tokens 1, 3 are all 'b'"),
        (["--special-token-by-id", "eos", "4"], "they are 0 to 3"),
        (["--rm", "nothing"], "has no key nothing"),
        (["--set", "last"], "no KEY=VALUE"),
    ],
)
def test_wrong_option_is_refused(model, tmp_path, capsys, options, words):
    assert run("new-metadata", model, tmp_path / "out.gguf", *options) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [model]


def test_byte_order_there_and_back_gives_the_same_file(model, tmp_path):
    big, again = tmp_path / "big.gguf", tmp_path / "again.gguf"
    assert run("endian", model, "big", big) == 0
    assert contents(big) == contents(model)
    with ggufkit.open(big) as m:
        assert m.byteorder == "big"
    assert run("endian", big, "little", again) == 0
    assert again.read_bytes() == model.read_bytes()


def test_big_endian_file_equals_that_of_gguf_py(model, tmp_path):
    """gguf-py's converter knows the byte order of some formats only, and changes the file in its place."""
    known = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4")
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    with ggufkit.open(model) as m:
        copy_model(m, theirs, m.fields, names=known)
    with ggufkit.open(theirs) as m:
        copy_model(m, ours, m.fields, byteorder="big")
    script = [sys.executable, "-m", "gguf.scripts.gguf_convert_endian", theirs, "big"]
    subprocess.run(script, check=True, capture_output=True, input=b"YES\n")
    assert ours.read_bytes() == theirs.read_bytes()


def test_numbers_of_several_bytes_are_swapped_where_c_code_reads_them():
    order = {
        "Q5_0": [1, 0, 5, 4, 3, 2, *range(6, 22)],
        "IQ1_M": [*range(48), 49, 48, 51, 50, 53, 52, 55, 54],
        "IQ3_XXS": [1, 0, *range(2, 66), *(66 + i // 4 * 4 + 3 - i % 4 for i in range(32))],
        "IQ2_XXS": [1, 0, *(2 + i + (0 if i % 8 < 4 else 11 - 2 * (i % 8)) for i in range(64))],
        "Q4_K": [1, 0, 3, 2, *range(4, 144)],
        "MXFP4": [*range(17)],
    }
    for name, expected in order.items():
        blocks = np.arange(len(expected), dtype=np.uint8).reshape(1, -1)
        assert swapped(blocks, FORMATS[name])[0].tolist() == expected, name


def test_large_tensor_is_copied_and_swapped_in_steps(tmp_path):
    data = np.arange(6_000_000, dtype="<f4").reshape(6000, 1000)
    with Writer(tmp_path / "m.gguf", {}, [("w", data.shape, F32)]) as out:
        out.write("w", 0, data.view("u1"))
    for order in ("little", "big"):
        steps = []
        with ggufkit.open(tmp_path / "m.gguf") as m:
            target = tmp_path / f"{order}.gguf"
            copy_model(m, target, {}, byteorder=order, advance=lambda n, name, steps=steps: steps.append(n))
        assert sum(steps) == data.nbytes
        with ggufkit.open(target) as m:
            assert np.array_equal(m.tensors["w"].floats(), data)
    assert len(steps) > 1


def test_copy_onto_the_model_or_an_existing_file_is_refused(model, tmp_path):
    (tmp_path / "link.gguf").symlink_to(model)
    (tmp_path / "old.gguf").write_text("old")
    with ggufkit.open(model) as m:
        with pytest.raises(UsageError, match="is the input file"):
            copy_model(m, tmp_path / "link.gguf", m.fields, force=True)
        with pytest.raises(FileError, match="force=True"):
            copy_model(m, tmp_path / "old.gguf", m.fields)
    assert (tmp_path / "old.gguf").read_text() == "old"
