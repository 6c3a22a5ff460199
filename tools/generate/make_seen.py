"""Make `fixtures/seen.json`: what DeepSeek-OCR's own code sees of tiles, whose positions in llama.cpp are others.

    python tools/generate/make_seen.py DEEPSEEK_OCR

DEEPSEEK_OCR is a checkout of github.com/deepseek-ai/DeepSeek-OCR; the environment must have PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / place) for place in ("tests/models", "tests/oracles"))]

import numpy as np
import torch
from mmproj_parts import FFN, HEADS, INNER, LAYERS
from tiny_mmproj import write_mmproj
from tiny_mmproj_more import SAM_HEADS, SAM_LAYERS, SAM_WIDTH, some_tiles

import ggufkit


class _Easy(dict[str, Any]):
    __getattr__ = dict.__getitem__


def deepseek_ocr(code: Path) -> np.ndarray:
    """Every 30th row of two tiles: (7, WIDTH)."""
    sys.modules["flash_attn"] = types.SimpleNamespace(flash_attn_qkvpacked_func=None, flash_attn_func=None)  # unused
    sys.modules["easydict"] = types.SimpleNamespace(EasyDict=lambda **values: _Easy(values))
    sys.path.insert(0, str(next(code.rglob("deepencoder")).parent))
    from deepencoder import clip_sdpa, sam_vary_sdpa

    with tempfile.TemporaryDirectory() as scratch:
        write_mmproj(Path(scratch) / "mmproj.gguf", "deepseekocr")
        with ggufkit.open(Path(scratch) / "mmproj.gguf") as gguf:
            weights = {
                name: torch.from_numpy(tensor.floats().reshape(tensor.shape).copy())
                for name, tensor in gguf.tensors.items()
            }
    sam = sam_vary_sdpa.ImageEncoderViT(
        depth=SAM_LAYERS,
        embed_dim=SAM_WIDTH,
        num_heads=SAM_HEADS,
        mlp_ratio=1.5,
        norm_layer=lambda size: torch.nn.LayerNorm(size, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=(2, 5, 8, 11),
        window_size=14,
        out_chans=8,
    )
    for name in ("net_2", "net_3"):
        rows, columns = weights[f"v.sam.{name}.weight"].shape[:2]
        setattr(sam, name, torch.nn.Conv2d(columns, rows, 3, 2, 1, bias=False))
    pairs = (
        *(("v.sam.", ""), (".pos_h.weight", ".rel_pos_h"), (".pos_w.weight", ".rel_pos_w"), ("blk.", "blocks.")),
        *((".pre_ln", ".norm1"), (".post_ln", ".norm2"), ("attn.out", "attn.proj"), ("patch_embd", "patch_embed.proj")),
        ("pos_embd.weight", "pos_embed"),
    )
    sam.load_state_dict(_renamed(weights, "v.sam.", pairs))
    sizes = {"num_layers": LAYERS, "hidden_size": INNER, "num_heads": HEADS, "num_attention_heads": HEADS}
    clip = clip_sdpa.VitModel(clip_sdpa.adict(**{**clip_sdpa.vit_model_cfg, **sizes, "ffn_hidden_size": FFN}))
    pairs = (
        *(
            ("v.blk.", "transformer.layers."),
            (".attn_qkv", ".self_attn.qkv_proj"),
            (".attn_out", ".self_attn.out_proj"),
        ),
        *((".ln1", ".layer_norm1"), (".ln2", ".layer_norm2"), (".ffn_up", ".mlp.fc1"), (".ffn_down", ".mlp.fc2")),
        *(("v.pre_ln", "pre_layrnorm"), ("v.position_embd", "embeddings.position_embedding")),
        ("v.class_embd", "embeddings.class_embedding"),
    )
    own = {name: value for name, value in weights.items() if not name.startswith(("v.sam.", "v.image", "v.view"))}
    missing = clip.load_state_dict(_renamed(own, "v.", pairs), strict=False)
    assert set(missing.missing_keys) == {"embeddings.position_ids", "embeddings.patch_embedding.weight"}, missing
    assert not missing.unexpected_keys, missing
    with torch.inference_mode():
        tiles = torch.from_numpy(some_tiles())
        first = sam(tiles)
        second = clip(tiles, first)
        both = torch.cat((second[:, 1:], first.flatten(2).permute(0, 2, 1)), dim=-1)
        rows = both @ weights["mm.model.fc.weight"].T + weights["mm.model.fc.bias"]
    count, n = len(rows), int(rows.shape[1] ** 0.5)
    grid = rows.reshape(1, count, n, n, -1).permute(0, 2, 1, 3, 4).reshape(n, count * n, -1)
    ends = weights["v.image_newline"][None, None].expand(n, 1, -1)
    result: np.ndarray = torch.cat([grid, ends], dim=1).reshape(-1, grid.shape[-1]).numpy()[::30]
    return result


def _renamed(weights: dict[str, Any], start: str, pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    found = {}
    for name, value in weights.items():
        if name.startswith(start):
            own = name
            for old, new in pairs:
                own = own.replace(old, new)
            found[own] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deepseek_ocr", type=Path)
    rows = deepseek_ocr(parser.parse_args().deepseek_ocr)
    rounded = [[round(float(x), 6) for x in row] for row in rows]
    (ROOT / "fixtures" / "seen.json").write_text(json.dumps({"deepseekocr": rounded}) + "\n")


if __name__ == "__main__":
    main()
