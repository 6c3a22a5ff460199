"""Images in prompts: llama.cpp's embeddings, tokens and logits; what is damaged or does not fit is one line."""

from __future__ import annotations

import base64
import io
import json
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama
import mtmd
import numpy as np
import pytest
from tiny_mmproj import EARS, PROJECTORS, some_mel, write_mmproj, write_reader
from tiny_mmproj_more import some_tiles

import ggufkit
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.convert import convert
from ggufkit.media.sounds import open_sound
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.seen import Seen

Image = pytest.importorskip("PIL.Image")
TEXT = "See <__media__> now"
LARGE = "deepseekocr", "deepseekocr2"  # whose pictures are always large
FAR = Value(ValueType.ARRAY, [9], ValueType.INT32)  # blocks that there are not


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of coarse noise."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def sound(seconds: float, rate: int = 16_000, channels: int = 1, width: int = 2, seed: int = 0) -> bytes:
    """A WAV file of tones that fade."""
    t = np.arange(int(seconds * rate)) / rate
    tones = np.random.default_rng(seed).uniform(80, 3000, 4)
    wanted = np.sin(2 * np.pi * tones[:, None] * t).mean(axis=0) * np.exp(-t) * 0.8
    whole = np.round(np.repeat(wanted, channels) * ((1 << 8 * width - 1) - 1)).astype("<i4")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        raw = (whole + 128 if width == 1 else whole).view(np.uint8).reshape(-1, 4)[:, :width]
        file.writeframes(raw.tobytes())
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for kind in PROJECTORS:
        write_mmproj(folder / f"mmproj-{kind}.gguf", kind)
        write_reader(folder / f"{kind}.gguf", kind)
    return folder


def parts_of(model: Any, prompt: list[int]) -> list[list[int] | np.ndarray]:
    """Runs of tokens, and what was seen, as `mtmd.Chunks.parts`."""
    found: list[list[int] | np.ndarray] = []
    for lo, hi, seen, _ in model.shown.parts(np.array(prompt)):
        found.append(prompt[lo:hi] if seen is None else np.concatenate([seen.rows, *seen.deep], axis=1))
    return found


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def divergence(own: np.ndarray, theirs: np.ndarray) -> float:
    a, b = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64)) for x in (own, theirs))
    return float((np.exp(b) * (b - a)).sum())


@pytest.mark.parametrize("size", [(70, 41), (33, 91)])
@pytest.mark.parametrize("kind", [kind for kind in PROJECTORS if kind not in EARS and kind not in LARGE])
def test_images_are_what_the_reference_sees(files, kind, size):
    data = picture(*size)
    compare(files, kind, data, pixels(data))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("lfm2", (540, 270)),
        ("minicpmv4_6", (200, 150)),
        ("llama4", (150, 70)),
        ("internvl", (70, 300)),
        ("cohere2v", (150, 120)),
        ("glm5v", (300, 200)),
        ("muse-glimmer", (150, 9)),
        ("step3vl", (300, 200)),
    ],
)
def test_large_images_are_cut_as_the_reference_cuts_them(files, kind, size):
    data = picture(*size)
    compare(files, kind, data, pixels(data), read=False)


@pytest.mark.parametrize(("kind", "size"), [("deepseekocr", (70, 41)), ("deepseekocr2", (800, 300))])
def test_images_of_two_encoders_are_what_the_reference_sees(files, kind, size):
    """Of the first the whole image, that is: of tiles it takes other positions than the authors."""
    data = picture(*size)
    compare(files, kind, data, pixels(data))


def test_tiles_are_what_the_authors_see(files, fixtures):
    kind = "deepseekocr"
    expected = np.array(json.loads((fixtures / "seen.json").read_text())[kind], np.float32)
    tiles = np.concatenate(list(some_tiles()), axis=2).transpose(1, 2, 0)
    row = np.round((tiles / 4 + 0.5) * 255).astype(np.uint8)
    with ggufkit.load(files / f"{kind}.gguf", mmproj=files / f"mmproj-{kind}.gguf", backend="cpu") as model:
        cut = model.media.pictures.layout(pixels(picture(700, 300)))
        rows = model.media.pictures.encode(row).rows
    assert [part.shape[:2] for part in cut if not isinstance(part, str)] == [(640, 1280), (1024, 1024)]
    assert len(rows) == 210
    assert least_cosine(rows[::30], expected) > 0.99999


@pytest.mark.parametrize("size", [(60, 41), (150, 120)])
def test_resampled_images_are_what_the_reference_sees(fixtures, tmp_path, size):
    """Rows alone: of tokens that the vocabulary lacks the reference puts −1."""
    reader, encoder, data = tmp_path / "model.gguf", tmp_path / "mmproj.gguf", picture(*size)
    convert(fixtures / "pylib-llama", reader, "F16")
    write_mmproj(encoder, "resampler")
    with llama.Model(reader, 1024) as theirs, mtmd.Media(theirs, encoder) as media:
        expected = [part for part in media.chunks(TEXT, [pixels(data)]).parts() if not isinstance(part, list)]
    with ggufkit.load(reader, mmproj=encoder, backend="cpu") as model:
        found = [part for part in parts_of(model, model.tokens(TEXT, [data])) if not isinstance(part, list)]
    assert (len(found) > 1) == (max(size) > 64)
    assert min(least_cosine(*pair) for pair in zip(found, expected, strict=True)) > 0.99999
    write_mmproj(encoder, "resampler", metadata={"clip.minicpmv_version": 2})
    with pytest.raises(GgufkitError, match="minicpmv_version must be"):
        ggufkit.load(reader, mmproj=encoder, backend="cpu")


@pytest.mark.parametrize("kind", [kind for kind in EARS if kind != "voxtral"])
def test_sound_is_what_the_reference_hears(files, kind):
    data = sound(1.3)
    compare(files, kind, data, open_sound(data))


@pytest.mark.parametrize(
    ("kind", "seconds"), [("gemma4a", 0.004), ("gemma4a", 31.0), ("qwen3a", 0.004), ("qwen3a", 9.1), ("lfm2a", 3.3)]
)
def test_sound_of_any_length_is_heard(files, kind, seconds):
    data = sound(seconds)
    compare(files, kind, data, open_sound(data), read=False)


def test_sound_too_short_for_its_deviation_is_one_line(files):
    model = ggufkit.load(files / "lfm2a.gguf", mmproj=files / "mmproj-lfm2a.gguf", backend="cpu")
    with model, pytest.raises(UsageError, match="64 samples is too short"):
        model.tokens(TEXT, [sound(0.004)])


def test_sound_that_the_reference_refuses_is_what_transformers_hears(files, fixtures):
    expected = np.array(json.loads((fixtures / "heard.json").read_text())["voxtral"], np.float32)
    with ggufkit.load(files / "voxtral.gguf", mmproj=files / "mmproj-voxtral.gguf", backend="cpu") as model:
        rows = model.media.sounds.encode(some_mel()).rows
    assert len(rows) == 375
    assert least_cosine(rows[::75], expected) > 0.99999


def compare(files: Path, kind: str, data: bytes, raw: np.ndarray, read: bool = True) -> None:
    """Tokens and rows of a file in a prompt, and if `read` what is made of the reference's own rows: positions, logits.

    llama.cpp is given `raw`. Rows differ by GELU's table of float16.
    """
    paths = files / f"{kind}.gguf", files / f"mmproj-{kind}.gguf"
    theirs = llama.Model(paths[0], 1024, cache=(llama.F32, llama.F32), flash_attn_type=0)
    with theirs, mtmd.Media(theirs, paths[1]) as media:
        chunks = media.chunks(TEXT, [raw])
        expected, logits, end = chunks.parts(), media.logits(chunks) if read else np.empty(0), media.end
    with ggufkit.load(paths[0], mmproj=paths[1], backend="cpu") as model:
        prompt = model.tokens(TEXT, [data])
        runs = list(model.shown.parts(np.array(prompt)))
        for (lo, hi, seen, _), part in zip(runs, expected, strict=True):
            if seen is None:
                assert prompt[lo:hi] == part
            elif not np.isnan(part).any():  # of row ends llama.cpp multiplies garbage by 0
                own = np.concatenate([seen.rows, *seen.deep], axis=1)
                assert own.shape == part.shape
                assert least_cosine(own, part) > 0.99999
                seen.rows, *seen.deep = np.split(part, 1 + len(seen.deep), axis=1)
        if not read:
            return
        cache = model.new_cache(1024, "F32", "F32")
        own = model.forward(prompt, cache)
        assert cache.position(len(cache)) == end
        assert np.isnan(logits).any() or divergence(own, logits) < 1e-6


@pytest.mark.parametrize("kind", ["gemma3", "qwen3vl_merger"])
def test_images_may_be_read_in_any_pieces(files, kind):
    """Of a prompt in pieces, beside another, or continued, the last logits are the same bits."""
    with ggufkit.load(files / f"{kind}.gguf", mmproj=files / f"mmproj-{kind}.gguf", backend="cpu") as model:
        first, second = (model.tokens(TEXT, [picture(60, 50, seed)]) for seed in (1, 2))
        expected = model.forward(first, model.new_cache(128))
        caches = [model.new_cache(128) for _ in range(3)]
        together = model.step([Piece(caches[0], first), Piece(caches[1], second)])
        assert np.array_equal(together[0], expected)
        seen = [i for i, token in enumerate(first) if token < 0]
        cuts = [0, seen[0], seen[-1] + 1, len(first)]
        if kind == "qwen3vl_merger":
            cuts.insert(2, seen[0] + 3)  # in the middle of the image
        for lo, hi in pairwise(cuts):
            last = model.forward(first[lo:hi], caches[2])
        assert np.array_equal(last, expected)
        copied = caches[2].copy(seen[-1] + 1)
        assert copied.position(len(copied)) == caches[2].position(len(copied))
        assert np.array_equal(model.forward(first[seen[-1] + 1 :], copied), expected)


def test_images_that_were_seen_are_known_again(files):
    kind = "qwen3vl_merger"
    with ggufkit.load(files / f"{kind}.gguf", mmproj=files / f"mmproj-{kind}.gguf", backend="cpu") as model:
        a, b = picture(60, 50, 1), picture(60, 50, 2)
        first, again, other = (model.tokens(TEXT, [data]) for data in (a, a, b))
        assert first == again != other
        cache = model.new_cache(128)
        generation = model.generate(first, cache=cache, max_tokens=4, temperature=0)
        text = "".join(generation)
        repeated = model.generate(again, cache=cache, max_tokens=4, temperature=0)
        assert "".join(repeated) == text
        assert repeated.reused == len(first) - 1
        changed = model.generate(other, cache=cache, max_tokens=4, temperature=0)
        list(changed)
        assert changed.reused == next(i for i, token in enumerate(other) if token < 0)
        saved = model.new_cache(128)
        saved.load(cache.save())
        assert all(token >= 0 for token in saved.tokens)


def test_positions_go_on_after_an_image():
    seen = Seen(np.zeros((6, 4), np.float32), grid=(2, 3))
    assert seen.axes(5)[:, :3].tolist() == [[5, 5, 5], [5, 5, 6], [5, 5, 7], [5, 6, 5], [5, 6, 6], [5, 6, 7]]
    assert seen.advance == 3


def test_positions_of_an_image_in_a_frame():
    """Those of transformers: in time as of tokens, by column, by row, and how many images are before it."""
    seen = Seen(np.zeros((8, 4), np.float32), grid=(2, 2), framed=True)
    inner = [[6, 0, 0, 1], [7, 1, 0, 1], [8, 2, 0, 1], [9, 0, 1, 1], [10, 1, 1, 1], [11, 2, 1, 1]]
    assert seen.axes(5, 1).tolist() == [[5] * 4, *inner, [12] * 4]
    assert seen.advance == 8


def test_markers_without_files_and_files_without_markers(files):
    with ggufkit.load(files / "gemma3.gguf", mmproj=files / "mmproj-gemma3.gguf", backend="cpu") as model:
        with pytest.raises(UsageError, match="2 places for images, and there are 1"):
            model.tokens("<__media__> <__media__>", [picture(8, 8)])
        in_front, marked = (model.tokens(text, [picture(8, 8)]) for text in ("now", "<__media__>now"))
        assert in_front == marked
        with pytest.raises(UsageError, match="is no token"):
            model.forward([1, -5000], model.new_cache(8))
    with ggufkit.load(files / "gemma3.gguf", backend="cpu") as model, pytest.raises(UsageError, match="mmproj"):
        model.tokens(TEXT, [picture(8, 8)])


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("internvl", {"tensors": {"v.position_embd.weight": None}}, "v.position_embd.weight is missing"),
        ("llama4", {"tensors": {"v.class_embd": (31,)}}, "v.class_embd has the shape 31"),
        ("qwen3a", {"tensors": {"a.conv2d.2.bias": (3, 1, 1)}}, "a.conv2d.2.bias has the shape 3 × 1 × 1"),
        (
            "gemma4a",
            {"tensors": {"a.blk.1.conv_dw.weight": (32, 4)}},
            "conv_dw.weight has the shape 32 × 4, not 32 × 5",
        ),
        ("lfm2a", {"metadata": {"clip.audio.attention.head_count": 3}}, "head_count must divide"),
        ("kimik25", {"tensors": {"v.position_embd.weight": (8, 10, 31)}}, "not any × any × 32"),
        ("exaone4_5", {"metadata": {"clip.vision.attention.head_count_kv": 3}}, "head_count_kv must"),
        ("youtuvl", {"metadata": {"clip.vision.wa_layer_indexes": FAR}}, "wa_layer_indexes must be blocks"),
        ("glm5v", {"metadata": {"clip.vision.image_max_pixels": 1}}, "image_max_pixels cannot be 1"),
        ("gemma4uv", {"tensors": {"v.patch_norm.1.weight": (31,)}}, "v.patch_norm.1.weight has the shape 31"),
        ("deepseekocr", {"tensors": {"v.sam.net_3.weight": (31, 12, 3, 3)}}, "gives rows of 31 numbers, not 32"),
        ("deepseekocr", {"metadata": {"clip.vision.sam.head_count": 3}}, "sam.head_count must divide"),
        ("gemma3nv", {"metadata": {"clip.vision.embedding_length": 65}}, "embedding_length is 65"),
        ("gemma3nv", {"tensors": {"v.blk.3.1.attn.key.proj.weight": (5, 20, 1, 1)}}, "no heads of"),
        ("kimivl", {"tensors": {"v.position_embd.weight": (3, 32)}}, "has 3 rows, which are no square"),
        ("qwen3vl_merger", {"metadata": {"clip.vision.is_deepstack_layers": 3}}, "is_deepstack_layers must be a list"),
        ("voxtral", {"metadata": {"clip.audio.projector.stack_factor": 65}}, "stack_factor must be"),
        ("cohere2v", {"metadata": {"clip.vision.preproc_max_tiles": 1 << 20}}, "preproc_max_tiles must be"),
    ],
)
def test_other_encoders_that_cannot_run_are_refused(files, tmp_path, kind, changes, message):
    write_mmproj(tmp_path / "mmproj.gguf", kind, **changes)
    with pytest.raises(GgufkitError, match=message):
        ggufkit.load(files / f"{kind}.gguf", mmproj=tmp_path / "mmproj.gguf", backend="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"clip.vision.patch_size": 0}}, "patch_size must be"),
        ({"metadata": {"clip.vision.patch_size": 9}}, "has the shape"),
        ({"metadata": {"clip.vision.attention.head_count": 5}}, "head_count must divide"),
        ({"metadata": {"clip.vision.embedding_length": 1 << 30}}, "embedding_length must be"),
        ({"metadata": {"clip.projector_type": "ldpv2"}}, "the projector ldpv2 cannot be run"),
        ({"metadata": {"clip.vision.image_std": None}}, "image_std must be three numbers"),
        ({"metadata": {"clip.vision.projection_dim": 65}}, "projection_dim is 65"),
        ({"metadata": {"clip.has_vision_encoder": False}}, "no encoder that is known"),
        ({"tensors": {"v.blk.1.ln1.weight": (31,)}}, "has the shape 31, not 32"),
        ({"tensors": {"mm.soft_emb_norm.weight": None}}, "mm.soft_emb_norm.weight is missing"),
        ({"tensors": {"v.strange.weight": (4,)}}, "nothing is known about the tensor v.strange.weight"),
    ],
)
def test_encoders_that_cannot_run_are_refused(files, tmp_path, changes, message):
    write_mmproj(tmp_path / "mmproj.gguf", "gemma3", **changes)
    with pytest.raises(GgufkitError, match=message):
        ggufkit.load(files / "gemma3.gguf", mmproj=tmp_path / "mmproj.gguf", backend="cpu")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (picture(60, 50)[:200], "is not an image"),
    ],
)
def test_damaged_images_are_one_line(files, data, message):
    with ggufkit.load(files / "gemma3.gguf", mmproj=files / "mmproj-gemma3.gguf", backend="cpu") as model:
        with pytest.raises(UsageError, match=message) as caught:
            model.tokens(TEXT, [data])
        assert "\n" not in str(caught.value)


def test_run_shows_an_image(files, tmp_path, capsys):
    from ggufkit.cli import main

    (tmp_path / "a.png").write_bytes(picture(30, 20))
    arguments = ["run", str(files / "gemma3.gguf"), "-p", "See", "-n", "2", "--temp", "0", "--backend", "cpu"]
    main([*arguments, "--mmproj", str(files / "mmproj-gemma3.gguf"), "--image", str(tmp_path / "a.png")])
    assert capsys.readouterr().out.startswith("See")


def test_the_server_is_shown_images_in_the_body(files, tmp_path):
    """The answer of both dialects is that of the same prompt in Python; addresses are refused."""
    pytest.importorskip("starlette")
    from served import TEMPLATE, Client, serving

    kind, data = "gemma3", picture(60, 50)  # its rows see each other, so pieces of prompts must not cut them
    write_reader(tmp_path / "model.gguf", kind, TEMPLATE)
    encoder = files / f"mmproj-{kind}.gguf"
    said = "<|im_start|>user\n<__media__>What?<|im_end|>\n<|im_start|>assistant\n"
    with ggufkit.load(tmp_path / "model.gguf", mmproj=encoder, backend="cpu") as model:
        expected = "".join(model.generate(said, media=[data], max_tokens=6, temperature=0))
    plain = base64.b64encode(data).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{plain}"}}
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": plain}}
    text = {"type": "text", "text": "What?"}
    wishes = {"max_tokens": 6, "temperature": 0}
    with serving(tmp_path / "model.gguf", {"prompt_piece": 3}, mmproj=encoder) as address:
        client = Client(address)

        def asked(path: str, part: dict[str, Any]) -> tuple[int, Any]:
            messages = [{"role": "user", "content": [part, text]}]
            status, _, answer = client.ask("POST", path, {"messages": messages, **wishes})
            return status, json.loads(answer)

        for _ in range(2):  # the second time from the cache
            status, answer = asked("/v1/chat/completions", url)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, expected)
            status, answer = asked("/v1/messages", block)
            assert (status, answer["content"][0]["text"]) == (200, expected)
        for path, part, message in (
            ("/v1/chat/completions", {**url, "image_url": {"url": "http://127.0.0.1/a.png"}}, "fetches nothing"),
            ("/v1/chat/completions", {**url, "image_url": {"url": "data:image/png;base64,!"}}, "not base64"),
            ("/v1/chat/completions", {**url, "image_url": {"url": "data:image/png;base64,AAAA"}}, "not an image"),
            ("/v1/chat/completions", {"type": "text", "text": "\ue0f0"}, "U+E0F0"),
            ("/v1/messages", {**block, "source": {"type": "url", "url": "http://x/y.png"}}, "fetches nothing"),
        ):
            status, answer = asked(path, part)
            assert status == 400
            assert message in answer["error"]["message"]
    with serving(tmp_path / "model.gguf") as address:
        body = {"messages": [{"role": "user", "content": [url, text]}]}
        status, answer = Client(address).fail("/v1/chat/completions", **body)
        assert (status, "without encoders" in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize(("rate", "channels", "width"), [(16_000, 1, 1), (16_000, 2, 3), (44_100, 2, 2), (8_000, 1, 4)])
def test_sound_is_the_same_at_any_rate(rate, channels, width):
    expected, found = open_sound(sound(0.5)), open_sound(sound(0.5, rate, channels, width))
    assert abs(len(found) - len(expected)) <= 1
    n = min(len(found), len(expected)) - 200  # the end is an edge
    assert np.abs(found[200:n] - expected[200:n]).max() < (0.02 if width == 1 else 0.003)


@pytest.mark.parametrize(
    "data", [b"RIFF\0\0\0\0WAVE", sound(0.1)[:30], b"RIFF\xff\xff\xff\xffWAVEfmt " + bytes(range(200)), sound(0)]
)
def test_damaged_sound_is_one_line(files, data):
    with ggufkit.load(files / "qwen2a.gguf", mmproj=files / "mmproj-qwen2a.gguf", backend="cpu") as model:
        with pytest.raises(UsageError) as caught:
            model.tokens(TEXT, [data])
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="no encoder of images"):
            model.tokens(TEXT, [picture(8, 8)])


def test_encoders_run_on_mlx_as_on_the_cpu(files):
    pytest.importorskip("mlx.core")
    pictures = {"qwen2.5vl_merger": (90, 70), "gemma4v": (60, 90), "llama4": (60, 50), "internvl": (60, 50)}
    media = {kind: picture(*size) for kind, size in pictures.items()}
    media |= dict.fromkeys(("qwen2a", "voxtral", "glma", "gemma4a", "qwen3a", "lfm2a"), sound(0.5))
    for kind, data in media.items():
        rows = []
        for backend in ("cpu", "mlx"):
            paths = files / f"{kind}.gguf", files / f"mmproj-{kind}.gguf"
            with ggufkit.load(paths[0], mmproj=paths[1], backend=backend) as model:
                prompt = model.tokens(TEXT, [data])
                rows.append(next(part for part in parts_of(model, prompt) if not isinstance(part, list)))
                logits = model.forward(prompt, model.new_cache(1024, "F32", "F32"))
                rows.append(logits[None])
        assert least_cosine(rows[0], rows[2]) > 0.9999
        assert divergence(rows[1][0], rows[3][0]) < 1e-4
