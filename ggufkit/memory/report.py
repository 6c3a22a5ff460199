"""Whether a model fits, where its bytes go, how fast it can be, and what would fit instead."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ggufkit.errors import UsageError
from ggufkit.gguf.summary import layer_of
from ggufkit.memory.cache import cache_lines, held_by, padded
from ggufkit.memory.compute import compute_lines
from ggufkit.memory.devices import Device
from ggufkit.memory.line import Line
from ggufkit.memory.model import Model
from ggufkit.memory.placement import Placement, place
from ggufkit.memory.setup import Setup
from ggufkit.memory.weights import mlx_bytes, weight_lines

__all__ = ["Fit", "fitted", "report"]


@dataclass(frozen=True)
class Fit:
    """A model, as it would run on devices.

    Attributes
    ----------
    model, setup : what runs, and how.
    devices : the places; the CPU is the last, unless there is one alone.
    extra : lines of other files: a projector, an adapter.
    open : how many layers lie on cards was chosen here.
    """

    model: Model
    setup: Setup
    devices: tuple[Device, ...]
    extra: tuple[Line, ...] = ()
    open: bool = False

    @cached_property
    def placement(self) -> Placement:
        return place(self.model, self.setup, self.devices)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every part on every device."""
        lines = weight_lines(self.model, self.setup, self.devices, self.placement)
        lines += cache_lines(self.model, self.setup, self.placement.layers)
        lines += compute_lines(self.model, self.setup, self.devices, self.placement)
        return tuple(line for line in (*lines, *self.extra) if line.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes on all devices."""
        return sum(line.nbytes for line in self.lines)

    def used(self, number: int) -> int:
        """Bytes on one device."""
        return sum(line.nbytes for line in self.lines if line.place == number)

    @property
    def missing(self) -> int:
        """Bytes that do not fit, on all devices; 0 where everything fits."""
        return sum(max(0, self.used(number) - device.usable) for number, device in enumerate(self.devices))

    @property
    def fits(self) -> bool:
        return self.missing == 0

    def with_setup(self, **changes: Any) -> Fit:
        """The same with other fields of `Setup`."""
        return replace(self, setup=replace(self.setup, **changes))

    def with_model(self, model: Model) -> Fit:
        """The same for another model, with as many layers on cards as fit where that was left open."""
        changed = replace(self, model=model)
        return fitted(changed) if self.open else changed

    def largest_context(self) -> int:
        """Tokens of the largest context that fits, up to what the model was trained on; 0 where none does."""
        step, most = 256, self.model.context_length

        def too_long(steps: int) -> bool:
            return not self.with_setup(context=min(steps * step + step, most)).fits

        return min(_least(padded(most, step) // step, too_long) * step, most)

    # -- speed ------------------------------------------------------------------------------------------------

    def read(self, tokens: int) -> tuple[int, ...]:
        """Bytes that each device reads to make one token, after so many: active weights, and the cache so far."""
        found = [0] * len(self.devices)
        for matrix in self.model.used:
            if matrix.name.startswith("token_embd.") and not self.model.tied:
                continue  # a row of it
            number = self.placement.of(matrix)
            if self.model.tied and matrix.name.startswith("token_embd."):
                number = self.placement.output
            nbytes = mlx_bytes(matrix) if self.setup.engine == "mlx" else matrix.nbytes
            found[number] += _active(self.model, matrix.name, nbytes)
        now = replace(self.setup, context=max(tokens, 1), slots=1, swa_full=False)
        for layer, number in zip(self.model.layers, self.placement.layers, strict=True):
            for held in held_by(self.model, layer, now):
                seen = min(tokens, layer.window or tokens) if held.part != "states" else 1
                found[number] += held.row * seen
        return tuple(found)

    def speed(self, tokens: int = 0) -> float:
        """A bound of tokens per second, after so many: memory's bandwidth over the bytes read; 0 where not known."""
        seconds = 0.0
        for device, nbytes in zip(self.devices, self.read(tokens), strict=True):
            if nbytes and not device.bandwidth:
                return 0.0
            seconds += nbytes / device.bandwidth if nbytes else 0.0
        return 1 / seconds if seconds else 0.0

    # -- elsewhere --------------------------------------------------------------------------------------------

    def arguments(self) -> list[str]:
        """llama.cpp's arguments of this run.

        Raises
        ------
        UsageError : the engine is another, or the model has no path there.
        """
        if self.setup.engine != "llama.cpp":
            raise UsageError(
                "these are arguments of llama.cpp, not of this package's engines", "take {engine=llama.cpp}"
            )
        s = self.setup
        asked = s.context * (1 if s.unified else s.slots)
        found = [
            *_file_of(self.model.path),
            "-c",
            str(asked),
            "-np",
            str(s.slots),
            "-b",
            str(s.batch),
            "-ub",
            str(s.ubatch),
        ]
        found += ["-ctk", s.keys.lower(), "-ctv", s.values.lower(), "-fa", "on" if s.flash else "off"]
        found += ["--kv-unified" if s.unified else "--no-kv-unified"] + (["--swa-full"] if s.swa_full else [])
        on_gpus = sum(number != self.placement.host for number in (*self.placement.layers, self.placement.output))
        if len(self.devices) == 1:
            on_gpus = 0 if self.devices[0].kind == "host" else len(self.model.layers) + 1
        found += ["-ngl", str(on_gpus)] + (["--n-cpu-moe", str(s.cpu_experts)] if s.cpu_experts else [])
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "model": self.model.path,
            "architecture": self.model.architecture,
            "engine": self.setup.engine,
            "context": self.setup.context,
            "slots": self.setup.slots,
            "fits": self.fits,
            "bytes": self.nbytes,
            "devices": [
                {"name": d.name, "kind": d.kind, "memory": d.memory, "usable": d.usable, "used": self.used(number)}
                for number, d in enumerate(self.devices)
            ],
            "lines": [
                {
                    "part": line.part,
                    "device": line.place,
                    "bytes": line.nbytes,
                    "exact": line.exact,
                    "error": line.error,
                    "formula": line.formula,
                }
                for line in self.lines
            ],
        }


def _file_of(path: str) -> list[str]:
    """How llama.cpp is told of a file or an address."""
    if path.startswith("hf://"):
        owner, repo, file = path.removeprefix("hf://").split("/", 2)
        return ["-hfr", f"{owner}/{repo.partition('@')[0]}", "-hff", file]
    return ["-mu" if path.startswith(("http://", "https://")) else "-m", path]


def _active(model: Model, name: str, nbytes: int) -> int:
    """Bytes of a tensor that a token reads: of experts those that it goes through."""
    number = layer_of(name)
    if "_exps." not in name or number is None or number >= len(model.layers):
        return nbytes
    layer = model.layers[number]
    return nbytes * layer.used // layer.experts if layer.experts else nbytes


def report(model: Model, setup: Setup, devices: Sequence[Device], extra: Sequence[Line] = ()) -> Fit:
    """A `Fit`; where layers on the GPU are left open, with as many as fit.

    Raises
    ------
    UsageError : the cache cannot be of a type, or the engine cannot run on a device.
    """
    wanted = Fit(model, setup, tuple(devices), tuple(extra), open=setup.gpu_layers is None)
    found = fitted(wanted) if wanted.open else wanted
    _ = found.lines  # what is refused is refused now
    return found


def fitted(wanted: Fit) -> Fit:
    """The same with as much on the cards as fits: experts go to the CPU first, then whole layers."""
    if wanted.setup.engine != "llama.cpp" or len(wanted.devices) < 2:
        return wanted
    layers = len(wanted.model.layers)
    best = wanted.with_setup(gpu_layers=layers + 1)
    if _on_cards(best):
        return best
    if wanted.setup.cpu_experts == 0 and any(layer.experts for layer in wanted.model.layers):
        count = _least(layers, lambda count: _on_cards(best.with_setup(cpu_experts=count)))
        best = best.with_setup(cpu_experts=count)
        if _on_cards(best):
            return best
    left = _least(layers + 1, lambda left: _on_cards(best.with_setup(gpu_layers=layers + 1 - left)))
    return best.with_setup(gpu_layers=layers + 1 - left)


def _on_cards(fit: Fit) -> bool:
    """Whether what lies on cards fits there."""
    return all(fit.used(number) <= device.usable for number, device in enumerate(fit.devices[:-1]))


def _least(most: int, holds: Callable[[int], bool]) -> int:
    """The least number up to `most` for which something holds that holds for all above, or `most`."""
    return bisect_left(range(most), True, key=holds)
