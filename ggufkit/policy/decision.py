"""What a policy says about one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.formats.table import Format

__all__ = ["Decision"]


@dataclass(frozen=True)
class Decision:
    """A format and the reason for it, in words for people."""

    format: Format
    reason: str
