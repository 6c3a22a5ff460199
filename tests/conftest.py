"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large reference data beside the repository; skips the test where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("the reference data beside the repository is not here")
    return folder


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return ROOT / "fixtures"
