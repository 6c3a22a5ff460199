"""`ggufkit get`, `set`, `rm`, `rename` and `undo`."""

import json
import os
import subprocess
import sys

import pytest
from tiny_models import write_tiny

import ggufkit
from ggufkit.cli import main
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

TEMPLATE = "{% for m in messages %}\n{{ m }}\n{% endfor %}"
METADATA = {
    "general.architecture": "llama",
    "general.name": "A model",
    "llama.block_count": 2,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "ø", "<|im_end|>"],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0, 0.25],
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": TEMPLATE,
    "evil\x1b[2J": "\x1b]0;title\x07",
    "bytes": Value(ValueType.ARRAY, [b"\xff\xfe", b"ok"], ValueType.STRING),
}


@pytest.fixture
def run(capfdbinary):
    """Run the command line → (exit code, stdout, stderr)."""

    def run(*args) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            code = e.code or 0
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return code, out.decode("utf-8", "surrogateescape"), err.decode()

    return run


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.gguf"
    with Writer(path, METADATA, [("w.weight", (4,), FORMATS["F32"])]) as out:
        out.write_at(out.layout.file_offset("w.weight"), bytes(range(16)))
        out.wrote("w.weight", 16)
    return path


def value(path, key):
    with ggufkit.open(path) as model:
        return model.metadata[key]


# -- get --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("general.name", "A model"),
        ("tokenizer.chat_template", TEMPLATE),
        ("llama.block_count", "2\n"),
        ("tokenizer.ggml.add_bos_token", "true\n"),
        ("tokenizer.ggml.scores", "[0.0, -1.5, 2.0, 0.25]\n"),
        ("bytes", '["\\udcff\\udcfe", "ok"]\n'),
    ],
)
def test_get_prints_the_value(run, path, key, text):
    assert run("get", path, key) == (0, text, "")


def test_get_json_tells_the_type(run, path):
    code, out, err = run("get", path, "tokenizer.ggml.tokens", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "key": "tokenizer.ggml.tokens",
        "type": "ARRAY",
        "item_type": "STRING",
        "value": METADATA["tokenizer.ggml.tokens"],
    }


def test_get_of_an_unknown_key_names_similar_ones(run, path):
    assert run("get", path, "general.nam") == (
        1,
        "",
        f"ggufkit: {path}: there is no key general.nam; did you mean general.name?\n",
    )
    code, _, err = run("get", path, "\x1b[2J")
    assert (code, err.isprintable() or err.strip().isprintable()) == (1, True)


def test_get_shows_a_terminal_no_control_character(path):
    import pty

    parent, child = pty.openpty()
    with os.fdopen(child, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "ggufkit", "get", path, "evil\x1b[2J"],
            stdout=terminal,
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(ggufkit.__file__))},
            check=True,
        )
    assert os.read(parent, 1000) == b"\\x1b]0;title\\x07\r\n"
    os.close(parent)


# -- set --------------------------------------------------------------------------------------------------


def test_set_takes_the_type_of_the_key(run, path):
    code, out, err = run("set", path, "llama.block_count=0x10", "tokenizer.ggml.add_bos_token=no", "general.name=a=b:c")
    assert (code, err) == (0, "")
    assert f"\n{path}: changed in place, " in out
    assert value(path, "llama.block_count") == 16
    assert value(path, "tokenizer.ggml.add_bos_token") is False
    assert value(path, "general.name") == "a=b:c"


@pytest.mark.parametrize(
    ("text", "described", "expected"),
    [
        ("u8:5", "u8", 5),
        ("int64:-5", "i64", -5),
        ("f32:1e3", "f32", 1000.0),
        ("float64:inf", "f64", float("inf")),
        ("bool:true", "bool", True),
        ("str:u8:5", "str", "u8:5"),
        ("str:", "str", ""),
        ('arr[str]:["a", "ø"]', "arr[str, 2]", ["a", "ø"]),
        ("arr[i32]:1, -2,3", "arr[i32, 3]", [1, -2, 3]),
        ("arr[f32]:[1, 2.5]", "arr[f32, 2]", [1.0, 2.5]),
        ("arr[bool]:true,false", "arr[bool, 2]", [True, False]),
        ("arr[u8]:", "arr[u8, 0]", []),
    ],
)
def test_set_makes_a_new_key_of_the_given_type(run, path, text, described, expected):
    code, _, err = run("set", path, f"my.key={text}")
    assert (code, err) == (0, "")
    with ggufkit.open(path) as model:
        assert (model.fields["my.key"].describe(), model.metadata["my.key"]) == (described, expected)


def test_set_takes_texts_and_arrays_from_files(run, path, tmp_path):
    template, tokens = tmp_path / "t.jinja", tmp_path / "tokens.txt"
    template.write_text("{{ new }}\n")
    tokens.write_text("a\nb\n\nd\n")
    assert run("set", path, "--chat-template-file", template, f"tokenizer.ggml.tokens=@{tokens}", "--force")[0] == 0
    assert value(path, "tokenizer.chat_template") == "{{ new }}\n"
    assert value(path, "tokenizer.ggml.tokens") == ["a", "b", "", "d"]
    # What get prints, set takes back.
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "bytes", "tokenizer.chat_template"):
        before = value(path, key)
        (tmp_path / "value").write_text(run("get", path, key)[1])
        code, out, err = run("set", path, "--from-file", key, tmp_path / "value")
        assert (code, out, err) == (0, f"{path}: unchanged\n", "")
        assert value(path, key) == before


def test_set_changes_tokens_and_special_tokens(run, path):
    assert run("set", path, "--token", "0", "<bos>", "--special", "bos=<bos>", "--special", "eos=3")[0] == 0
    assert value(path, "tokenizer.ggml.tokens")[0] == "<bos>"
    assert value(path, "tokenizer.ggml.bos_token_id") == 0
    assert value(path, "tokenizer.ggml.eos_token_id") == 3
    # gguf_new_metadata's flags.
    assert run("set", path, "--special-token", "eos", "ø", "--special-token-by-id", "pad", "3")[0] == 0
    assert value(path, "tokenizer.ggml.eos_token_id") == 2
    assert value(path, "tokenizer.ggml.padding_token_id") == 3


def test_set_leaves_spare_room(run, path):
    code, out, _ = run("set", path, "--spare", "4K")
    assert (code, out) == (0, f"{path}: written anew, 32 bytes of data copied\n")
    assert len(value(path, "ggufkit.pad")) >= 4000
    assert "changed in place" in run("set", path, f"general.name={'x' * 4000}")[1]
    assert "written anew" in run("set", path, "--spare", "0")[1]
    with ggufkit.open(path) as model:
        assert list(model.fields) == list(METADATA)


def test_dry_run_shows_each_change_and_makes_none(run, path, tmp_path):
    before = path.read_bytes()
    args = ("llama.block_count=7", "my.key=str:\x1b[2J", "--token", 2, "x", "--special", "eos=x", "--dry-run")
    assert run("set", path, *args) == (
        0,
        "llama.block_count: 2 -> 7\ntokenizer.ggml.tokens[2]: ø -> x\ntokenizer.ggml.eos_token_id: 1 -> 2\n"
        f"my.key: none -> \\x1b[2J\n{path}: would be written anew, 32 bytes of data copied\n",
        "",
    )
    assert run("rename", path, "--tensor", "w.weight", "v.weight", "--dry-run")[1].startswith("w.weight -> v.weight\n")
    assert run("rm", path, "--tensor", "w.weight", "--dry-run")[1].startswith("w.weight -> none\n")
    assert run("rm", path, "llama.block_count", "--dry-run")[1].startswith("llama.block_count: 2 -> none\n")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_output_leaves_the_file_alone(run, path, tmp_path):
    before = path.read_bytes()
    code, out, err = run("set", path, "llama.block_count=7", "-o", tmp_path / "out.gguf")
    assert (code, out, err) == (
        0,
        f"llama.block_count: 2 -> 7\n{tmp_path / 'out.gguf'}: written anew, 32 bytes of data copied\n",
        "",
    )
    assert value(tmp_path / "out.gguf", "llama.block_count") == 7
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf", "out.gguf"]


# -- rm, rename, undo -------------------------------------------------------------------------------------


def test_rm_rename_and_undo(run, path):
    before = path.read_bytes()
    assert run("rm", path, "bytes", "tokenizer.ggml.scores")[0] == 0
    with ggufkit.open(path) as model:
        assert not {"bytes", "tokenizer.ggml.scores"} & set(model.fields)
    assert run("undo", path) == (0, f"{path}: as before the last edit\n", "")
    assert path.read_bytes() == before
    assert run("rename", path, "general.name", "general.basename")[0] == 0
    assert value(path, "general.basename") == "A model"
    assert run("rename", path, "--tensor", "w.weight", "v.weight")[0] == 0
    with ggufkit.open(path) as model:
        assert list(model.tensors) == ["v.weight"]
    assert run("rm", path, "--tensor", "v.weight")[0] == 0
    code, out, err = run("undo", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "nothing to take back" in err


# -- a clear line each ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["set", "llama.block_count=f32:5"], 1, "llama.block_count is of type u32, not f32"),
        (["set", "llama.block_count=five"], 2, "'five' is no u32"),
        (["set", "llama.block_count=-1"], 1, "does not fit the type u32"),
        (["set", "my.key=5"], 2, "my.key is a new key: give its type"),
        (["set", "my.key"], 2, "my.key is no KEY=VALUE"),
        (["set"], 2, "nothing to set"),
        (["set", "my.key=arr[i32]:[1, \"a\"]"], 2, "item 1 of the array"),
        (["set", "my.key=arr[i32]:[1,"], 2, "the array is not JSON"),
        (["set", "general.alignment=u32:24"], 1, "not a power of two"),
        (["set", "general.architecture=qwen2"], 1, "no key that starts with qwen2."),
        (["set", "--token", "x", "y"], 2, "x is no token ID"),
        (["set", "--token", "9", "y"], 1, "the vocabulary has 4"),
        (["set", "--special", "eos=y"], 1, "no token has the text 'y'"),
        (["set", "--spare", "much"], 2, "no size"),
        (["set", "--from-file", "general.name", "/none"], 1, "/none: does not exist"),
        (["rm", "general.nam"], 1, "did you mean general.name?"),
        (["rm", "w.weigh", "--tensor"], 1, "did you mean w.weight?"),
        (["rename", "a", "b"], 1, "there is no key a"),
        (["get", "a"], 1, "there is no key a"),
        (["undo"], 1, "nothing to take back"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(run, path, args, code, words):
    before = path.read_bytes()
    verb, *rest = args
    found, out, err = run(verb, path, *rest)
    assert (found, out) == (code, "")
    assert words in err
    # Click's own usage errors show the usage first.
    assert err.count("\n") == 1 or err.startswith("Usage:")
    assert path.read_bytes() == before


def test_files_that_cannot_be_edited_are_told_in_one_line(run, path, tmp_path):
    link, v1, out = tmp_path / "link.gguf", tmp_path / "v1.gguf", tmp_path / "out.gguf"
    link.symlink_to(path)
    v1.write_bytes(b"GGUF" + bytes([1, 0, 0, 0]) + bytes(8))
    out.write_text("mine")
    change = "general.name=B model"

    def refused(*args):
        code, stdout, err = run("set", *args)
        assert (code != 0, stdout, err.count("\n")) == (True, "", 1)
        return code, err

    assert "input file" in refused(path, change, "-o", link)[1]
    assert "give --force to replace it" in refused(path, change, "-o", out)[1]
    assert "version 1" in refused(v1, change)[1]
    assert "does not exist" in refused(tmp_path / "none.gguf", change)[1]
    assert "not a regular file" in refused(tmp_path, change)[1]
    with ggufkit.open(path):
        code, err = refused(path, change)
        assert (code, f"process {os.getpid()}" in err) == (1, True)
    path.chmod(0o444)
    assert "read-only" in refused(path, change)[1]


def test_numpy_is_not_imported(path):
    probe = (
        "import sys; from ggufkit.cli import main\n"
        f"main([sys.argv[1], {str(path)!r}, *sys.argv[2:]])\n"
        "assert not {'numpy', 'numba', 'rich', 'hashlib', 'difflib'} & set(sys.modules), sys.modules"
    )
    for args in (
        ["get", "general.name"],
        ["set", "general.name=B model"],
        ["set", "--spare", "1K"],
        ["rename", "general.name", "x"],
        ["rm", "x"],
        ["undo"],
    ):
        subprocess.run([sys.executable, "-c", probe, *args], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def model(tmp_path):
    """A model that runs."""
    write_tiny(tmp_path / "m.gguf", "llama")
    return tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        ("llama.block_count=2", "block_count is 2"),
        ("llama.block_count=4", "block_count is 4"),
        ("llama.block_count=100", "block_count is 100"),
        ("llama.attention.head_count=5", "head"),
        ("llama.attention.head_count=3", "head"),
        ("llama.attention.head_count=8", "head"),
        ("llama.attention.head_count=0", "head_count is 0"),
        ("llama.attention.head_count_kv=1", "attn_k.weight has"),
        ("llama.embedding_length=128", "embedding_length is 128"),
        ("llama.feed_forward_length=95", "ffn_down.weight has"),
        ("tokenizer.ggml.model=str:spm", "tokenizer.ggml.model is spm"),
    ],
)
def test_set_refuses_what_would_not_run(run, model, pair, word):
    before = model.read_bytes()
    code, out, err = run("set", model, pair)
    assert (code, out) == (2, "")
    assert word in err
    assert "--force" in err
    assert model.read_bytes() == before
    assert run("set", model, pair, "--force")[0] == 0
    assert run("undo", model)[0] == 0
    assert model.read_bytes() == before


def test_set_shows_what_was_and_what_is(run, model):
    code, out, _ = run("set", model, "llama.context_length=128", "general.name=str:Other")
    assert code == 0
    assert out.startswith("llama.context_length: 64 -> 128\n")
    assert "general.name: " in out.splitlines()[1]
    assert out.splitlines()[1].endswith(" -> Other")


@pytest.mark.parametrize(
    "key", ["llama.context_lenght", "llama.contextlength", "context_length", "llama.context-length"]
)
def test_a_misspelt_key_gets_a_suggestion(run, model, key):
    code, _, err = run("set", model, f"{key}=5")
    assert code == 2
    assert "did you mean llama.context_length" in err


def test_undo_says_how_many_more(run, model):
    for name in "abc":
        run("set", model, f"general.name=str:{name}")
    outs = [run("undo", model)[1].strip().partition("last edit")[2] for _ in range(3)]
    assert outs == ["; 2 more can be taken back", "; 1 more can be taken back", ""]
    assert run("undo", model)[0] == 1
