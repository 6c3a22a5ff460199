"""What `ggufkit formats --numbers` shows: the noise of FP8 and INT8, on random data, on weights, or on activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.cli.common import echo_json, echo_table, matrices, open_model
from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    from ggufkit.evaluate.number_noise import Noise

__all__ = ["show_activations", "show_random", "show_weights"]

_WINDOW = 256  # tokens of text that the model sees at once
_WINDOWS = 8


def show_random(as_json: bool) -> None:
    """Decibels of signal over error for 512 × 4096 random numbers."""
    from ggufkit.numbers.noise import NUMBERS, noise_table

    table = noise_table()
    if as_json:
        echo_json(table)
        return
    rows = [(what, *(f"{value:.1f}" for value in row.values())) for what, row in table.items()]
    echo_table(rows, ("dB", *NUMBERS), right=range(1, len(NUMBERS) + 1))


def show_weights(file: str, name: str | None, rows: int, as_json: bool, how: dict[str, Any]) -> None:
    """The same of a model's matrices, or of one tensor."""
    from ggufkit.evaluate.number_noise import weight_noise

    with open_model(file, how) as model:
        _show(weight_noise(matrices(model, name), rows), as_json, clipped=False)


def show_activations(file: str, text: Path, as_json: bool) -> None:
    """The same of what meets the matrices when the model reads a text."""
    from ggufkit.cli.progress import token_bar
    from ggufkit.cli.text import file_windows
    from ggufkit.evaluate.number_noise import activation_noise
    from ggufkit.runtime.model import load

    with load(file) as model:
        if model.weights.output is None:
            raise UsageError(f"{printable(file)} makes embeddings and no text; its activations are not measured")
        windows = file_windows(model, text, _WINDOW, _WINDOWS)
        with token_bar(windows.tokens.size, "activations") as advance:
            found = activation_noise(model, windows, lambda tokens: advance(tokens, ""))
    _show(found, as_json, clipped=True)


def _show(found: Mapping[str, Noise], as_json: bool, clipped: bool) -> None:
    if as_json:
        echo_json(
            {
                kind: {
                    "numbers": noise.count,
                    "decibels": noise.decibels,
                    "clipped": noise.clipped,
                    "worst": noise.worst[0],
                    "worst_decibels": noise.worst[1],
                }
                for kind, noise in found.items()
            }
        )
        return
    rows = []
    for kind, noise in found.items():
        name, worst = noise.worst
        share = [f"{100 * noise.clipped / max(noise.count, 1):.4f} %"] if clipped else []
        rows.append((kind, f"{noise.decibels:.1f}", *share, f"{worst:.1f}", printable(name)))
    head = ("numbers", "dB", *(["clipped"] if clipped else []), "worst dB", "where")
    echo_table(rows, head, right=range(1, len(head) - 1))
