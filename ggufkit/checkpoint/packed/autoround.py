"""AutoRound: the tensors of GPTQ or AWQ, as `packing_format` says; and its own, whose zero points are not less 1.

    packing_format                    tensors
    …gptq…                            GPTQ, zero points less 1
    …awq…                             AWQ, GEMM
    auto_round, …:exllamav2, …        GPTQ, the zero itself

Modules may have settings of their own in `extra_config`; what they change shows in the shapes.
Source: auto_round/export/export_to_autoround of intel/auto-round.
"""

from __future__ import annotations

from ggufkit.checkpoint.packed.awq import add_awq
from ggufkit.checkpoint.packed.gptq import add_gptq
from ggufkit.checkpoint.packed.stored import Reading, Source, parts_of
from ggufkit.errors import printable

__all__ = ["read"]


def read(source: Source) -> Reading | None:
    """Modules with `qweight`, where the settings say AutoRound."""
    modules = parts_of(source.tensors, ".qweight")
    if not modules or source.method.rpartition("/")[2].replace("-", "").replace("_", "") != "autoround":
        return None
    packing = str(source.settings.get("packing_format", "auto_round")).lower()
    reading = Reading(f"AutoRound ({printable(packing)})")
    settings = dict(source.settings)
    extra = settings.get("extra_config")
    for module in modules:
        own = extra.get(module) if isinstance(extra, dict) else None
        merged = {**settings, **own} if isinstance(own, dict) else settings
        if "awq" in packing:
            add_awq(reading, source, module, {**merged, "version": "gemm"})
        else:
            version = "gptq" if "gptq" in packing else "gptq_v2"
            add_gptq(reading, source, module, {**merged, "checkpoint_format": version})
    return reading
