"""The language models of Qwen2-VL, 2.5-VL, 2.5-Omni and of Qwen3-VL, Qwen3-Omni, Qwen3-ASR."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, pooling, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.qwen2 import EXPERT_LENGTHS, EXPERTS
from ggufkit.arch.transforms import rename, transpose
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import Vocabulary, first_of

_QWEN2 = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
_QWEN3 = {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "head_dim": 128}

_THINKER = rename((r"thinker\.", ""))

# Qwen3-ASR has no chat template of its own.
_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _deepstack(config: Config) -> int:
    """Layers of the vision tower whose outputs are added to the first layers of the language model."""
    holder = config.part("thinker_config") if "thinker_config" in config else config
    return len(holder.part("vision_config").get("deepstack_visual_indexes", default=[]))


def _ends_turns(vocabulary: Vocabulary, template: str | None = None) -> Vocabulary:
    """A vocabulary whose texts begin and end with <|im_end|>."""

    def ended(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        yield from vocabulary(checkpoint, config)
        if template is not None:
            yield "tokenizer.chat_template", Value(ValueType.STRING, template)
        decoder = (checkpoint.json("tokenizer_config.json") or {}).get("added_tokens_decoder")
        for token, entry in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict) and entry.get("content") == "<|im_end|>" and str(token).isdigit():
                yield "tokenizer.ggml.bos_token_id", Value(ValueType.UINT32, int(token))
                yield "tokenizer.ggml.eos_token_id", Value(ValueType.UINT32, int(token))
                return

    return ended


_ANY = first_of(sentencepiece, bpe)

# Experts all in one, stored (in, out).
_PACKED_EXPERTS = (
    EXPERTS[0],
    transpose(r"mlp\.experts\.(gate_up|down)_proj(\.weight)?$"),
    *EXPERTS[1:],
)

SPECS = (
    Architecture(
        name="qwen2vl",
        models=dict.fromkeys(
            (
                "Qwen2VLForConditionalGeneration",
                "Qwen2VLModel",
                "Qwen2_5OmniModel",
                "Qwen2_5_VLForConditionalGeneration",
            ),
            _QWEN2,
        ),
        metadata=BASE,
        vocabulary=_ANY,
        graph=Graph(rope="neox"),
        transforms=(_THINKER,),
    ),
    Architecture(
        name="qwen3vl",
        models={"Qwen3VLForConditionalGeneration": _QWEN3},
        metadata=(*BASE, pooling, uint("n_deepstack_layers", _deepstack)),
        vocabulary=_ANY,
        graph=Graph(rope="neox", mixed_sections=True, head_softmax=True),
        transforms=(_THINKER,),
    ),
    Architecture(
        name="qwen3vl",
        models={"Qwen3ASRForConditionalGeneration": _QWEN3},
        metadata=(*BASE, pooling, uint("n_deepstack_layers", lambda config: 0)),
        vocabulary=_ends_turns(_ANY, _CHATML),
        graph=Graph(rope="neox", mixed_sections=True, head_softmax=True),
        transforms=(_THINKER,),
    ),
    Architecture(
        name="qwen3vlmoe",
        models={"Qwen3VLMoeForConditionalGeneration": _QWEN3},
        metadata=(*BASE, *EXPERT_LENGTHS, uint("n_deepstack_layers", _deepstack)),
        vocabulary=bpe,
        graph=Graph(rope="neox", mixed_sections=True),
        transforms=(_THINKER, *_PACKED_EXPERTS),
    ),
    Architecture(
        name="qwen3vlmoe",
        models={"Qwen3OmniMoeForConditionalGeneration": _QWEN3},
        metadata=(*BASE, *EXPERT_LENGTHS, uint("n_deepstack_layers", lambda config: 0)),
        vocabulary=_ends_turns(bpe),
        graph=Graph(rope="neox", mixed_sections=True),
        transforms=(_THINKER, *_PACKED_EXPERTS),
    ),
)
