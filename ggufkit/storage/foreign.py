"""Files of another kind than the one that was wanted, told apart by their first bytes, and what to do with them."""

from __future__ import annotations

import re
import struct

__all__ = ["HEAD", "foreign_file", "foreign_folder"]

HEAD = 4096  # bytes that are enough to look at

_PAGE = "the address of the file itself is needed: hf://owner/repo/file, or a link with /resolve/ instead of /blob/"
_UNPACK = "unpack it first"
_OLD = ("a model file from before GGUF (2023)", "convert the checkpoint that it was made from")

# First bytes → what it is, what to do.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "fetch that with: git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "an array of NumPy", "give the model instead"),
    (b"\x89HDF", "an HDF5 file, as Keras has them", "it is not converted; give safetensors instead"),
    (b"\x7fELF", "a program", "give the model instead"),
    (b"%PDF", "a PDF", "give the model instead"),
    (b"\x89PNG", "a picture", "give the model instead"),
    (b"_logits_", "a base of predictions of llama-perplexity", "give the model instead"),
    (b"ggufkit undo", "the record of an edit", "give the model beside it, without .undo or .journal"),
    *((magic, *_OLD) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt")),
)


def foreign_file(head: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) of a file that begins like this; None where that is not known.

    Parameters
    ----------
    head : its first bytes, `HEAD` of them where there are so many.
    """
    if not head:
        return "empty", "fetch or make it again"
    for start, what, todo in _STARTS:
        if head.startswith(start):
            return what, todo
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "an HTML page, saved instead of a download", _PAGE
    if text.startswith(b"<?xml"):
        return (
            "an XML text, likely a server's error, saved instead of a download",
            "look into it, then fetch the file again",
        )
    if head[:4] == b"PK\3\4":
        if b"data.pkl" in head:
            return "a file of PyTorch weights", "convert the folder that it lies in"
        return (
            ("a ZIP archive of NumPy arrays", "give the model instead")
            if b".npy" in head
            else ("a ZIP archive", _UNPACK)
        )
    if _is_safetensors(head):
        return "a safetensors file", "convert the folder that it lies in"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if re.match(rb"\x80[\x02-\x05][^\x00]", head):
        return "a pickle, as older PyTorch saves weights", "convert the folder that it lies in"
    if _is_old_imatrix(head):
        return "an importance matrix of the older kind (.dat)", "it goes with a model that is quantized"
    if text.startswith((b"{", b"[")):
        return "a JSON text", _json_advice(text)
    if not any(head):
        return "nothing but zeros at its start: a download that did not get there", "fetch it again"
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "a text", "give the model instead"
    return None


def foreign_folder(names: list[str]) -> tuple[str, str] | None:
    """The same of a folder with files of these names."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if "adapter_config.json" in names:
        return "a folder with a LoRA adapter", "convert it"
    if ggufs:
        return "a folder", f"give the file in it, {ggufs[0]}"
    if "config.json" in names:
        return "a checkpoint folder", "convert it"
    return None


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and struct.unpack("<Q", head[:8])[0] < 1 << 32 and head[8:].lstrip()[:1] == b"{"


def _is_old_imatrix(head: bytes) -> bool:
    """i32 entries, then of each the length of a name, and the name."""
    if len(head) < 16:
        return False
    entries, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(0, length)]
    return 0 < entries < 100_000 and 4 < length < 200 and name.isascii() and b".weight" in name


def _json_advice(text: bytes) -> str:
    if b'"weight_map"' in text:
        return "it is the index of a checkpoint; convert the folder that it lies in"
    if b'"error"' in text[:200]:
        return "it is likely a server's error; look into it, then fetch the file again"
    return "give the model, or the folder that it lies in to convert"
