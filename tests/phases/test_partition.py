"""The dynamic programme against trying every cut, against ruptures, and on series with known breaks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import partition as naive
from thalweg.errors import InvalidInput
from thalweg.phases.partition import partition
from thalweg.phases.partition_continuous import envelope


def series(seed, n):
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.uniform(0.1, 1.0, n))
    y = np.cumsum(rng.normal(size=n)) if seed % 2 else rng.normal(size=n)
    return x, y


def penalised(found):
    return found.cost + found.penalty * len(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 11), st.floats(0.0, 3.0), st.integers(2, 4))
def test_no_other_cut_is_cheaper(seed, n, penalty, least):
    x, y = series(seed, n)
    found = partition(x, y, penalty=penalty, min_points=least)
    assert penalised(found) == pytest.approx(naive.separate(x, y, penalty, least), abs=1e-9)
    assert min(np.diff(found.bounds)) >= least
    assert found.bounds[0] == 0
    assert found.bounds[-1] == n


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 10), st.floats(0.0, 3.0), st.integers(2, 4))
def test_no_other_knots_are_cheaper(seed, n, penalty, least):
    x, y = series(seed, n)
    found = partition(x, y, penalty=penalty, min_points=least, continuous=True)
    assert penalised(found) == pytest.approx(naive.joined(x, y, penalty, least), abs=1e-8)
    ends = [slope * x[k] + shift for (slope, shift), k in zip(found.lines, found.bounds[1:])]
    starts = [slope * x[k] + shift for (slope, shift), k in zip(found.lines, found.bounds)]
    np.testing.assert_allclose(ends[:-1], starts[1:], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_ruptures_cuts_alike(seed):
    rpt = pytest.importorskip("ruptures")
    rng = np.random.default_rng(seed)
    x = np.arange(80.0) / 20
    y = np.piecewise(x, [x < 1, (x >= 1) & (x < 2.5), x >= 2.5], [lambda u: -u, 0.2, lambda u: u - 2])
    y = y + 0.05 * rng.normal(size=80)
    penalty = 9 * 0.05**2 * np.log(80)
    found = partition(x, y, penalty=penalty, min_points=4)
    signal = np.stack([y, x, np.ones(80)], axis=1)
    theirs = rpt.Pelt(model="linear", min_size=4, jump=1).fit(signal).predict(pen=penalty)
    assert list(found.bounds[1:]) == theirs
    assert found.cost == pytest.approx(rpt.costs.CostLinear().fit(signal).sum_of_costs(theirs), rel=1e-9)


@pytest.mark.parametrize("n", [80, 200])
def test_known_joints_are_found(n):
    x = np.linspace(0, 4, n)
    knots = [0, n // 4, n // 2, n - 1]
    y = np.interp(x, x[knots], [1.0, 0.0, 0.1, 2.0])
    found = partition(x, y, penalty=1e-6, continuous=True)
    assert found.bounds == tuple(knots)
    assert found.cost < 1e-20


def test_a_penalty_without_bound_leaves_one_line():
    x, y = series(3, 40)
    for continuous in (False, True):
        found = partition(x, y, penalty=1e9, continuous=continuous)
        assert len(found) == 1
        np.testing.assert_allclose(found.lines[0], np.polyfit(x, y, 1), rtol=1e-8)


def test_scaling_and_shifting_move_nothing():
    x, y = series(5, 60)
    for continuous in (False, True):
        plain = partition(x, y, penalty=0.7, continuous=continuous)
        moved = partition(3 * x + 100, 8 * y - 50, penalty=64 * 0.7, continuous=continuous)
        assert moved.bounds == plain.bounds


def test_the_envelope_holds_every_lowest_parabola():
    rng = np.random.default_rng(0)
    curves = np.stack([rng.uniform(0.5, 3, 300), rng.normal(size=300), rng.uniform(0, 2, 300)], axis=1)
    v = np.linspace(-20, 20, 20_001)
    lowest = np.unique(np.argmin(np.stack([a * v * v + b * v + c for a, b, c in curves]), axis=0))
    assert set(lowest) <= set(envelope(curves).tolist())
    assert len(envelope(curves)) < 30


@pytest.mark.parametrize(
    ("x", "y", "settings", "words"),
    [
        ([0, 2, 1, 3], [0, 0, 0, 0], {}, "does not increase"),
        ([0, 1, 2, 3], [0, np.nan, 0, 0], {}, "NaN"),
        ([0, 1, 2], [0, 0, 0], {}, "3 points"),
        ([0, 1, 2, 3], [0, 0, 0], {}, "shapes"),
        ([0, 1, 2, 3], [0, 0, 0, 0], {"penalty": -1.0}, "penalty"),
        ([0, 1, 2, 3], [0, 0, 0, 0], {"min_points": 1}, "min_points"),
    ],
)
def test_bad_input_is_explained(x, y, settings, words):
    with pytest.raises(InvalidInput, match=words):
        partition(x, y, **({"penalty": 1.0} | settings))
