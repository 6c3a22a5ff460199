"""The header of a model that is about to be written, looked at as `validate` looks at one in a file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.gguf.checks.finding import Finding
from ggufkit.gguf.checks.hyperparameters import check_hyperparameters
from ggufkit.gguf.checks.tokenizer import check_tokenizer
from ggufkit.gguf.header import MAGIC, Field, Limits, TensorInfo, Value, parse_header
from ggufkit.gguf.reader import Metadata
from ggufkit.gguf.writer import encode_pair
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_planned"]


@dataclass(frozen=True)
class _Planned:
    fields: Mapping[str, Field]
    metadata: Mapping[str, Any]
    info: Mapping[str, TensorInfo]


class _Bytes:
    """A `Source` of bytes in memory."""

    def __init__(self, data: bytes):
        self.name, self.size, self._data = "the header", len(data), data

    def read(self, offset: int, n: int) -> bytes:
        return self._data[offset : offset + n]

    def array(self, offset: int, n: int) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.read(offset, n), np.uint8)

    def close(self) -> None:
        pass


def check_planned(metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """The findings of `validate` on hyperparameters and tokenizer, without places in a file.

    Parameters
    ----------
    metadata : key → typed value.
    tensors : name → tensor; empty for a vocabulary alone.
    """
    pairs = b"".join(encode_pair(key, value) for key, value in metadata.items())
    head = struct.pack("<4sIQQ", MAGIC, 3, 0, len(metadata)) + pairs
    fields = parse_header(_Bytes(head), limits=Limits(header=max(len(head), Limits.header))).fields
    info = {name: TensorInfo(name, t.shape, t.format, 0, t.nbytes, 0) for name, t in tensors.items()}
    model = _Planned(fields, Metadata(fields), info)
    found = [*(check_hyperparameters(model) if tensors else ()), *check_tokenizer(model)]
    return [Finding(finding.level, finding.message, None, finding.fatal) for finding in found]
