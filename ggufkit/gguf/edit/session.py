"""Edit a GGUF file.

    with ggufkit.edit("model.gguf") as e:
        e.set("general.name", "Tiny")
        e.remove("general.url")
        e.set_special("eos", "<|im_end|>")
    print(e.result)                        # changed in place, 61 bytes written

All changes are made together when the block ends, or none after an exception.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable
from ggufkit.gguf.edit.access import settle_edit
from ggufkit.gguf.edit.commit import Progress, change_in_place, open_for_change, take_back, write_new
from ggufkit.gguf.edit.draft import Draft
from ggufkit.gguf.edit.spare import Layout, lay_out
from ggufkit.gguf.header import Limits, parse_header
from ggufkit.gguf.shards import shard_count, sibling_names
from ggufkit.storage.files import refuse_same_file
from ggufkit.storage.source import FileSource

if TYPE_CHECKING:
    from ggufkit.gguf.reader import Metadata

__all__ = ["Edit", "Result", "edit", "undo"]


@dataclass(frozen=True)
class Result:
    """What an edit did, or would do.

    Attributes
    ----------
    how : ``"unchanged"``, ``"in place"`` or ``"new file"``.
    written : bytes of the model that are written; of a new file those of its header.
    copied : bytes of data that a new file takes from the old one.
    undoable : `undo` can take it back.
    """

    how: str
    written: int = 0
    copied: int = 0
    undoable: bool = False

    def __str__(self) -> str:
        if self.how == "unchanged":
            return "unchanged"
        if self.how == "in place":
            return f"changed in place, {self.written} bytes written"
        return f"written anew, {self.copied} bytes of data copied"


class Edit(Draft):
    """A file that is being edited: its `Draft` and the way to the disk. Get one from `edit`; a context manager.

    Attributes
    ----------
    output : the file to write instead, or None.
    result : after the block what was done, a `Result`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        spare: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ):
        name = os.fspath(path)
        self.output = None if output is None else os.fspath(output)
        self.result: Result | None = None
        self._spare, self._progress = spare, progress
        if self.output is None:
            self._source = open_for_change(name)
        else:
            refuse_same_file(name, self.output)
            self._source = FileSource(name, settle=settle_edit)
        try:
            header = parse_header(self._source, 0, Limits(versions=(1, 2, 3)))
            if header.version == 1:
                raise GGUFError(
                    "version 1 of GGUF cannot be edited, nor read by llama.cpp",
                    name,
                    4,
                    "make a version 3 of it with `ggufkit new-metadata`",
                )
            end = header.data_offset if header.tensors else self._source.size
            super().__init__(header, self._source.read(0, end), name, force)
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> Metadata:
        """The metadata as it shall be, as plain Python values."""
        from ggufkit.gguf.reader import Metadata

        return Metadata(self.fields)

    def rename_tensor(self, old: str, new: str) -> None:
        """Give a tensor another name, which no other file of a split model has either."""
        if shard_count(self.header.fields) > 1 and not self.force:
            from ggufkit.gguf.reader import open as open_gguf

            for name in sibling_names(self.name, self.header):
                # A file that is missing here is no reason not to edit this one.
                if os.path.exists(name) and not os.path.samefile(name, self.name):
                    with open_gguf(name, shards=False) as shard:
                        if new in shard.info:
                            raise self.fail(f"there is a tensor {printable(new)} already, in {printable(name)}")
        super().rename_tensor(old, new)

    def plan(self) -> Result:
        """What `commit` would do now.

        Raises
        ------
        GGUFError : no program would load the result.
        """
        return self._describe(self._lay_out())

    def commit(self) -> Result:
        """Put the changes on the disk; a context manager does it at its end.

        Raises
        ------
        FileError : see `ggufkit.gguf.edit.commit`; the file is as before.
        GGUFError : no program would load the result.
        """
        layout = self._lay_out()
        result = self._describe(layout)
        if result.how == "in place":
            change_in_place(self._source, self.raw, layout, self.force)
        elif result.how == "new file":
            shown = self._progress(result.copied) if self._progress else nullcontext(None)
            with shown as advance:
                write_new(self._source, self.raw, layout, self.output, self.force, advance)
        self.result = result
        return result

    def _lay_out(self) -> Layout:
        self.check()
        return lay_out(self, self._source.size, self._spare, rewrite=self.output is not None)

    def _describe(self, layout: Layout) -> Result:
        if layout.moves is not None:
            copied = sum(n for _, _, n in layout.moves)
            return Result("new file", len(layout.header), copied, layout.whole and self.output is None)
        written = sum(hi - lo for lo, hi in layout.ranges)
        return Result("in place", written, undoable=True) if written else Result("unchanged")

    def close(self) -> None:
        """Give the file back, without the changes that are not committed."""
        self._source.close()

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None and self.result is None:
                self.commit()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Edit of {printable(self.name)}>"


def edit(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    spare: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Edit:
    """Edit a local GGUF file of version 2 or 3.

    Only the header's changed bytes are written when it fits where it was; a header that does not needs a copy of the
    data into a new file.

    Parameters
    ----------
    output : write the edited file here and leave `path` as it is.
    spare : bytes of room to have for later edits, in a filler key; 0 removes it, None keeps what there is.
    force : allow changes that most likely break the model, a file that is open elsewhere, replacing `output`.
    progress : called with the bytes of a copy, gives a context manager for its steps.

    Raises
    ------
    FileError : the file is missing or read-only, or an edit of it cannot be taken back.
    GGUFError : it is not a GGUF, or breaks a rule of the format.
    UsageError : `output` is `path` itself.
    """
    return Edit(path, output, spare=spare, force=force, progress=progress)


def undo(path: str | os.PathLike[str], *, force: bool = False, progress: Progress | None = None) -> None:
    """Take back the last edit of a file, also one that wrote it anew.

    Raises
    ------
    FileError : there is no edit to take back, or the file has changed since.
    """
    take_back(os.fspath(path), force, progress)
