"""ggufkit: convert, inspect, patch and run GGUF models."""

from __future__ import annotations

__version__ = "0.1.0"
