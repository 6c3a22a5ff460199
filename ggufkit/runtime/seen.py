"""What encoders give of images and sound, in prompts.

A prompt is token ids, and each row of what was seen has an id of its own, below 0: so what compares, cuts and keeps
prompts needs to know nothing of it, and what was seen twice is known again. `Shown` says what an id stands for.

    8  33  −7  −8  −9  −10  52  12        four rows of an image between tokens
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from ggufkit.errors import UsageError

__all__ = ["MARKER", "Prompt", "Seen", "Shown", "with_markers"]

MARKER = "<__media__>"  # llama.cpp's, for the place of an image or of sound in a text

_KEPT = 512 << 20  # bytes of rows that are kept beside those of prompts


def with_markers(text: str, count: int) -> str:
    """A text with `count` markers: those that it lacks come first."""
    return MARKER * (count - text.count(MARKER)) + text


@dataclass(eq=False)
class Seen:
    """Rows that stand in a prompt as tokens do.

    Attributes
    ----------
    rows : array of shape (n, width), float32.
    deep : what is added behind the language model's first blocks, an array as `rows` for each.
    grid : rows and columns of an image that these are, row by row; None for sound.
    framed : there is one more behind each row of the image, one in front of all and one behind them.
    whole : the rows see each other, not only those before them.
    first : the id of the first of them; that of row i is `first` − i.
    """

    rows: np.ndarray
    deep: Sequence[np.ndarray] = ()
    grid: tuple[int, int] | None = None
    whole: bool = False
    first: int = 0
    framed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[int]:
        return [self.first - i for i in range(len(self))]

    @property
    def advance(self) -> int:
        """How far positions go on where there are several axes of them: an image is as long as its longer side."""
        return max(self.grid) if self.grid and not self.framed else len(self)

    def axes(self, start: int, image: int = 0) -> np.ndarray:
        """Positions in time, by row, by column and by image, of rows that begin at `start`: (n, 4).

        Those of framed images are in time as of tokens, and by column and row; `image` says how many are before it.
        """
        found = np.repeat(np.arange(start, start + len(self))[:, None], 4, axis=1)
        if self.grid is None:
            return found
        y, x = (axis.reshape(-1) for axis in np.indices((self.grid[0], self.grid[1] + self.framed)))
        if self.framed:
            found[1:-1, 1:] = np.stack([x, y, np.full(len(y), image)], axis=1)
        else:
            found[:] = start + np.stack([0 * y, y, x, 0 * y], axis=1)
        return found


class Prompt(list[int]):
    """Token ids of a prompt, and what was seen of which there are ids in it."""

    def __init__(self, ids: Sequence[int], seen: Sequence[Seen]):
        super().__init__(ids)
        self.seen = tuple(seen)


class Shown:
    """What a model has been shown: id → what it stands for.

    What is in a prompt stays known as long as that does; some more is kept, so that it need not be seen again.
    """

    def __init__(self) -> None:
        self._by_last: WeakValueDictionary[int, Seen] = WeakValueDictionary()
        self._kept: OrderedDict[str, Seen] = OrderedDict()
        self._next = -1
        self._lock = threading.Lock()

    def recall(self, key: str) -> Seen | None:
        """What was remembered under this key, if it still is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def remember(self, key: str, seen: Seen) -> Seen:
        """Give it ids, and keep it while there is room."""
        with self._lock:
            seen.first, self._next = self._next, self._next - len(seen)
            for i in seen.ids:
                self._by_last[i] = seen
            self._kept[key] = seen
            while len(self._kept) > 1 and sum(_size(s) for s in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
        return seen

    def find(self, token: int) -> tuple[Seen, int]:
        """What an id below 0 stands for, and the row.

        Raises
        ------
        UsageError : nothing that is still known.
        """
        seen = self._by_last.get(token)
        if seen is None:
            raise UsageError(f"{token} is no token, and of nothing that the model was shown")
        return seen, seen.first - token

    def uncut(self, tokens: Sequence[int], lo: int, n: int) -> int:
        """How many tokens from `lo` on: `n`, or so many more that rows that see each other are not cut."""
        end = lo + n
        if end < len(tokens) and tokens[end] < 0:
            seen, row = self.find(tokens[end])
            if seen.whole and row:
                return n + len(seen) - row
        return n

    def parts(self, tokens: np.ndarray) -> Iterator[tuple[int, int, Seen | None, int]]:
        """Tokens and what was seen, in turn: lo, hi, what it is, and its row at `lo`."""
        lo, n = 0, len(tokens)
        while lo < n:
            if tokens[lo] < 0:
                seen, row = self.find(int(tokens[lo]))
                hi = min(n, lo + len(seen) - row)
                yield lo, hi, seen, row
            else:
                below = np.flatnonzero(tokens[lo:] < 0)
                hi = lo + int(below[0]) if below.size else n
                yield lo, hi, None, 0
            lo = hi


def _size(seen: Seen) -> int:
    return seen.rows.nbytes + sum(part.nbytes for part in seen.deep)
