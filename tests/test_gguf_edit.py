"""Edits of a header: what is written, that llama.cpp and gguf-py read it, and that undo gives the old bytes back."""

from __future__ import annotations

import mmap
import os

import ggml_file
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ggufkit
from ggufkit.errors import FileError, GGUFError, UsageError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Limits, Value, ValueType
from ggufkit.gguf.writer import Writer

F32, Q8_0 = FORMATS["F32"], FORMATS["Q8_0"]

METADATA = {
    "general.architecture": "llama",
    "general.name": "A model",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{i}" * (1 + i % 3) for i in range(1500)],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
    "general.file_type": 7,
}
TENSORS = [("a.weight", (5, 64), Q8_0), ("b.weight", (7,), F32), ("c.weight", (3, 32), Q8_0)]


def write(path, metadata=METADATA, tensors=TENSORS, **options):
    rng = np.random.default_rng(5)
    with Writer(path, metadata, tensors, **options) as out:
        for name, shape, format in tensors:
            rows = int(np.prod(shape[:-1]))
            out.write(name, 0, rng.integers(0, 255, (rows, format.row_bytes(shape[-1])), np.uint8))
    return path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The disk need not keep these files; test_gguf_edit_crash.py is about that."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "model.gguf")


def contents(path, gguf_py=True):
    """(metadata, tensor → bytes), without fillers, as ggufkit reads a file; libggml and gguf-py must agree."""

    with ggufkit.open(path) as model:
        metadata = {key: model.metadata[key] for key in model.fields if not key.startswith("ggufkit.pad")}
        blocks = {name: t.read(0, t.rows).tobytes() for name, t in model.tensors.items()}
        if model.byteorder == "little":
            found = ggml_file.read(path)
            assert list(found["metadata"].items()) == [(key.encode(), as_ggml(f)) for key, f in model.fields.items()]
            starts = {name: found["data_offset"] + offset for name, (_, offset, _) in found["tensors"].items()}
            assert starts == {name.encode(): model.file_offset(name) for name in model.info}
        if gguf_py:
            import gguf

            reader = gguf.GGUFReader(path)
            assert [t.name for t in reader.tensors] == list(blocks)
            assert [key for key in reader.fields if not key.startswith("GGUF.")] == list(model.fields)
    return metadata, blocks


def as_ggml(field):
    """A field as `ggml_file.read` gives it."""
    if ValueType.STRING not in (field.type, field.item_type):
        return field.type, field.item_type, field.raw
    texts = [text.split(b"\0")[0] for text in field.strings()]
    return field.type, field.item_type, texts[0] if field.item_type is None else texts


def keys(path):
    with ggufkit.open(path) as model:
        return list(model.fields)


# -- in place ---------------------------------------------------------------------------------------------


def test_same_size_value_writes_its_bytes_alone(path):
    before, (metadata, blocks) = path.read_bytes(), contents(path)
    inode = path.stat().st_ino
    with ggufkit.edit(path) as e:
        e.set("llama.block_count", 3)
    assert (e.result.how, e.result.written) == ("in place", 1)
    assert sum(a != b for a, b in zip(before, path.read_bytes(), strict=True)) == 1
    assert contents(path) == ({**metadata, "llama.block_count": 3}, blocks)
    assert path.stat().st_ino == inode


def test_shorter_value_leaves_a_filler_and_moves_nothing(path):
    before, (metadata, blocks) = path.read_bytes(), contents(path)
    with ggufkit.edit(path) as e:
        e.set("tokenizer.chat_template", "")
        e.set("general.name", "A_model")
        e.remove("tokenizer.ggml.model")
    after = path.read_bytes()
    assert e.result.how == "in place"
    assert len(after) == len(before)
    del metadata["tokenizer.ggml.model"]
    assert contents(path) == ({**metadata, "tokenizer.chat_template": "", "general.name": "A_model"}, blocks)
    assert "ggufkit.pad" in keys(path)


@pytest.mark.parametrize("n", [1, 30, 31, 32, 33, 64])
def test_shorter_values_of_every_length_stay_in_place(tmp_path, n):
    path = write(tmp_path / "model.gguf", {"general.architecture": "llama", "k": "x" * n})
    before, tensors = path.read_bytes(), ggml_file.read(path)["tensors"]
    for m in range(n):
        path.write_bytes(before)
        with ggufkit.edit(path) as e:
            e.set("k", "y" * m)
        assert (m, e.result.how) == (m, "in place")
        found = ggml_file.read(path)
        assert (found["metadata"][b"k"][2].decode(), found["tensors"]) == ("y" * m, tensors)


def test_spare_room_takes_a_longer_value(path):
    with ggufkit.edit(path, spare=4096) as e:
        pass
    assert e.result.how == "new file"
    assert keys(path).index("ggufkit.pad.front") == list(METADATA).index("tokenizer.ggml.tokens")
    assert keys(path)[-1] == "ggufkit.pad"
    for key, before in (("tokenizer.chat_template", 128), ("general.name", 512)):
        with ggufkit.edit(path) as e:
            e.set(key, "x" * 4000)
        # The vocabulary stays where it is, whichever side of it grows.
        assert e.result.how == "in place"
        assert e.result.written < 4000 + before
    metadata, _ = contents(path)
    assert metadata == {**METADATA, "tokenizer.chat_template": "x" * 4000, "general.name": "x" * 4000}


def test_spare_room_lets_the_file_system_share_the_data(path):
    with ggufkit.open(path) as model:
        before = model.data_offset
    with ggufkit.edit(path, spare=100):
        pass
    with ggufkit.open(path) as model:
        assert (model.data_offset - before) % 4096 == 0


def test_spare_room_is_filled_to_the_last_byte(path):
    with ggufkit.edit(path, spare=100):
        pass
    with ggufkit.open(path) as model:
        room = len(model.metadata["ggufkit.pad"]) + len(METADATA["tokenizer.chat_template"])
        total = room + len(model.metadata["ggufkit.pad.front"]) + 2 * (8 + 11 + 4 + 8) + len(".front")
        total += model.data_offset - model.parts[0].header.end
    for n in range(room - 2, total + 1):
        with ggufkit.edit(path) as e:
            e.set("tokenizer.chat_template", "x" * n)
        assert (n, e.result.how) == (n, "in place")
    assert contents(path)[0] == {**METADATA, "tokenizer.chat_template": "x" * total}
    with ggufkit.edit(path) as e:
        e.set("tokenizer.chat_template", "x" * (total + 1))
    assert e.result.how == "new file"


def test_nothing_changed_writes_nothing(path):
    before = path.stat()
    with ggufkit.edit(path) as e:
        e.set("general.name", METADATA["general.name"])
    assert e.result.how == "unchanged"
    assert path.stat() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_exception_changes_nothing(path):
    before = path.read_bytes()

    def interrupted():
        with ggufkit.edit(path) as e:
            e.set("general.name", "other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# -- new file ---------------------------------------------------------------------------------------------


def test_longer_value_writes_the_file_anew(path):
    before, (metadata, blocks) = path.read_bytes(), contents(path)
    path.chmod(0o640)
    with ggufkit.edit(path) as e:
        e.set("tokenizer.chat_template", "x" * 5000)
    assert (e.result.how, e.result.copied, e.result.undoable) == ("new file", 512, True)
    assert contents(path) == ({**metadata, "tokenizer.chat_template": "x" * 5000}, blocks)
    assert path.stat().st_mode & 0o777 == 0o640
    # The same as written from nothing.
    assert (
        path.read_bytes()
        == write(path.with_name("b"), {**METADATA, "tokenizer.chat_template": "x" * 5000}).read_bytes()
    )
    ggufkit.undo(path)
    assert path.read_bytes() == before


def test_new_file_keeps_owner_and_attributes(path):
    try:
        os.setxattr(path, "user.origin", b"here")
    except (OSError, AttributeError):
        pytest.skip("no extended attributes here")
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
    before = path.stat()
    with ggufkit.edit(path, spare=100):
        pass
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert os.getxattr(path, "user.origin") == b"here"


def test_removed_tensor_goes_with_its_data_and_cannot_come_back(path):
    metadata, blocks = contents(path)
    with ggufkit.edit(path) as e:
        e.remove_tensor("b.weight")
        e.rename_tensor("c.weight", "d.weight")
    assert (e.result.how, e.result.undoable) == ("new file", False)
    assert contents(path) == (metadata, {"a.weight": blocks["a.weight"], "d.weight": blocks["c.weight"]})
    with pytest.raises(FileError, match="removed tensors"):
        ggufkit.undo(path)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_another_alignment_pads_the_data_anew(path, alignment):
    before, (metadata, blocks) = path.read_bytes(), contents(path)
    with ggufkit.edit(path) as e:
        e.set("general.alignment", Value(ValueType.UINT32, alignment))
    expected = write(path.with_name("b"), {**METADATA, "general.alignment": Value(ValueType.UINT32, alignment)})
    assert path.read_bytes() == expected.read_bytes()
    assert contents(path) == ({**metadata, "general.alignment": alignment}, blocks)
    ggufkit.undo(path)
    assert path.read_bytes() == before


def test_output_leaves_the_file_alone(path, tmp_path):
    before = path.read_bytes()
    path.chmod(0o444)
    with ggufkit.edit(path, tmp_path / "out.gguf") as e:
        e.set("general.name", "other")
    assert path.read_bytes() == before
    assert contents(tmp_path / "out.gguf")[0]["general.name"] == "other"
    with pytest.raises(FileError, match="force=True"), ggufkit.edit(path, tmp_path / "out.gguf") as e:
        e.set("general.name", "third")
    (tmp_path / "link.gguf").symlink_to(path)
    with pytest.raises(UsageError, match="input file"):
        ggufkit.edit(path, tmp_path / "link.gguf")


def test_edit_goes_through_a_symbolic_link(path, tmp_path):
    link = tmp_path / "sub" / "link.gguf"
    link.parent.mkdir()
    link.symlink_to(path)
    for name in ("B model", "a much longer name" * 50):
        with ggufkit.edit(link) as e:
            e.set("general.name", name)
        assert link.is_symlink()
        assert contents(path)[0]["general.name"] == name
    ggufkit.undo(link)
    assert contents(path)[0]["general.name"] == "B model"
    assert list(link.parent.iterdir()) == [link]


# -- other files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["B model", "a much longer name" * 50])
@pytest.mark.parametrize("kind", ["big", "v2", "vocabulary", "padded vocabulary", "unpadded end"])
def test_other_kinds_of_files(tmp_path, kind, name):
    path = tmp_path / "model.gguf"
    if "vocabulary" in kind:
        write(path, METADATA, [], pad_header="padded" in kind)
    else:
        write(path, byteorder="big" if kind == "big" else "little")
    if kind == "v2":
        data = bytearray(path.read_bytes())
        data[4] = 2
        path.write_bytes(data)
    if kind == "unpadded end":
        path.write_bytes(path.read_bytes()[:-26])
    before, (metadata, blocks) = path.read_bytes(), contents(path)
    with ggufkit.edit(path) as e:
        e.set("general.name", name)
    assert contents(path) == ({**metadata, "general.name": name}, blocks)
    assert path.read_bytes()[4:8] == before[4:8]
    ggufkit.undo(path)
    assert path.read_bytes() == before


def test_version_1_is_refused(tmp_path):
    path = tmp_path / "v1.gguf"
    path.write_bytes(b"GGUF" + bytes([1, 0, 0, 0]) + bytes(8))
    with pytest.raises(GGUFError, match="version 1 of GGUF cannot be edited"):
        ggufkit.edit(path)


def test_shards_metadata_is_in_the_first(tmp_path):
    from ggufkit.gguf.shards import SPLIT_KEYS

    kinds = (ValueType.UINT16, ValueType.UINT16, ValueType.INT32)
    for i in range(2):
        split = {k: Value(t, v) for k, t, v in zip(SPLIT_KEYS, kinds, (i, 2, 3), strict=True)}
        write(
            tmp_path / f"m-0000{i + 1}-of-00002.gguf",
            {**METADATA, **split} if i == 0 else split,
            TENSORS[:2] if i == 0 else TENSORS[2:],
        )
    first, second = sorted(tmp_path.iterdir())
    with ggufkit.edit(first) as e:
        e.set("general.name", "other")
    with ggufkit.edit(second) as e:
        e.rename_tensor("c.weight", "d.weight")
    with ggufkit.open(second) as model:
        assert model.metadata["general.name"] == "other"
        assert list(model.tensors) == ["a.weight", "b.weight", "d.weight"]
    with pytest.raises(GGUFError, match=r"already, in .*00001-of"), ggufkit.edit(second) as e:
        e.rename_tensor("d.weight", "a.weight")
    for file, key, words in (
        (second, "general.name", "00001-of-00002"),
        (first, "split.count", "use split and merge"),
    ):
        with pytest.raises(GGUFError, match=words), ggufkit.edit(file) as e:
            e.set(key, 3)


# -- values and names -------------------------------------------------------------------------------------


def test_plain_values_take_the_type_of_the_key(path):
    with ggufkit.edit(path) as e:
        e.set("llama.block_count", np.int64(5))
        e.set("llama.rope.freq_base", 5)
        e.set("tokenizer.ggml.add_bos_token", False)
        e.set("new.number", -5)
        e.set("new.list", ["a", "ø"])
        e.rename("new.number", "new.integer")
    with ggufkit.open(path) as model:
        assert {key: f.describe() for key, f in model.fields.items() if key.startswith(("llama.", "new."))} == {
            "llama.block_count": "u32",
            "llama.rope.freq_base": "f32",
            "new.integer": "i32",
            "new.list": "arr[str, 2]",
        }
        assert model.metadata["llama.rope.freq_base"] == 5.0
    contents(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.set("llama.block_count", Value(ValueType.INT32, 5)), "is of type u32, not i32"),
        (lambda e: e.set("llama.block_count", "five"), "does not fit the type u32"),
        (lambda e: e.set("llama.block_count", -1), "does not fit the type u32"),
        (lambda e: e.set("llama.block_count", [1]), "which .1. does not fit"),
        (lambda e: e.set("general.name", 5), "does not fit the type str"),
        (lambda e: e.set("tokenizer.ggml.add_bos_token", "no"), "does not fit the type bool"),
        (lambda e: e.set("tokenizer.ggml.tokens", "x"), "does not fit"),
        (lambda e: e.set("", 5), "empty"),
        (lambda e: e.set("general.alignment", Value(ValueType.UINT32, 24)), "not a power of two"),
        (lambda e: e.set("general.alignment", Value(ValueType.UINT64, 64)), "must be of type u32"),
        (lambda e: e.set("general.architecture", "qwen2"), "no key that starts with qwen2"),
        (lambda e: e.set("ggufkit.pad", "x"), "spare room"),
        (lambda e: e.set("split.count", Value(ValueType.UINT16, 2)), "which are not there"),
        (lambda e: e.remove("general.architecture"), "no program can load"),
        (lambda e: e.remove("general.nam"), "did you mean general.name"),
        (lambda e: e.remove("template"), "did you mean tokenizer.chat_template"),
        (lambda e: e.rename("general.name", "general.file_type"), "already"),
        (lambda e: e.rename_tensor("a.weight", "b.weight"), "already"),
        (lambda e: e.rename_tensor("a.weigh", "x"), "did you mean a.weight"),
        (lambda e: e.rename_tensor("a.weight", "x" * 64), "limit is 63"),
        (lambda e: e.set_token(1500, "x"), "has 1500"),
        (lambda e: e.set_token(-1, "x"), "no token -1"),
        (lambda e: e.set_token(5, "t6"), "that of token 6"),
        (lambda e: e.set_special("eos", "nothing"), "no token has the text"),
        (lambda e: e.set_special("eos", 1500), "has 1500"),
        (lambda e: e.set_special("eoss", 4), "did you mean eos"),
    ],
)
def test_wrong_changes_are_refused(path, change, words):
    before = path.read_bytes()
    with pytest.raises(GGUFError, match=words), ggufkit.edit(path) as e:
        change(e)
    assert path.read_bytes() == before


def test_header_larger_than_readers_allow_is_refused(path, monkeypatch):
    limits = Limits(header=path.stat().st_size)
    monkeypatch.setattr("ggufkit.gguf.edit.spare.Limits", lambda: limits)
    with pytest.raises(GGUFError, match="the limit is"), ggufkit.edit(path) as e:
        e.set("general.name", "x" * limits.header)
    with pytest.raises(UsageError, match="spare room"), ggufkit.edit(path, spare=1 << 30):
        pass


def test_force_allows_what_breaks_models(path):
    with ggufkit.edit(path, force=True) as e:
        e.set("llama.block_count", Value(ValueType.INT32, -5))
        e.set("general.architecture", "qwen2")
        e.set_token(5, "t6t6")
    assert contents(path)[0]["llama.block_count"] == -5


def test_architecture_may_change_with_its_keys(path):
    with ggufkit.edit(path) as e:
        e.set("general.architecture", "mistral")
        for key in [key for key in e.fields if key.startswith("llama.")]:
            e.rename(key, key.replace("llama.", "mistral."))
    metadata, _ = contents(path)
    assert [key for key in metadata if "mistral" in key] == ["mistral.block_count", "mistral.rope.freq_base"]


@pytest.mark.parametrize("number", [0, 17, 1499])
def test_token_text_changes_alone(path, number):
    with ggufkit.edit(path) as e:
        e.set_token(number, "<|ø|>")
        e.set_special("eos", "<|ø|>")
        e.set_special("pad", number)
    expected = list(METADATA["tokenizer.ggml.tokens"])
    expected[number] = "<|ø|>"
    metadata, _ = contents(path)
    assert metadata["tokenizer.ggml.tokens"] == expected
    assert metadata["tokenizer.ggml.eos_token_id"] == metadata["tokenizer.ggml.padding_token_id"] == number


def test_token_is_found_only_as_a_whole(path):
    with ggufkit.edit(path, force=True) as e:
        # The bytes of "t5" with its length lie inside this token.
        e.set_token(7, b"x\x02" + bytes(7) + b"q5")
        e.set_token(8, "twin")
        e.set_token(9, "twin")
        with pytest.raises(GGUFError, match="no token has"):
            e.set_special("eos", "q5")
        with pytest.raises(GGUFError, match="tokens 8, 9 have"):
            e.set_special("eos", "twin")


# -- undo -------------------------------------------------------------------------------------------------


def test_undo_takes_back_one_edit_after_the_other(path):
    """In place and written anew, in any order; ten of them, and no more."""
    before = []
    for step in range(14):
        before.append(path.read_bytes())
        with ggufkit.edit(path) as e:
            e.set("general.name", f"{step} model" + " that is longer" * (step % 3 * step))
    for data in before[:3:-1]:
        ggufkit.undo(path)
        assert path.read_bytes() == data
    with pytest.raises(FileError, match="nothing to take back"):
        ggufkit.undo(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["B model", "a much longer name" * 50])
def test_undo_refuses_a_file_that_changed_since(path, name):
    with ggufkit.edit(path) as e:
        e.set("general.name", name)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"gpt2", b"bert"))
    with pytest.raises(FileError, match="no longer as it left it"):
        ggufkit.undo(path)
    path.write_bytes(data + bytes(32))
    with pytest.raises(FileError, match="no longer as it left it"):
        ggufkit.undo(path)
    path.write_bytes(data)
    undo = path.with_name("model.gguf.undo")
    undo.write_bytes(undo.read_bytes()[:-5])
    with pytest.raises(FileError, match="damaged"):
        ggufkit.undo(path)


# -- others at the file -----------------------------------------------------------------------------------


def test_file_open_elsewhere_is_not_changed_in_place(path):
    before = path.read_bytes()
    with ggufkit.open(path) as model:
        with pytest.raises(FileError, match="is open in"), ggufkit.edit(path) as e:
            e.set("general.name", "B model")
        assert path.read_bytes() == before
        # A new file disturbs nobody: who has the old one open keeps it.
        with ggufkit.edit(path) as e:
            e.set("general.name", "x" * 500)
        assert model.tensors["b.weight"].read(0, 1).tobytes() in before
    with ggufkit.open(path), ggufkit.edit(path, force=True) as e:
        e.set("general.name", "y" * 500)
    assert contents(path)[0]["general.name"] == "y" * 500


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="leases are Linux's")
def test_file_open_in_any_program_is_noticed(path):
    def refused():
        with pytest.raises(FileError, match=f"process {os.getpid()}"), ggufkit.edit(path) as e:
            e.set("general.name", "B model")

    with open(path, "rb") as file:
        refused()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # A mapping counts, too.
    refused()
    mapped.close()


@pytest.mark.parametrize("name", ["B model", "x" * 500])
def test_file_changed_meanwhile_is_not_overwritten(path, name):
    other = write(path.with_name("other"))
    e = ggufkit.edit(path)
    e.set("general.name", name)
    data = path.read_bytes().replace(b"gpt2", b"bert")
    path.write_bytes(data)
    with pytest.raises(FileError, match="meanwhile"):
        e.commit()
    assert path.read_bytes() == data
    path.write_bytes(data.replace(b"bert", b"gpt2"))
    os.replace(other, path)
    with pytest.raises(FileError, match="meanwhile"):
        e.commit()
    e.close()


def test_read_only_and_linked_files_are_refused(path, tmp_path):
    path.chmod(0o444)
    with pytest.raises(FileError, match="read-only"):
        ggufkit.edit(path)
    path.chmod(0o644)
    with pytest.raises(FileError, match="not on this machine"):
        ggufkit.edit("hf://owner/repo/model.gguf")
    os.link(path, tmp_path / "twin.gguf")
    with pytest.raises(FileError, match="hard links"), ggufkit.edit(path) as e:
        e.set("general.name", "B model")
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileError, match=r"cannot (change|read)"):
            ggufkit.edit(wrong)


# -- anything ---------------------------------------------------------------------------------------------

TEXT = st.text(max_size=80)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.lists(
            st.one_of(
                st.tuples(
                    st.just("set"), st.sampled_from(["general.name", "k1", "k2", "tokenizer.chat_template"]), TEXT
                ),
                st.tuples(st.just("remove"), st.sampled_from(["k1", "k2"])),
                st.tuples(st.just("rename"), st.sampled_from(["k1", "k2"]), st.sampled_from(["k1", "k2", "k3"])),
                st.tuples(st.just("rename_tensor"), st.just("b.weight"), st.sampled_from(["b.weight", "b" * 63])),
            ),
            max_size=3,
        ),
        max_size=5,
    ),
    spare=st.sampled_from([None, None, 0, 50]),
    alignment=st.sampled_from([1, 8, 32, 256]),
)
def test_any_edits_give_what_a_dict_gives(path, edits, spare, alignment):
    metadata = {**METADATA, "tokenizer.ggml.tokens": METADATA["tokenizer.ggml.tokens"][:20]}
    write(path, {**metadata, "k1": "one", "k2": [1, 2, 3]}, force=True, alignment=alignment)
    metadata, blocks = contents(path, gguf_py=False)
    for i, changes in enumerate(edits):
        before = path.read_bytes()
        with ggufkit.edit(path, spare=spare if i == 0 else None) as e:
            for verb, *arguments in changes:
                expected = dict(metadata)
                try:
                    getattr(e, verb)(*arguments)
                except GGUFError:
                    continue
                key = arguments[0]
                if verb == "set":
                    metadata[key] = arguments[1]
                elif verb == "remove":
                    del metadata[key]
                elif verb == "rename":
                    metadata = {arguments[1] if k == key else k: v for k, v in expected.items()}
                else:
                    blocks = {arguments[1] if k == key else k: v for k, v in blocks.items()}
        assert contents(path, gguf_py=False) == (metadata, blocks)
        assert list(contents(path, gguf_py=False)[0]) == list(metadata)
        if e.result.how != "unchanged":
            after = path.read_bytes()
            ggufkit.undo(path)
            assert path.read_bytes() == before
            path.write_bytes(after)


def test_real_vocabularies_are_edited_and_restored(shared, tmp_path):
    path = tmp_path / "model.gguf"
    for source in sorted((shared / "vocab").glob("*.gguf")):
        path.write_bytes(source.read_bytes())
        with ggufkit.edit(path) as e:
            tokens = e.metadata["tokenizer.ggml.tokens"]
            e.set_token(len(tokens) - 1, "<|last|>")
            e.set_special("eot", "<|last|>")
            e.set("tokenizer.chat_template", "{{ messages }}" * 200)
        with ggufkit.open(path) as model:
            assert model.metadata["tokenizer.ggml.tokens"] == [*tokens[:-1], "<|last|>"]
            assert model.metadata["tokenizer.ggml.eot_token_id"] == len(tokens) - 1
            assert ggml_file.read(path)["tensors"] == {}
        ggufkit.undo(path)
        assert path.read_bytes() == source.read_bytes(), source.name
