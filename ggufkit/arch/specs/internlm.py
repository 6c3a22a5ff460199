"""InternLM 2 and 3."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import split_qkv
from ggufkit.tokenizer.from_checkpoint.variants import internlm2, internlm3

SPECS = (
    Architecture(
        name="internlm2",
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
