"""What metadata says of how a router chooses experts.

Source: `build_moe_ffn` in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear

__all__ = ["choice_of"]

_GATING = {1: "softmax", 2: "sigmoid", 3: "top", 4: "sqrt_softplus"}  # expert_gating_func


def choice_of(load: Loader, router: Linear, used: int, bias: Array | None) -> dict[str, Any]:
    """The fields of a `Choice` of `router.rows` experts.

    Parameters
    ----------
    bias : (experts,), added for the choice only; or None.
    """
    keys, graph, hyper = load.hyper.keys, load.graph, load.hyper
    kind = graph.router if isinstance(graph.router, str) else graph.router(hyper.layers, load.vocabulary)
    return {
        "router": router,
        "used": used,
        "scores": _GATING.get(keys.count("expert_gating_func", 0, least=0, most=len(_GATING)), kind),
        "normalized": keys.flag("expert_weights_norm", graph.router_normalized),
        "scale": keys.number("expert_weights_scale", 0.0) or 1.0,
        "bias": bias,
    }
