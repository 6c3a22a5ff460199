"""Checkpoints as mlx-lm has them: which of their arrays are not the published ones, there and back.

mlx-lm keeps many arrays as GGUF does and the published checkpoint does not: experts of a layer in one stack, norms with
their 1, convolutions, the two halves of a latent attention's projection. So what a spec says of it (`Mlx`) is GGUF's
name and mlx-lm's of such an array, and the same table is read in both directions (`arch.mlx_checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufkit.arch.export import Source
    from ggufkit.tensors.tensor import Tensor

__all__ = ["PLAIN_MLX", "Mlx"]


@dataclass(frozen=True)
class Mlx:
    """What mlx-lm has otherwise than the checkpoint of an `Export`.

    Attributes
    ----------
    model_type : by which mlx-lm finds its class; None for the checkpoint's.
    config : settings over the export's; None leaves one out.
    names : GGUF name → mlx-lm's, as in `Export.names`, of arrays that it has as GGUF has them. Stacks of experts need
        not be said: those that a checkpoint has one by one are ``switch_mlp`` here.
    prefix : of all its names.
    skip : which of its names it does without.
    called : instead of the export's.
    nested : the settings are `text_config`.
    headed : there is an output matrix even where it is the embedding's.
    when : which GGUF files it runs as they are meant, of those that the export takes.
    """

    model_type: str | None = None
    config: Mapping[str, Callable[[Source], Any] | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    skip: Callable[[Source, str], bool] = lambda s, name: False
    called: Callable[[Source, Tensor], str] | None = None
    nested: bool = False
    headed: bool = False
    when: Callable[[Source], bool] = lambda s: True


# mlx-lm's arrays are the checkpoint's, but for stacks of experts.
PLAIN_MLX = Mlx()
