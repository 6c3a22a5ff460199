"""Hashes of a model's tensors, of its layers and of all of it, and manifests of them.

    xxh64     f66e9cd66a4396a0  model.gguf:blk.0.attn_q.weight     a tensor's bytes
    xxh64     7d3705c055162056  model.gguf:blk.0                   a layer's tensors, one after the other
    xxh64     0d8b2ba2b2f2b2ba  model.gguf                         all tensors, one after the other

Only the bytes of the tensors count, as little-endian machines have them: not metadata, names or padding. So split
and merged files, and those of both byte orders, have the same hash. The lines are those of llama-gguf-hash, which
has none for layers.

Source: examples/gguf-hash of llama.cpp.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ggufkit.errors import FileError, GgufkitError, printable
from ggufkit.gguf.copy import Advance, nothing
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.summary import layer_of
from ggufkit.kernels.threads import for_each, thread_count
from ggufkit.storage.regular import read_small

__all__ = [
    "KINDS",
    "Hash",
    "check_hash",
    "has_layers",
    "hash_model",
    "manifest_kinds",
    "missing_labels",
    "read_manifest",
]

_MAX_MANIFEST = 64 << 20  # bytes; a line has a hundred

# In the order of llama-gguf-hash's lines.
KINDS = ("xxh64", "sha1", "sha256", "uuid")

# The kind that a check chooses when several are in the manifest.
STRONGEST = ("sha256", "sha1", "xxh64", "uuid")

# uuid5(NAMESPACE_URL, "en.wikipedia.org/wiki/Llama.cpp"), as llama-gguf-hash has it.
_NAMESPACE = uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5")

# Bytes that are read and hashed at a time.
_STEP = 8 << 20


class _Hasher(Protocol):
    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class _UUID:
    """The UUID of version 5 of all bytes, in llama.cpp's namespace."""

    def __init__(self) -> None:
        self._sha1 = hashlib.sha1(_NAMESPACE.bytes)

    def update(self, data: Any) -> None:
        self._sha1.update(data)

    def hexdigest(self) -> str:
        return str(uuid.UUID(bytes=self._sha1.digest()[:16], version=5))


def _hasher(kind: str) -> _Hasher:
    if kind == "xxh64":
        from ggufkit.kernels.xxh64 import XXH64

        return XXH64()
    return _UUID() if kind == "uuid" else hashlib.new(kind)


@dataclass(frozen=True)
class Hash:
    """One hash.

    Attributes
    ----------
    kind : ``"xxh64"``, ``"sha1"``, ``"sha256"`` or ``"uuid"``.
    hex : its digits.
    of : what it is of: ``"tensor"``, ``"layer"`` or ``"model"``.
    name : the tensor's name, ``blk.N`` for a layer, empty for the model.
    """

    kind: str
    hex: str
    of: str
    name: str

    def label(self, path: str) -> str:
        """What a manifest calls it."""
        path = printable(path, 4096)
        return f"{path}:{printable(self.name)}" if self.name else path


def hash_model(
    model: GGUF,
    kinds: Sequence[str] = ("xxh64",),
    *,
    tensors: bool = True,
    layers: bool = False,
    threads: int | None = None,
    advance: Advance = nothing,
) -> Iterator[Hash]:
    """Hash a model in one pass over its data.

    Parameters
    ----------
    kinds : some of `KINDS`. A ``uuid`` is of the model alone.
    tensors, layers : give the hashes of each tensor, and of each layer, too. A layer's comes when all tensors have
        been read, since they may be anywhere in the file.

    Yields
    ------
    `Hash` : of the tensors in file order, the layers, the model.
    """
    kinds = [kind for kind in KINDS if kind in kinds]
    parts = [kind for kind in kinds if kind != "uuid"]
    whole = {kind: _hasher(kind) for kind in kinds}
    by_layer: dict[int, dict[str, _Hasher]] = {}
    for name in model.info:
        mine: dict[str, _Hasher] = {kind: _hasher(kind) for kind in parts} if tensors else {}
        states = [*mine.values(), *whole.values()]
        if layers and (layer := layer_of(name)) is not None:
            if layer not in by_layer:
                by_layer[layer] = {kind: _hasher(kind) for kind in parts}
            states += by_layer[layer].values()
        _feed(model, name, states, thread_count(threads), advance)
        for kind, state in mine.items():
            yield Hash(kind, state.hexdigest(), "tensor", name)
    for layer, found in sorted(by_layer.items()):
        for kind, state in found.items():
            yield Hash(kind, state.hexdigest(), "layer", f"blk.{layer}")
    for kind, state in whole.items():
        yield Hash(kind, state.hexdigest(), "model", "")


def _feed(model: GGUF, name: str, states: Sequence[_Hasher], threads: int, advance: Advance) -> None:
    tensor = model.tensors[name]
    step = max(1, _STEP // max(tensor.row_bytes, 1))
    for lo in range(0, tensor.rows if tensor.nbytes else 0, step):
        data = tensor.read(lo, min(lo + step, tensor.rows)).data.cast("B")

        def update(state: _Hasher, data: memoryview = data) -> None:
            state.update(data)

        workers = min(threads, len(states)) if len(data) >= 1 << 20 else 1
        if workers == 1:
            for state in states:
                state.update(data)
        else:
            for_each(update, states, workers)
        advance(len(data), name)


# -- manifests --------------------------------------------------------------------------------------------

Manifest = dict[tuple[str, str], str]  # (kind, label) → digits


def read_manifest(path: str) -> Manifest:
    """The hashes in a file of lines ``kind  digits  label``; other lines are skipped.

    Raises
    ------
    FileError : it cannot be read, is no text.
    GgufkitError : it has no hash of a known kind.
    """
    try:
        lines = read_small(path, _MAX_MANIFEST).decode().splitlines()
    except UnicodeDecodeError:
        raise FileError(f"cannot read {printable(path)}: it is no text") from None
    found: Manifest = {}
    for line in lines:
        words = line.split(None, 2)
        if len(words) == 3 and words[0] in KINDS:
            found.setdefault((words[0], words[2]), words[1].lower())
    if not found:
        raise GgufkitError(f"{printable(path)} has no hash of a kind that is known here: {', '.join(KINDS)}")
    return found


def manifest_kinds(manifest: Manifest) -> list[str]:
    """The kinds in a manifest, the strongest first."""
    kinds = {kind for kind, _ in manifest}
    return [kind for kind in STRONGEST if kind in kinds]


def has_layers(manifest: Manifest) -> bool:
    """Whether some of its hashes are of whole layers."""
    return any(re.search(r":blk\.\d+$", label) for _, label in manifest)


def missing_labels(manifest: Manifest, hashes: Iterable[Hash], path: str) -> list[tuple[str, str]]:
    """(kind, label) of what the manifest knows of this file's tensors and layers, and the file lacks."""
    names: dict[str, set[str]] = {}
    for hash in hashes:
        names.setdefault(hash.kind, set()).add(printable(hash.name))
    own = (printable(path, 4096) + ":", re.split(r"[/\\]", printable(path, 4096))[-1] + ":")
    found = []
    for kind, label in manifest:
        start = next((n for n in (_after(label, prefix) for prefix in own) if n is not None), None)
        if kind in names and start is not None and label[start:] not in names[kind]:
            found.append((kind, label))
    return found


def _after(label: str, prefix: str) -> int | None:
    """Where a name starts in a label of the file that `prefix` stands for, in whatever folder."""
    at = label.find(prefix)
    return at + len(prefix) if at == 0 or (at > 0 and label[at - 1] in "/\\") else None


def check_hash(manifest: Manifest, hash: Hash, path: str) -> str:
    """Compare one hash of the model at `path`: ``"Ok"``, ``"Mismatch"`` or ``"Not Found"``.

    A manifest may have been written with another path to the file: then the file's name decides.
    """
    known = manifest.get((hash.kind, hash.label(path)))
    if known is None:
        base = hash.label(re.split(r"[/\\]", path)[-1])
        matches = {
            digits
            for (kind, label), digits in manifest.items()
            if kind == hash.kind and (label == base or label.endswith(("/" + base, "\\" + base)))
        }
        if len(matches) != 1:
            return "Not Found"
        (known,) = matches
    return "Ok" if known == hash.hex else "Mismatch"
