"""Tools end as the verbs do: a wrong file, type or flag gives one line and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ggufkit.errors import GgufkitError


def run(main: Callable[[], int | None]) -> None:
    """Call `main`, and end with the exit code that it returns."""
    try:
        sys.exit(main())
    except GgufkitError as e:
        sys.exit(f"{Path(sys.argv[0]).name}: {e}")
