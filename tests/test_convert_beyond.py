"""Checkpoints that llama.cpp's converter fails on, or makes files of that llama.cpp does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import (
    BPE_TOKENS,
    FFN,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
    SPM_TOKENS,
    WIDTH,
    Tiny,
    config,
    decoder,
    gated,
    linear,
    llama_layer,
    norm,
    weights,
    write,
)
from tiny_families import FAMILIES

from ggufkit.gguf import reader
from ggufkit.jobs.convert import convert

PRE = "gpt-2"


def converted(tiny: Tiny, folder: Path, type: str = "F32") -> Path:
    return convert(write(tiny, folder / "hf"), folder / "out.gguf", type, pre=PRE, force=True)


def assert_loads(*paths: Path) -> None:
    """llama.cpp loads the files and computes finite logits, but for models of embeddings alone.

    It ends the process on some mistakes: not this one.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", _LOAD, *paths], capture_output=True, text=True, check=False, env=env)
    assert run.stdout.split("\n")[:-1] == [f"{path} True" for path in paths]


_LOAD = """
import sys, llama, numpy as np
for path in sys.argv[1:]:
    with llama.Model(path) as model:
        tokens = np.arange(3, 8, dtype=np.int32)
        print(path, "gemma-embedding" in path or np.isfinite(model.logits(tokens)).all(), flush=True)
"""


def floats(path: Path, name: str) -> np.ndarray:
    with reader.open(path) as model:
        return model.tensors[name].floats()


# The converter's bytes, too, but in sizes, with vocabularies or without tensors that llama.cpp does not take; and
# models that draft, which need another beside them.
NOT_LOADED = {
    *("dots1", "grovemoe", "maple", "orion", "pangu", "plm"),
    *("rwkv6", "rwkv7", "arwkv7", "plamo2", "plamo3", "qwen1", "rugpt3xl", "arctic", "k2-horizon", "deepseek-ocr"),
    *("muse-glimmer", "dots3", "minimax01", "eagle3", "dflash", "dspark"),
}


def test_converted_families_load_in_llama_cpp(tmp_path: Path):
    families = {name: tiny for name, tiny in FAMILIES.items() if name not in NOT_LOADED}
    assert_loads(*(converted(tiny(), tmp_path / name, "F16") for name, tiny in families.items()))


def test_falcon_7b_has_one_key_head_when_its_config_does_not_say(tmp_path: Path):
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}"
        shapes |= dict(norm(f"{at}.input_layernorm", bias=True))
        shapes |= dict(linear(f"{at}.self_attention.query_key_value", WIDTH + 2 * HEAD, WIDTH))
        shapes |= dict(linear(f"{at}.self_attention.dense", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_h_to_4h", 4 * WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_4h_to_h", WIDTH, 4 * WIDTH))
    shapes |= dict(norm("transformer.ln_f", bias=True))
    values: dict[str, Any] = config("FalconForCausalLM", "falcon", multi_query=True, parallel_attn=True)
    del values["num_key_value_heads"], values["intermediate_size"]
    path = converted(Tiny(values, shapes.items()), tmp_path)
    with reader.open(path) as model:
        assert model.metadata["falcon.attention.head_count_kv"] == 1
    assert_loads(path)
    other = converted(Tiny(values | {"num_kv_heads": 1}, shapes.items()), tmp_path / "with")
    assert path.read_bytes() == other.read_bytes()


def test_gpt2_attention_masks_are_left_out(tmp_path: Path):
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (BPE_TOKENS, WIDTH), "wpe.weight": (64, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(norm(f"h.{i}.ln_1", bias=True)) | dict(norm(f"h.{i}.ln_2", bias=True))
        for name, out, into in (
            ("attn.c_attn", 3 * WIDTH, WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"h.{i}.{name}.weight": (into, out), f"h.{i}.{name}.bias": (out,)}
    shapes |= dict(norm("ln_f", bias=True))
    values = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS}
    values |= {"n_head": HEADS, "n_positions": 64, "vocab_size": BPE_TOKENS}
    masks = {f"h.{i}.attn.bias": (1, 1, 64, 64) for i in range(LAYERS)}
    plain = converted(Tiny(values, shapes.items()), tmp_path / "plain")
    masked = converted(Tiny(values, (shapes | masks).items()), tmp_path / "masked")
    assert plain.read_bytes() == masked.read_bytes()
    assert_loads(masked)


def test_stablelm_norms_of_queries_and_keys_are_stacked(tmp_path: Path):
    def layer(at: str, i: int):
        yield from norm(f"{at}.input_layernorm", bias=True)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield from linear(f"{at}.self_attn.{name}_proj", heads * HEAD, WIDTH)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, WIDTH)
        for name, heads in (("q", HEADS), ("k", KV_HEADS)):
            for head in range(heads):
                yield from norm(f"{at}.self_attn.{name}_layernorm.norms.{head}", HEAD)
        yield from gated(f"{at}.mlp")

    values = config("StableLmForCausalLM", "stablelm", qk_layernorm=True, use_parallel_residual=True)
    shapes = dict(decoder(layer, BPE_TOKENS)) | {"model.norm.bias": (WIDTH,)}
    path = converted(Tiny(values, shapes.items(), dtype="F32"), tmp_path)
    name = "model.layers.1.self_attn.q_layernorm.norms.{}.weight"
    expected = np.stack([weights(name.format(head), (HEAD,)) for head in range(HEADS)])
    np.testing.assert_array_equal(floats(path, "blk.1.attn_q_norm.weight"), expected)
    assert_loads(path)


def test_baichuan_fused_projection_is_split_and_permuted(tmp_path: Path):
    def layer(at: str, i: int):
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from linear(f"{at}.self_attn.W_pack", 3 * WIDTH, WIDTH)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, WIDTH)
        yield from gated(f"{at}.mlp")

    values = config("BaichuanForCausalLM", "baichuan", SPM_TOKENS, rms_norm_eps=1e-6, model_max_length=4096)
    del values["num_key_value_heads"]
    path = converted(Tiny(values, decoder(layer, SPM_TOKENS), tokenizer="spm", dtype="F32"), tmp_path)
    packed = weights("model.layers.0.self_attn.W_pack.weight", (3 * WIDTH, WIDTH))
    keys = packed[WIDTH : 2 * WIDTH].reshape(HEADS, 2, HEAD // 2, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
    np.testing.assert_array_equal(floats(path, "blk.0.attn_k.weight"), keys)
    np.testing.assert_array_equal(floats(path, "blk.0.attn_v.weight"), packed[2 * WIDTH :])
    assert_loads(path)


def test_bitnet_names_of_transformers_mean_the_same(tmp_path: Path):
    def layer(norms: tuple[str, str]):
        def shapes(at: str, i: int):
            yield from llama_layer(at, i)
            yield from norm(f"{at}.self_attn.{norms[0]}", WIDTH)
            yield from norm(f"{at}.mlp.{norms[1]}", FFN)

        return shapes

    values = config("BitnetForCausalLM", "llama", SPM_TOKENS, tie_word_embeddings=True)
    names = ("attn_sub_norm", "ffn_sub_norm")
    path = converted(
        Tiny(values, decoder(layer(names), SPM_TOKENS, head=False), tokenizer="spm", dtype="F16"), tmp_path
    )
    levels = np.unique(floats(path, "blk.0.ffn_up.weight"))
    assert len(levels) == 3
    assert levels[0] == -levels[2]
    np.testing.assert_array_equal(
        floats(path, "blk.1.ffn_sub_norm.weight"), weights("model.layers.1.mlp.ffn_sub_norm.weight", (1, FFN))
    )
    assert_loads(path)


def test_t5_may_have_more_decoder_than_encoder_layers(tmp_path: Path):
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (SPM_TOKENS, WIDTH), "lm_head.weight": (SPM_TOKENS, WIDTH)}
    for side, layers in (("encoder", 1), ("decoder", 3)):
        shapes[f"{side}.final_layer_norm.weight"] = (WIDTH,)
        for i in range(layers):
            at = f"{side}.block.{i}.layer"
            attentions = ["SelfAttention"] if side == "encoder" else ["SelfAttention", "EncDecAttention"]
            for n, kind in enumerate(attentions):
                for part in "qkvo":
                    shapes |= dict(linear(f"{at}.{n}.{kind}.{part}", WIDTH, WIDTH))
            if i == 0:
                shapes[f"{at}.0.SelfAttention.relative_attention_bias.weight"] = (32, HEADS)
            last = len(attentions)
            shapes |= {f"{at}.{n}.layer_norm.weight": (WIDTH,) for n in range(last + 1)}
            shapes |= dict(linear(f"{at}.{last}.DenseReluDense.wi", FFN, WIDTH))
            shapes |= dict(linear(f"{at}.{last}.DenseReluDense.wo", WIDTH, FFN))
    values = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": WIDTH, "d_ff": FFN}
    values |= {"d_kv": HEAD, "num_layers": 1, "num_decoder_layers": 3, "num_heads": HEADS, "vocab_size": SPM_TOKENS}
    path = converted(Tiny(values, shapes.items(), tokenizer="spm", dtype="F32"), tmp_path)
    with reader.open(path) as model:
        assert "dec.blk.2.cross_attn_q.weight" in model.tensors
        assert model.metadata["t5.decoder_block_count"] == 3


def test_exaone_epsilon_is_of_rms_norms(tmp_path: Path):
    tiny = FAMILIES["exaone"]()
    tiny.config["layer_norm_epsilon"] = tiny.config.pop("rms_norm_eps")
    path = converted(tiny, tmp_path)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["layer_norm_epsilon"] == 1e-5
    with reader.open(path) as model:
        assert model.metadata["exaone.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert_loads(path)
