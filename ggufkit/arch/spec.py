"""What an architecture is made of.

    LLAMA = Architecture(
        name="llama",
        models={"LlamaForCausalLM": {...}},             # Hugging Face class → defaults of its config
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        transforms=(permute_rope("q_proj", lambda config: config.heads), …),
        vocabulary=sentencepiece,
    )

Everything that converts or runs a model reads these; nothing outside `arch/` compares architecture names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import Metadata, Row
from ggufkit.arch.mlx_checkpoint import from_mlx
from ggufkit.arch.names import name_map
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config, Default
from ggufkit.errors import CheckpointError, printable
from ggufkit.policy.traits import PLAIN, Traits
from ggufkit.tensors.tensor import Tensor

__all__ = ["Architecture", "Transform", "Vocabulary"]

# A step on the stream of checkpoint tensors: renames, permutes, stacks, splits, adds or drops some.
Transform = Callable[[Iterable[Tensor], Config], Iterator[Tensor]]

# Yields the `tokenizer.*` metadata of a checkpoint.
Vocabulary = Callable[[Checkpoint, Config], Metadata]

# Parts of models that see, hear or speak; a text model's file goes without.
_OTHER_SENSES = re.compile(
    r"^(mlp|vit\.|vpm\.|siglip2\.|conformer\.|merger\.|resampler\.|sound_encoder\.|sound_projection\.|speech_embeddings\.)"
    r"|(visual|vision|audio|talker|token2wav|code2wav|projector|patch_merger|patch_merge_mlp|model\.connector)\."
    r"|vision_|audio_|pre_mm_projector_norm|image_newline|view_seperator|patch_embed"
)


@dataclass(frozen=True)
class Architecture:
    """How checkpoints of one architecture become GGUF.

    Attributes
    ----------
    name : `general.architecture`.
    models : Hugging Face class → defaults of its config, for values that `config.json` leaves out.
    metadata : functions of (architecture, config) that yield typed pairs, in file order.
    vocabulary : yields the `tokenizer.*` metadata of a checkpoint.
    transforms : steps on the stream of tensors, in order, before names are mapped.
    names : checkpoint name → GGUF name with ``{bid}`` for the layer, for what the table in
        `arch/names` lacks; they come before it.
    skip : endings of checkpoint names that GGUF does without.
    blocks : the number of layers for which there may be names.
    preamble : metadata that comes before `general.type`.
    when : tells the variants of a class apart: which of its configs are of this architecture.
    types : pattern of GGUF names → the type that the converter always gives to such tensors; see `policy.outtype`.
    graph : how it computes; None for one that is only converted.
    traits : what is special about quantizing it.
    drafts : it drafts for another model, whose checkpoint it needs; see `Config.base` and `Checkpoint.base`.
    exports : how a GGUF becomes a checkpoint again, one for each class of checkpoints that it may become.
    """

    name: str
    models: Mapping[str, Mapping[str, Default]]
    metadata: tuple[Row, ...]
    vocabulary: Vocabulary
    transforms: tuple[Transform, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
    blocks: Callable[[Config], int] = lambda config: config.layers
    preamble: tuple[Row, ...] = ()
    when: Callable[[Config], bool] = lambda config: True
    types: Mapping[str, str] = field(default_factory=dict)
    graph: Graph | None = None
    traits: Traits = PLAIN
    drafts: bool = False
    exports: tuple[Export, ...] = ()

    def tensors(self, source: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        """The checkpoint's tensors, transformed, with their GGUF names and in the checkpoint's order."""
        layers = self.blocks(config)
        stream, ready = from_mlx(self.exports, _text_tensors(source), layers)
        for transform in self.transforms:
            stream = transform(stream, config)
        rename = self._name_map(layers)
        seen: dict[str, str] = {}
        for tensor in chain(stream, ready):
            if tensor.name.endswith(self.skip):
                continue
            name = rename(tensor.name)
            if name is None:
                raise CheckpointError(
                    f"no {self.name} model of {layers} layers has a tensor {printable(tensor.name)}; "
                    "is config.json the right one?"
                )
            if name in seen:
                raise CheckpointError(
                    f"{printable(tensor.name)} and {printable(seen[name])} would both become {printable(name)}"
                )
            seen[name] = tensor.name
            yield tensor.renamed(name)

    def _name_map(self, layers: int) -> Callable[[str], str | None]:
        """Checkpoint name → GGUF name, by `names` and the table of all names; GGUF's own names stay."""
        own = {
            pattern.format(bid=bid): name.format(bid=bid)
            for pattern, name in self.names.items()
            for bid in range(layers if "{bid}" in pattern else 1)
        }
        known = name_map(self.name, layers)
        return lambda name: own.get(name) or known(name)


def _text_tensors(source: Iterable[Tensor]) -> Iterator[Tensor]:
    """The language model's tensors, under the names that they have in a checkpoint of nothing else."""
    for tensor in source:
        if _OTHER_SENSES.search(tensor.name) is None:
            name = tensor.name.replace("language_model.", "")
            yield tensor.renamed(name.replace("e_score_correction_bias", "e_score_correction.bias"))
