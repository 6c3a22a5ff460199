"""Compilation: what is cached, what may call what, and Numba without its shortcuts."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import config, event

from ggufkit.kernels.jit import helper, kernel, maker

# A module of kernels that prints what it computes, and how often it was loaded from the cache.
MODULE = """
import sys
{before}
import numpy as np
from ggufkit.kernels.addresses import address, call
from ggufkit.kernels.jit import helper, kernel, maker

@kernel
def double(x, y):
    for i in range(x.size):
        y[i] = 2 * x[i]

@kernel
def twice(f, x, y):
    call(f, x, y)
    call(f, y, y)

@maker
def ones(n):
    return np.ones(n, np.float32)

@helper
def total(x):
    s = np.float32(0)
    for i in range(x.size):
        s += x[i]
    return s

@kernel
def count(n):
    return total(ones(n))

x = np.ones(3)
twice(address(double, x, x), x, x)
print(count(5), sum(count.stats.cache_hits.values()), x.sum())
"""


@helper
def half(x):
    return x // 2


@helper
def scaled(x, by):
    return x * by


@maker
def filled(n, x):
    return np.full(n, x)


def three_halves(x):
    return filled(3, half(x))


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))


def run_module(folder: Path, before: str = "") -> list[str]:
    path = folder / "some_kernels.py"
    if not path.exists():
        path.write_text(MODULE.format(before=before))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_kernel_calls_helpers_and_makers(fresh_cache):
    np.testing.assert_array_equal(kernel(three_halves)(8), [4, 4, 4])


def test_kernel_that_calls_a_kernel_is_refused(fresh_cache):
    inner = kernel(three_halves)

    def outer(x):
        return inner(x)

    for _ in range(2):  # before it was compiled, and after
        with pytest.raises(TypeError, match="three_halves is a kernel, and another one calls it: make it a helper"):
            kernel(outer)(8)
        inner(8)


def test_functions_of_others_without_a_module_compile():
    names: dict = {}
    exec("def double(x): return 2 * x", names)
    double = names["double"]
    double.__module__ = None
    assert numba.njit(double)(4) == 8


def test_helper_compiles_once_for_all_numbers(fresh_cache):
    def both(x):
        return scaled(x, 2) + scaled(x, 3) + scaled(x, by=4)

    assert kernel(both)(10) == 90
    assert len(scaled.signatures) == 1


class Collector(event.Listener):
    """Whether the garbage collector was on while something compiled."""

    def __init__(self):
        self.on = set()

    def on_start(self, event):
        self.on.add(gc.isenabled())

    def on_end(self, event):
        pass


@pytest.mark.parametrize("on", [True, False])
def test_collector_pauses_while_a_kernel_compiles(on, fresh_cache, monkeypatch):
    monkeypatch.setattr("ggufkit.kernels.jit._is_ours", lambda event: True)
    (gc.enable if on else gc.disable)()
    try:
        with event.install_listener("numba:run_pass", Collector()) as collector:
            kernel(three_halves)(8)
        assert gc.isenabled() == on
    finally:
        gc.enable()
    assert collector.on == {False}


def test_kernel_is_loaded_from_the_cache(tmp_path):
    assert run_module(tmp_path) == ["5.0", "0", "12.0"]
    assert run_module(tmp_path) == ["5.0", "1", "12.0"]


def test_kernels_of_a_numba_with_another_inside(tmp_path):
    without = "sys.modules['ggufkit.kernels.compiler'] = None"
    assert run_module(tmp_path, without) == ["5.0", "0", "12.0"]
    assert run_module(tmp_path, without) == ["5.0", "1", "12.0"]
