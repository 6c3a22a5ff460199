"""What llama-quantize knows of one architecture. The architectures' own files fill this in."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PLAIN", "Traits"]


@dataclass(frozen=True)
class Traits:
    """What is special about quantizing an architecture.

    Attributes
    ----------
    layers_of_70b : the number of layers by which llama.cpp calls a model "70B", or None.
    older_65b : one of so many layers whose heads share no keys is the older 65B.
    falcon_mix : the presets of Falcon: attention's output stays small, ffn_down gets less.
    kept : parts of the names of tensors that are never quantized.
    eight_bit : parts of the names of tensors that are Q8_0 in every quantized type.
    stacks_are_experts : False where other matrices are stacked, too.

    Source: `load_arch_hparams` in src/models/, `llama_tensor_get_type_impl` and `tensor_allows_quantization` in
    src/llama-quant.cpp of llama.cpp.
    """

    layers_of_70b: int | None = None
    older_65b: bool = False
    falcon_mix: bool = False
    kept: tuple[str, ...] = ()
    eight_bit: tuple[str, ...] = ()
    stacks_are_experts: bool = True


# Of most architectures.
PLAIN = Traits()
