"""Several models: loaded when asked for, unloaded for others or when idle, never while somebody uses them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ggufkit.errors import GgufkitError, UsageError
from ggufkit.serve.engine import ModelPool, models_in


class Engine:
    """Nothing but its life."""

    def __init__(self, path, log):
        if path.name == "broken":
            raise GgufkitError("broken")
        self.path, self.log = path, log
        log.append(f"+{path}")

    def close(self, drain=0):
        self.log.append(f"-{self.path}")


def pool(log, **how):
    paths = {name: Path(name) for name in ("a", "b", "c", "broken", "huge")}
    sizes = {"huge": 99}
    return ModelPool(paths, lambda path: Engine(path, log), lambda path: sizes.get(path.name, 4), **how)


def use(models, name):
    with models.lease(name) as engine:
        assert engine.path == Path(name)


def test_the_one_used_longest_ago_makes_room():
    log: list[str] = []
    models = pool(log, memory=8)
    for name in "abacb":
        use(models, name)
    assert log == ["+a", "+b", "-b", "+c", "-a", "+b"]
    assert set(models.loaded()) == {"b", "c"}
    with pytest.raises(UsageError, match="99 bytes"):
        use(models, "huge")
    with pytest.raises(UsageError, match="no model x"):
        use(models, "x")
    with pytest.raises(GgufkitError, match="broken"):
        use(models, "broken")
    use(models, "a")
    models.close()
    with pytest.raises(GgufkitError, match="unloaded"):
        use(models, "a")


def test_nobody_is_unloaded_while_in_use_and_nobody_kept_out():
    log: list[str] = []
    models = pool(log, most=1)
    with models.lease("a"):
        waits = threading.Thread(target=use, args=(models, "b"))
        waits.start()
        behind = threading.Thread(target=use, args=(models, "a"))
        while len(models._line) < 1:
            time.sleep(0.001)
        behind.start()  # a is here, but who waits for room comes first
        while len(models._line) < 2:
            time.sleep(0.001)
        assert log == ["+a"]
    waits.join(5)
    behind.join(5)
    assert log == ["+a", "-a", "+b", "-b", "+a"]
    models.close()


def test_one_that_is_idle_goes_after_a_while():
    log: list[str] = []
    models = pool(log, idle=0.05)
    with models.lease("a"):
        time.sleep(0.15)
        assert log == ["+a"]
    deadline = time.monotonic() + 5
    while log != ["+a", "-a"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log == ["+a", "-a"]
    use(models, "a")
    models.unload("a")
    assert log[2:] == ["+a", "-a"]
    models.close()


def test_many_at_once_load_each_model_once():
    log: list[str] = []
    models = pool(log, most=3)
    threads = [threading.Thread(target=use, args=(models, name)) for name in "abc" * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(log) == ["+a", "+b", "+c"]
    models.close()


def test_models_of_a_folder(tmp_path):
    for name in (
        "x.gguf",
        "mmproj-x.gguf",
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
        "sub/x.gguf",
        "n.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {name: str(path.relative_to(tmp_path)) for name, path in models_in(tmp_path).items()}
    assert found == {"big": "big-00001-of-00002.gguf", "x": "x.gguf", "sub/x": "sub/x.gguf"}
    with pytest.raises(GgufkitError):
        models_in(tmp_path / "none")
