"""Fixtures for all tests."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

# A busy machine, or a kernel that is compiled by the first example, is no failure.
hypothesis.settings.register_profile("ggufkit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("ggufkit")


@pytest.fixture(autouse=True)
def quiet_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test reads on stderr does not depend on the kernels that this machine has compiled before."""
    monkeypatch.setattr("ggufkit.cli.ahead._bar", lambda total: nullcontext(lambda name: None))
    monkeypatch.setattr("ggufkit.kernels.jit._SayOnce.on_start", lambda self, event: None)


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


@pytest.fixture(scope="session")
def checkpoints(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `<name>/hf` and `<name>/ref*.json`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with tarfile.open(shared / "convert" / "checkpoints.tar.xz") as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips where one cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", folder], check=True)
