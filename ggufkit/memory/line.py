"""One line of a memory report: what, where, how many bytes, and why so many."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Line", "amount"]


@dataclass(frozen=True)
class Line:
    """Bytes of one part on one device.

    Attributes
    ----------
    part : ``"weights"``, ``"cache"``, ``"window cache"``, ``"latent cache"``, ``"indexer cache"``, ``"states"``,
        ``"compute"``, ``"logits"``, ``"projector"``, ``"adapter"``.
    place : number of the device, as in `Fit.places`.
    nbytes : bytes.
    formula : where they come from, with the numbers put in.
    error : 0 where they are exact; else the share by which an estimate may be off, of either sign.
    note : what else the reader should know.
    """

    part: str
    place: int
    nbytes: int
    formula: str
    error: float = 0.0
    note: str = ""

    @property
    def exact(self) -> bool:
        return self.error == 0


def amount(n: int, what: str) -> str:
    """``"1 layer"``, ``"26 layers"``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
