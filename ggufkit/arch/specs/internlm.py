"""InternLM 2 and 3."""

from __future__ import annotations

from ggufkit.arch.export import Export, ungrouped
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import split_qkv
from ggufkit.tokenizer.from_checkpoint.variants import internlm2, internlm3

_LAYER = "model.layers.{bid}"
_EXPORT = Export(
    "internlm2",
    "InternLM2ForCausalLM",
    config={"attention_bias": None, "mlp_bias": None, "bias": lambda s: False},
    names={
        "token_embd": "model.tok_embeddings",
        "output": "output",
        "blk.{bid}.attn_output": f"{_LAYER}.attention.wo",
        "blk.{bid}.attn_norm": f"{_LAYER}.attention_norm",
        "blk.{bid}.ffn_norm": f"{_LAYER}.ffn_norm",
        "blk.{bid}.ffn_gate": f"{_LAYER}.feed_forward.w1",
        "blk.{bid}.ffn_down": f"{_LAYER}.feed_forward.w2",
        "blk.{bid}.ffn_up": f"{_LAYER}.feed_forward.w3",
    },
    fused={f"{_LAYER}.attention.wqkv": tuple(f"blk.{{bid}}.attn_{part}" for part in "qkv")},
    undo={".wqkv": ungrouped(lambda s: s.kv_heads)},
    rotated=True,
)

SPECS = (
    Architecture(
        name="internlm2",
        exports=(_EXPORT,),
        models={"InternLM2ForCausalLM": {}},
        metadata=BASE,
        vocabulary=internlm2,
        graph=Graph(),
        transforms=(split_qkv(r"(?<=\.attention\.)wqkv(?=\.)", ("wq", "wk", "wv"), permuted=True),),
    ),
    Architecture(
        name="llama",
        models={"InternLM3ForCausalLM": {}},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=internlm3,
        transforms=PERMUTED,
    ),
)
