"""Which tensors and layers lie on which device.

llama.cpp, with L layers and `gpu_layers` G, counts the output matrix as the last layer and gives the last G of L + 1 to
the GPUs, shared out by their memory; the token embeddings stay on the CPU. Everything else is on one device.

Source: `load_tensors` in src/llama-model.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ggufkit.memory.devices import Device
from ggufkit.memory.model import Matrix, Model
from ggufkit.memory.setup import Setup

__all__ = ["Placement", "place"]

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(up|down|gate|gate_up)_(ch|)exps\.")
_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd.", "position_embd.", "token_types.", "token_embd_norm.", "per_layer_token_embd.")


@dataclass(frozen=True)
class Placement:
    """Numbers of devices.

    Attributes
    ----------
    host : of the CPU.
    layers : of each layer.
    output : of the output matrix and its norm.
    cpu_experts : of so many layers the experts are on the CPU.
    """

    host: int
    layers: tuple[int, ...]
    output: int
    cpu_experts: int

    def of(self, matrix: Matrix) -> int:
        """The device of a tensor."""
        if (found := _LAYER.match(matrix.name)) is None:
            return self.host if matrix.name.startswith(_INPUT) else self.output
        number = int(found[1])
        if number < self.cpu_experts and _EXPERTS.match(matrix.name):
            return self.host
        return self.layers[number] if number < len(self.layers) else self.output


def place(model: Model, setup: Setup, devices: Sequence[Device]) -> Placement:
    """Place a model on devices, of which the CPU is the last unless there is only one."""
    count, host = len(model.layers), len(devices) - 1
    gpus = range(host) if len(devices) > 1 else range(1) if devices[0].kind != "host" else range(0)
    wanted = count + 1 if setup.gpu_layers is None else setup.gpu_layers
    if setup.engine != "llama.cpp" or not gpus or not wanted:
        return Placement(host, (host,) * count, host, setup.cpu_experts)
    first, given = max(count + 1 - wanted, 0), min(wanted, count + 1)
    total = sum(devices[gpu].memory for gpu in gpus)
    splits = [done / total for done in accumulate(devices[gpu].memory for gpu in gpus)]

    def of(number: int) -> int:
        if number < first:
            return host
        return min(bisect_right(splits, (number - first) / given), len(gpus) - 1)

    return Placement(host, tuple(of(number) for number in range(count)), of(count), setup.cpu_experts)
