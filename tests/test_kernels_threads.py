"""The thread pool: every range once, whoever does it; errors; callers that do not wait for each other."""

from __future__ import annotations

import platform
import threading
import time
import weakref

import numpy as np
import pytest

from ggufkit.errors import UsageError
from ggufkit.kernels import threads
from ggufkit.kernels.heap import keep_arrays
from ggufkit.kernels.shares import take_share
from ggufkit.kernels.threads import SHARES, for_ranges, in_all_threads, thread_count


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("rows", "grain"), [(0, 3), (1, 3), (3, 3), (100, 7), (5, 0)])
def test_for_ranges_covers_every_row_once(threads, rows, grain):
    seen = np.zeros(rows, int)

    def count(lo: int, hi: int) -> None:
        assert hi - lo <= max(grain, 1)
        seen[lo:hi] += 1

    for _ in range(20):
        for_ranges(count, rows, grain, threads)
    assert (seen == 20).all()


def test_for_ranges_raises_the_first_error_and_starts_no_more():
    started = []

    def fail(lo: int, hi: int) -> None:
        started.append(lo)
        time.sleep(0.001)
        raise ValueError(lo)

    with pytest.raises(ValueError, match=r"^0$"):
        for_ranges(fail, 100, 1, 3)
    assert len(started) <= 3
    for_ranges(lambda lo, hi: None, 100, 1, 3)  # the team is as good as before


def test_for_ranges_passes_on_an_interruption():
    def interrupt(lo: int, hi: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_ranges(interrupt, 10, 1, 2)


def test_for_ranges_within_for_ranges_runs_alone():
    seen = np.zeros((4, 10), int)

    def outer(lo: int, hi: int) -> None:
        def inner(first: int, last: int) -> None:
            seen[lo:hi, first:last] += 1

        for_ranges(inner, 10, 3, 2)

    for_ranges(outer, 4, 1, 2)
    assert (seen == 1).all()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_in_all_threads_shares_what_is_taken(threads):
    """Hundreds of rounds, with pauses in which helpers fall asleep."""
    for turn in range(300):
        done = np.zeros((SHARES, 50), int)

        def work(shares, done=done):
            for which, share in enumerate(shares):
                while (lo := take_share(share, 7)) < 50:
                    done[which, lo : lo + 7] += 1

        in_all_threads(work, threads)
        assert (done == 1).all()
        if turn % 100 == 0:
            time.sleep(0.01)


def test_in_all_threads_returns_only_when_all_are_done():
    for _ in range(20):
        finished = []

        def work(shares, finished=finished):
            while take_share(shares[0], 1) < 6:
                time.sleep(0.001)
                finished.append(threading.get_ident())

        in_all_threads(work, 3)
        assert len(finished) == 6


def test_in_all_threads_raises_what_a_helper_raised():
    caller = threading.get_ident()

    def work(shares):
        while take_share(shares[0], 1) < 200:
            time.sleep(0.0005)
            if threading.get_ident() != caller:
                raise ValueError("a helper's")

    with pytest.raises(ValueError, match="a helper's"):
        in_all_threads(work, 2)
    in_all_threads(lambda shares: take_share(shares[0], 1), 2)


def test_callers_in_several_threads_do_not_disturb_each_other():
    totals = np.zeros(4, int)

    def caller(number: int) -> None:
        for _ in range(100):
            parts = np.zeros(64, int)

            def fill(lo: int, hi: int, parts=parts) -> None:
                parts[lo:hi] += number + 1

            for_ranges(fill, 64, 5, 2)
            totals[number] += parts.sum()

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert totals.tolist() == [6400 * (i + 1) for i in range(4)]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_thread_count_refuses_what_is_no_number_of_threads(monkeypatch, text):
    monkeypatch.setenv("GGUFKIT_THREADS", text)
    with pytest.raises(UsageError, match="at least 1"):
        thread_count()


def test_helpers_keep_nothing_of_what_they_worked_on():
    meeting = threading.Barrier(2)  # both take part: neither ends before the other has begun

    def work(lo: int, hi: int) -> None:
        meeting.wait(10)

    there = weakref.ref(work)
    for_ranges(work, 2, grain=1, threads=2)
    del work
    assert there() is None


@pytest.mark.parametrize(("fast", "wanted"), [(4, 4), (None, 8)])
def test_efficiency_cores_of_macs_are_left_out(monkeypatch, fast, wanted):
    monkeypatch.delenv("GGUFKIT_THREADS", raising=False)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("ggufkit.kernels.cpu.performance_cores", lambda: fast)
    threads._fast_cpus.cache_clear()
    assert thread_count() == wanted
    assert thread_count(7) == 7
    threads._fast_cpus.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_heap_takes_the_limits_it_is_given():
    """A limit that is too large is refused by a number that nobody would read."""
    assert keep_arrays()
