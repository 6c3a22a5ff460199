"""Types under a budget: never too large, as good as trying everything, and better with more."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufkit.errors import PolicyError
from ggufkit.policy.allocate import Option, allocate, frontier, total

TYPES = ("A", "B", "C", "D")
OPTIONS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.dictionaries(
        st.sampled_from(TYPES), st.builds(Option, st.integers(1, 60), st.floats(0, 1e3, width=32)), min_size=1
    ),
    min_size=1,
)


def best(options, budget):
    """The least cost of all ways, by trying them."""
    names = list(options)
    ways = (dict(zip(names, types, strict=True)) for types in product(*(options[name] for name in names)))
    found = [total(options, way) for way in ways]
    return min((option.cost for option in found if option.nbytes <= budget), default=None)


@given(OPTIONS, st.integers(0, 260))
def test_allocation_fits_and_is_near_the_best(options, budget):
    expected = best(options, budget)
    if expected is None:
        with pytest.raises(PolicyError, match="smallest types take"):
            allocate(options, budget)
        return
    found = total(options, allocate(options, budget))
    assert found.nbytes <= budget
    # What a Lagrangian misses is at most one step of one tensor.
    steps = [max(o.cost for o in types.values()) - min(o.cost for o in types.values()) for types in options.values()]
    assert found.cost <= expected + max(steps) * (1 + 1e-9)


@given(OPTIONS)
def test_frontier_falls_and_its_points_are_the_best(options):
    points = frontier(options)
    assert [p.nbytes for p in points] == sorted({p.nbytes for p in points})
    for before, after in pairwise(points):
        assert after.cost <= before.cost
        assert after.saving <= before.saving * (1 + 1e-6)
    for point in points:
        assert point.cost == pytest.approx(best(options, point.nbytes), rel=1e-5, abs=1e-5)


def test_everything_where_there_is_room():
    options = {"a": {"Q2_K": Option(10, 4.0), "Q6_K": Option(30, 0.1), "Q8_0": Option(40, 0.2)}}
    assert allocate(options, 1000) == {"a": "Q6_K"}
    assert allocate(options, 29) == {"a": "Q2_K"}
