"""Trend, jump, agreement of windows and the level of the gradient: their levels, and what they refuse."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from thalweg.errors import InvalidInput
from thalweg.stationarity.agreement import agreement, thinned
from thalweg.stationarity.change import LIMIT, jump
from thalweg.stationarity.level import floor_of, level
from thalweg.stationarity.trend import line, trend


def ar(rng, n, tau):
    a = (tau - 1) / (tau + 1)
    return lfilter([1.0], [1.0, -a], rng.standard_normal(n + 20 * tau) * math.sqrt(1 - a * a))[20 * tau :]


@pytest.mark.parametrize(("n", "tau"), [(20, 1), (200, 3), (3000, 20)])
def test_the_trend_keeps_its_level(n, tau):
    rng = np.random.default_rng(n)
    p = np.array([line(ar(rng, n, tau), np.arange(float(n))).p for _ in range(1000)])
    assert 0.03 < (p < 0.05).mean() < 0.08  # binomial error 0.007
    assert (p < 0.005).mean() < 0.015


def test_the_trend_against_least_squares():
    rng = np.random.default_rng(0)
    t = np.arange(500.0, 1000.0)
    x = 3 * t**-0.7 * np.exp(0.1 * rng.standard_normal(500))
    found = trend(x, t)
    assert found.slope == pytest.approx(np.polyfit(np.log(t), np.log(x), 1)[0], rel=1e-9)
    naive = 0.1 / (np.log(t).std() * math.sqrt(500))
    assert found.standard_error == pytest.approx(naive, rel=0.25)
    assert found.scale == "power"
    assert trend(x, t - 500).scale == "log"  # step 0 has no logarithm
    assert trend(x - 0.05, t).scale == "linear"
    assert trend(np.arange(50.0)).p == 0.0


def test_bad_trends():
    with pytest.raises(InvalidInput, match="times increase"):
        trend(np.random.default_rng(0).random(20), np.zeros(20))
    with pytest.raises(InvalidInput, match="no logarithm"):
        trend(-np.random.default_rng(0).random(20), scale="log")


@pytest.mark.parametrize("tau", [1, 10])
def test_chance_makes_few_jumps(tau):
    rng = np.random.default_rng(tau)
    assert sum(jump(ar(rng, 2000, tau)).clear for _ in range(400)) <= 4


def test_a_jump_is_found_where_it_is():
    x = ar(np.random.default_rng(0), 2000, 5) + 2 * (np.arange(2000) >= 700)
    found = jump(x)
    assert abs(found.place - 700) < 30
    assert found.size == pytest.approx(2, abs=0.3)
    assert jump(np.repeat([0.0, 1.0], 50)).score == math.inf
    assert jump(np.repeat([0.0, 1.0], 50)).score > LIMIT


def test_agreement_does_not_see_monotone_maps():
    x = ar(np.random.default_rng(1), 3000, 5)
    plain, mapped = agreement(x), agreement(np.exp(3 * x))
    assert plain.state == mapped.state == "settled"
    assert plain.trend.t == pytest.approx(mapped.trend.t)


def test_a_walk_in_a_bounded_observable_is_not_settled():
    for seed in range(20):
        walk = np.random.default_rng(seed).standard_normal(4000).cumsum()
        assert agreement(np.tanh(walk / 60)).state != "settled"


def test_spread_that_grows_is_no_agreement():
    rng = np.random.default_rng(0)
    found = agreement(rng.standard_normal(3000) * np.repeat([1.0, 1.6], 1500))
    assert found.state == "changed"
    assert "halves differ" in found.why


def test_vectors():
    rng = np.random.default_rng(0)
    still = np.stack([ar(rng, 3000, 3) for _ in range(4)], axis=1)
    assert agreement(still).state == "settled"
    moved = still.copy()
    moved[1500:, 2] += 1.0
    assert agreement(moved).state == "changed"
    assert agreement(still.cumsum(axis=0)).state == "open"
    assert agreement(np.zeros((200, 3))).why.startswith("Every value")
    still[7, 1] = np.nan
    assert "NaN" in agreement(still).why
    assert agreement(still[:10] * 0 + 1).needed == 50 or "NaN" in agreement(still[:10]).why


def test_refusals_say_how_many_would_do():
    assert agreement(np.random.default_rng(0).random(10)).needed == 50
    short = agreement(ar(np.random.default_rng(0), 1200, 20))
    assert short.state == "open"
    assert short.needed > 1200
    assert agreement(np.ones(100)).needed is None


def test_thinning_keeps_both_phases():
    swing = (-1.0) ** np.arange(3000)[:, None]
    assert set(thinned(swing).ravel()) == {-1.0, 1.0}
    assert len(thinned(swing)) <= 800
    assert len(thinned(np.zeros((100, 1)))) == 100


def test_the_interval_of_the_level_covers():
    rng = np.random.default_rng(3)
    steps = np.arange(1000, 2000, 10)
    inside = 0
    for _ in range(400):
        low, high = level(steps, 1 + 0.5 * ar(rng, 100, 4), floor=0.01).interval
        inside += low <= 1 <= high
    assert 0.92 < inside / 400 < 0.98


def test_levels():
    rng = np.random.default_rng(0)
    steps = np.arange(1000, 2000, 20)
    noise = rng.standard_normal(50)
    assert level(steps, 1 + 0.1 * noise, floor=0.05).state == "above"
    assert level(steps, 0.001 * (noise - noise.mean()), floor=0.05).state == "zero"
    assert level(steps, 0.02 + 0.001 * noise, floor=0.05).state == "between"
    assert "both zero and the floor" in level(steps, 10 * (noise - noise.mean()), floor=0.05).why
    assert "holds the floor" in level(steps, 0.05 + 0.01 * noise, floor=0.05).why
    assert "no gradient level from the start" in level(steps, 1 + 0.1 * noise).why
    assert "negative" in level(steps, -1 + 0.1 * noise, floor=0.05).why
    assert level(steps, np.zeros(50), floor=0.05).state == "zero"  # exactly at rest
    assert level(steps, (steps / 1000.0) ** 2 + 0.01 * noise, floor=0.05).rising
    assert level(steps, (steps / 1000.0) ** -2 + 0.01 * noise, floor=0.05).falling
    assert "1 time" in level(steps[:1], noise[:1]).why
    assert "NaN" in level(steps, np.where(noise > 2, np.nan, noise) * np.where(steps == 1500, np.nan, 1)).why


def test_errors_within_probes_count():
    steps = np.arange(50)
    alike = 1 + 1e-6 * np.random.default_rng(0).standard_normal(50)
    found = level(steps, alike, error=np.full(50, 0.5), floor=0.01)
    assert found.standard_error == pytest.approx(0.5 / math.sqrt(50))


def test_the_floor_is_of_the_start():
    steps = np.array([0, 5, 10, 500, 1000])
    assert floor_of(steps, np.array([4.0, 3.0, 2.0, 1.0, 1.0]), 1000) == pytest.approx(0.05 * 3)
    assert math.isnan(floor_of(steps[3:], np.ones(2), 1000))


@pytest.mark.parametrize("period", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("n", [256, 396, 1000, 2001, 5000])
def test_exact_cycles_do_not_move(period, n):
    cycle = np.cos(2 * np.pi * np.arange(n) / period + 0.3)
    assert agreement(cycle).state in ("settled", "open")
