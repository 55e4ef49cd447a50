"""Turns between regimes: where a plateau begins, what only approaches it, and short rests at a minimum."""

import numpy as np
import pytest
from regime_expectations import EDGE

from thalweg.phases.regimes import segment
from thalweg.phases.regimes_turns import DOUBLING, NEAR, approaching, arrival, rest


def sampled(end, points=90):
    return np.unique(np.round(np.expm1(np.linspace(0, np.log1p(end), points))).astype(int))


def noisy(end, seed=0, size=0.01):
    return np.exp(-np.arange(end + 1) / end + size * np.random.default_rng(seed).normal(size=end + 1))


def logarithmic(t, knots, values):
    return np.exp(np.interp(np.log1p(t), np.log1p(knots), np.log(values)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "corner"), [(12, 5), (40, 10), (40, 33)])
def test_a_plateau_begins_at_the_corner(n, corner, seed):
    x = np.sort(np.random.default_rng(100 + seed).uniform(0, 2, n))
    y = np.minimum(0.8 * (x - x[corner]), 0) - 0.01 + 0.005 * np.random.default_rng(seed).normal(size=n)
    found, came = arrival(x, y, 0.005)
    assert came
    assert abs(found - corner) <= 2 or (found < corner and y[found] >= -NEAR)
    below, came = arrival(x, y - 0.03, 0.005)
    assert not came
    assert abs(below - corner) <= 2


def test_the_corner_is_that_of_a_search_over_everything():
    """Naive: least squares by `numpy.linalg.lstsq` for each corner, below the threshold."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        x = np.sort(rng.uniform(0, 1, 15))
        y = np.minimum(rng.uniform(0.2, 2) * (x - rng.uniform(0.2, 0.8)), 0) - 0.08 + 0.01 * rng.normal(size=15)
        costs = {0: ((y - y.mean()) ** 2).sum() - 2 * 0.01**2 * np.log(15)}
        assert y.max() < -NEAR
        for k in range(1, 13):
            design = np.stack([np.ones(15), np.minimum(x - x[k], 0)], 1)
            fit, *_ = np.linalg.lstsq(design, y, rcond=None)
            if fit[1] * (x[k] - x[0]) > 0.04:
                costs[k] = ((y - design @ fit) ** 2).sum()
        assert arrival(x, y, 0.01) == (min(costs, key=costs.get), False)


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_is_no_rise_and_nothing_approaches(seed):
    x = np.linspace(0, 1, 30)
    y = -0.05 + 0.01 * np.random.default_rng(seed).normal(size=30)
    assert arrival(x, y, 0.01) == (0, False)
    assert not approaching(x, y, 0.01)


def test_what_drifts_above_the_threshold_has_arrived():
    x = np.linspace(0, 1, 30)
    assert arrival(x, 0.1 * x, 1e-3) == (0, True)
    assert not approaching(x, 0.3 * x, 1e-3)
    t = sampled(8000)
    lam = logarithmic(t, [0, 20, 200, 1000, 8000], [9, 2, 2, 20.2, 23])
    found = segment(noisy(8000), lam, 0.1, sharpness_steps=t, rule="gd")
    assert found.order[-1] == EDGE
    assert 800 < found.segments[-1].start < 1200


def test_the_edge_begins_where_a_slow_approach_ends():
    t = sampled(30000)
    lam = logarithmic(t, [0, 20, 200, 2000, 6000, 30000], [9, 2, 2, 15, 20, 20])
    found = segment(noisy(30000), lam, 0.1, sharpness_steps=t, rule="gd")
    assert found.order == ("transient", "saturation", "sharpening", EDGE)
    assert 4500 < found.segments[-1].start < 7500
    assert found.segments[-1].ratio == pytest.approx(1, abs=0.02)


def test_a_slowing_approach_arrives_within_five_percent_and_not_at_the_bend():
    x = np.linspace(2, 4, 41)
    y = -0.5 * np.exp(-4 * (x - 2))
    found, came = arrival(x, y, 1e-3)
    assert came
    assert y[found - 1] < -NEAR <= y[found]


def test_one_touch_of_the_threshold_is_no_arrival():
    x = np.linspace(0, 1, 12)
    y = np.full(12, -0.05)
    y[4] = 0.0
    assert arrival(x, y, 1e-3) == (0, False)
    y[10:] = 0.0
    assert not arrival(x, y, 1e-3)[1]
    y[8:] = 0.0
    assert arrival(x, y, 1e-3) in [(8, True), (9, True)]


@pytest.mark.parametrize("end", [17.0, 18.5])
def test_an_approach_that_is_cut_off_is_still_sharpening(end):
    """It stands in the band of the threshold, and rises as fast as before."""
    t = sampled(3000)
    lam = logarithmic(t, [0, 20, 200, 2000, 3000], [9, 2, 2, 15, end])
    found = segment(noisy(3000), lam, 0.1, sharpness_steps=t, rule="gd")
    assert found.order[-1] == "sharpening"
    assert found.curves.ratio[-1] > 0.84


def test_sharpness_at_rest_just_below_the_threshold_is_the_edge_as_before():
    t = sampled(8000)
    lam = logarithmic(t, [0, 20, 200, 2000, 8000], [9, 2, 2, 18, 18])
    assert segment(noisy(8000), lam, 0.1, sharpness_steps=t, rule="gd").order[-1] == EDGE


@pytest.mark.parametrize("steep", [0.4, 0.8, 1.2])
def test_a_smooth_minimum_is_a_rest_if_it_lasts_as_long_as_the_time_before(steep):
    """``y = a (x - x_0)^2`` lies within 10 % over ``2 sqrt(0.0414 / a)`` decades."""
    x = np.linspace(1.0, 3.0, 81)
    found = rest(x, steep * (x - 2) ** 2, 1.0)
    width = 2 * np.sqrt(0.04 / steep)
    assert (found is not None) == (width >= DOUBLING)
    if found is not None:
        assert x[found[1]] - x[found[0]] == pytest.approx(width, abs=0.051)


def test_a_rest_needs_both_ends_time_and_measurements():
    x = np.linspace(1.0, 3.0, 41)
    dip = 0.2 * np.abs(x - 2)
    assert rest(x, dip, 1.0) is not None
    assert rest(x, dip, 1.95) is None  # most of it lies in the transient
    assert rest(x[:23], dip[:23], 1.0) is None  # it does not rise again
    assert rest(x[::10], np.array([1, 1, 0, 1, 1.0]), 1.0) is None  # one measurement


@pytest.mark.parametrize(("rate", "rests"), [(0.3, True), (1.5, False)])
def test_a_run_that_turns_slowly_saturates_and_one_that_turns_at_once_does_not(rate, rests):
    t = sampled(3000, 120)
    x = np.log10(1 + t)
    lam = 10 ** (np.sqrt(rate**2 * (x - np.log10(61)) ** 2 + (0.02 * rate) ** 2) - 1)
    found = segment(noisy(3000), lam, 0.001, sharpness_steps=t, rule="gd")
    assert ("saturation" in found.order) is rests
    if rests:
        middle = next(s for s in found.segments if s.label == "saturation")
        assert middle.start < 60 < middle.end
        assert abs(middle.change) < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_batch_sharpness_keeps_no_run_from_the_edge(seed):
    """Its level is 0.87 of the threshold: the median of noisy values may lie below the band."""
    t = np.unique([*sampled(8000), *np.linspace(4000, 8000, 20).astype(int)])
    lam = logarithmic(t, [0, 20, 200, 2000, 8000], [9, 2, 2, 20, 20])
    batch = 0.87 * lam * 10 ** (0.09 * np.random.default_rng(seed).normal(size=len(t)))
    given = {"sharpness_steps": t, "rule": "gd", "samples": 300, "batch_size": 30}
    assert segment(noisy(8000), lam, 0.1, batch_sharpness=batch, **given).order[-1] == EDGE
    assert EDGE not in segment(noisy(8000), lam, 0.1, batch_sharpness=0.6 * batch, **given).order


def test_noise_brings_no_run_to_the_edge():
    """Three noisy values at the end leave the median in doubt by more than it lacks."""
    t = np.unique([*sampled(8000), *np.linspace(4000, 8000, 20).astype(int)])
    lam = logarithmic(t, [0, 20, 200, 8000], [9, 2, 2, 17])
    given = {"sharpness_steps": t, "rule": "gd", "samples": 300, "batch_size": 30}
    for seed in range(5):
        batch = 0.7 * lam * 10 ** (0.09 * np.random.default_rng(seed).normal(size=len(t)))
        assert EDGE not in segment(noisy(8000), lam, 0.1, batch_sharpness=batch, **given).order
