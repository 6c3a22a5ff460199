"""How a model is to be run, as far as memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.errors import UsageError, printable
from ggufkit.runtime.kv.types import CENTRED, type_named

__all__ = ["ENGINES", "Setup"]

ENGINES = ("cpu", "mlx", "llama.cpp")


@dataclass(frozen=True)
class Setup:
    """What a run is asked to be.

    Attributes
    ----------
    engine : ``"cpu"`` and ``"mlx"``, which are this package's backends, or ``"llama.cpp"``.
    context : tokens of a conversation; with `unified` of all together.
    slots : conversations at a time.
    unified : llama.cpp: they share one pool of tokens.
    keys, values : types of the cache, of `runtime.kv.types`.
    batch, ubatch : llama.cpp: tokens of a batch, and of those how many go through the layers together.
    outputs : llama.cpp: of so many tokens of a batch it can be asked for logits; 0 for all. Its newer servers ask for
        one of each slot.
    flash : llama.cpp: flash attention.
    swa_full : llama.cpp: layers with a window keep everything all the same.
    gpu_layers : llama.cpp: layers on GPUs, counted from the output matrix, which is the first; None for as many as fit.
    cpu_experts : llama.cpp: of so many layers, from the first, the experts stay on the CPU.
    """

    engine: str = "cpu"
    context: int = 4096
    slots: int = 1
    unified: bool = False
    keys: str = "F16"
    values: str = "F16"
    batch: int = 2048
    ubatch: int = 512
    outputs: int = 0
    flash: bool = True
    swa_full: bool = False
    gpu_layers: int | None = None
    cpu_experts: int = 0

    def __post_init__(self) -> None:
        for name in ("keys", "values"):  # as the table spells them
            kind = type_named(getattr(self, name), values=name == "values")
            object.__setattr__(self, name, kind.name + CENTRED * kind.centred)
        if self.engine not in ENGINES:
            raise UsageError(f"the engine is {', '.join(ENGINES)}, not {printable(self.engine)}")
        least_of = {"context": 1, "slots": 1, "batch": 1, "ubatch": 1, "outputs": 0, "cpu_experts": 0}
        for name, least in least_of.items():
            if not least <= getattr(self, name) <= 1 << 40:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise UsageError(f"gpu_layers must be at least 0, not {self.gpu_layers}")
