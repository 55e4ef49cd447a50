"""Time averages of correlated snapshots: against loops, against arviz-stats, against processes that are known."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import series as naive
from thalweg.errors import InvalidInput, NonFinite
from thalweg.stationarity import arviz, refusals
from thalweg.stationarity.doubling import doubling
from thalweg.stationarity.series import (
    autocorrelation,
    effective_size,
    geweke,
    integrated_time,
    integrated_times,
    normal_scores,
    refusal,
    split_rhat,
    tail_index,
    time_average,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 60), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e-20, 1e12]))
def test_autocorrelation_and_time_are_those_of_the_loops(n, seed, unit):
    x = np.cumsum(np.random.default_rng(seed).standard_normal(n)) * unit
    assert autocorrelation(x) == pytest.approx(naive.autocorrelation(x / unit), abs=1e-10)
    assert integrated_time(x) == pytest.approx(naive.integrated_time(x / unit), rel=1e-6, abs=1e-6)


def test_columns_are_series_of_their_own():
    x = np.random.default_rng(0).standard_normal((100, 3)).cumsum(0)
    x[:, 1] = 4.2
    times = integrated_times(x)
    assert times[[0, 2]] == pytest.approx([integrated_time(x[:, 0]), integrated_time(x[:, 2])])
    assert np.isnan(times[1])
    assert autocorrelation(x)[:, 2] == pytest.approx(autocorrelation(x[:, 2]))


def test_anything_that_holds_numbers_is_a_series():
    x = np.random.default_rng(0).standard_normal(64)
    want = integrated_time(x)
    for form in (x.tolist(), torch.tensor(x, requires_grad=True), xr.DataArray(x, dims="step")):
        assert integrated_time(form) == want


@pytest.mark.parametrize("tau", [1.0, 3.0, 9.0, 19.0, 39.0])
def test_time_of_an_autoregression_within_a_fifth(tau, seed):
    x = naive.ar1(tau, int(4000 * tau), np.random.default_rng(seed))
    mean = time_average(x)
    assert mean.tau == integrated_time(x)
    assert mean.tau == pytest.approx(tau, rel=0.2)
    assert mean.ess == pytest.approx(4000, rel=0.25)
    assert mean.standard_error == pytest.approx(math.sqrt(1 / 4000), rel=0.15)


def test_error_of_a_mean_covers_the_truth(seed):
    """400 windows of 100 effective samples: an interval that ignored the correlation would hold 40 % of them."""
    x = naive.ar1(9.0, 900, np.random.default_rng(seed), 400)
    inside, ignored = 0, 0
    for column in x.T:
        low, high = time_average(column).interval
        inside += low < 0 < high
        ignored += abs(column.mean()) < 1.96 * column.std() / 30
    assert 0.89 <= inside / 400 <= 0.98
    assert ignored / 400 < 0.6


def test_alternation_does_not_count_as_more_than_there_is():
    x = (-1.0) ** np.arange(100) + 1e-3 * np.random.default_rng(0).standard_normal(100)
    assert integrated_time(x) == 1.0
    assert effective_size(x) <= 100


def test_effective_size_beside_that_of_arviz(seed):
    x = naive.ar1(5.0, 5000, np.random.default_rng(seed))
    own = 5000 / integrated_time(x)
    assert arviz.effective_size(x[None], "mean") == pytest.approx(own, rel=0.15)
    assert effective_size(x) <= own


def test_units_do_not_reach_arviz():
    """arviz-stats takes a range below 1e-15 for a constant, and would return as many samples as snapshots."""
    x = naive.ar1(9.0, 400, np.random.default_rng(0))
    assert arviz.effective_size(x[None] * 1e-18) == pytest.approx(arviz.effective_size(x[None]))
    assert arviz.rhat((x * 1e-18).reshape(2, -1)) == pytest.approx(arviz.rhat(x.reshape(2, -1)))


def test_effective_size_sees_what_the_mean_hides():
    """Heavy tails drown a drift in the mean, not in the ranks."""
    rng = np.random.default_rng(1)
    x = rng.standard_cauchy(1000) + np.linspace(0, 6, 1000)
    assert 1000 / integrated_time(x) > 300
    assert effective_size(x) < 50


def test_rhat_is_the_formula_on_four_quarters(seed):
    rng = np.random.default_rng(seed)
    for n in (16, 101, 400):
        x = naive.ar1(3.0, n, rng) + np.linspace(0, 1, n)
        found = split_rhat(x)
        cut = x[n % 4 :]
        assert found.value == pytest.approx(naive.rhat(x), rel=1e-12)
        assert found.rank == pytest.approx(naive.rhat(naive.scores(cut)), rel=1e-12)
        assert found.folded == pytest.approx(naive.rhat(naive.scores(np.abs(cut - np.median(cut)))), rel=1e-12)
        assert found.worst == max(found.rank, found.folded)


def test_rhat_tells_settled_from_not():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(8000)
    assert split_rhat(x).worst < 1.01
    assert "agree" in repr(split_rhat(x))
    assert split_rhat(np.cumsum(x)).worst > 1.05
    assert split_rhat(x * np.linspace(1, 3, 8000)).folded > 1.05
    assert split_rhat(x * np.linspace(1, 3, 8000)).rank < 1.01, "only the spread changes"
    step = np.repeat([0.0, 1.0], 40)
    assert split_rhat(step).value == math.inf
    assert "do not agree" in repr(split_rhat(step))


def test_rhat_of_ranks_holds_for_heavy_tails():
    x = np.random.default_rng(0).standard_cauchy(4000)
    assert split_rhat(x).worst < 1.01
    moved = x + np.where(np.arange(4000) < 2000, 0.0, 2.0)
    assert split_rhat(moved).value < 1.01, "the mean of Cauchy noise hides the move"
    assert split_rhat(moved).rank > 1.05


def test_geweke_is_standard_normal_on_a_settled_series(seed):
    x = naive.ar1(5.0, 5000, np.random.default_rng(seed), 300)
    z = np.array([geweke(column) for column in x.T])
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.25
    assert abs(geweke(x[:, 0] + np.linspace(0, 3, 5000))) > 3
    assert geweke(np.repeat([0.0, 1.0], 50)) == -math.inf


def test_normal_scores_and_tails():
    rng = np.random.default_rng(0)
    x = rng.standard_cauchy((500, 2))
    found = normal_scores(x)
    assert found[:, 1] == pytest.approx(naive.scores(x[:, 1]))
    assert (np.argsort(found, axis=0) == np.argsort(x, axis=0)).all()
    light, heavy, none = rng.standard_normal(4000), rng.standard_t(1.5, 4000), rng.choice([-1.0, 1.0], 4000)
    assert tail_index(light) > 4
    assert 1.2 < tail_index(heavy) < 1.9
    assert tail_index(none) == math.inf
    assert tail_index(np.where(np.arange(4000) == 7, 1.0, 0.0)) == 0.0, "one spike on a constant"


REFUSED = [
    (np.arange(10.0), refusals.too_few("loss", 10)),
    (np.full(200, 2.5), refusals.constant("loss", 2.5)),
    (np.where(np.arange(200) >= 41, np.nan, 1.0), refusals.not_finite("loss", 159, 200, 41)),
    (np.full(10, np.inf), refusals.not_finite("loss", 10, 10, 0)),
    (np.zeros(0), refusals.too_few("loss", 0)),
]


@pytest.mark.parametrize(("x", "sentence"), REFUSED)
def test_refusals_are_the_sentences(x, sentence):
    assert refusal(x, "loss") == sentence


def test_refusal_of_correlated_snapshots_says_how_many_more(seed):
    x = naive.ar1(20.0, 500, np.random.default_rng(seed))
    effective = effective_size(x)
    assert effective < 50
    assert refusal(x, "loss") == refusals.too_correlated("loss", effective, 500)
    more = refusals.missing(effective, 500)
    assert (500 + more) * effective / 500 >= 50
    assert str(more) in refusal(x, "loss")
    assert refusal(naive.ar1(2.0, 500, np.random.default_rng(seed)), "loss") is None


def test_a_random_walk_never_has_enough(seed):
    rng = np.random.default_rng(seed)
    told = [refusal(np.cumsum(rng.standard_normal(2000)), "loss") for _ in range(50)]
    assert all(why is not None and why.startswith("Not enough effective samples") for why in told)


@pytest.mark.parametrize("function", [time_average, split_rhat, geweke, effective_size, integrated_time, doubling])
def test_bad_series_are_told_apart(function):
    with pytest.raises(NonFinite, match="3 are NaN or infinite, the first at index 41"):
        function(np.where((np.arange(200) >= 41) & (np.arange(200) < 44), np.nan, 1.0))
    with pytest.raises(InvalidInput, match=r"Every value of the series in the window is 2\.5"):
        function(np.full(200, 2.5))
    with pytest.raises(InvalidInput, match=r"shape \(200, 2\)"):
        function(np.random.default_rng(0).standard_normal((200, 2)))
    with pytest.raises(InvalidInput, match=r"shape \(3,\)"):
        function([1.0, 2.0, 3.0])


def test_rounding_is_constant():
    x = 0.1 * (1 + np.finfo(float).eps * (np.arange(100) % 3))
    assert len(set(x)) > 1
    with pytest.raises(InvalidInput, match="Every value"):
        time_average(x)


def test_doubling_is_the_mean_of_each_stretch(seed):
    x = naive.ar1(3.0, 1000, np.random.default_rng(seed))
    found = doubling(x, name="loss")
    assert found.n.tolist() == [62, 125, 250, 500, 1000]
    assert found.mean == pytest.approx([x[:n].mean() for n in found.n])
    assert found.standard_error[-1] == time_average(x).standard_error
    halves = time_average(x[:500]), time_average(x[500:])
    assert found.change[-1] == pytest.approx(halves[1].value - halves[0].value)
    error = math.hypot(halves[0].standard_error, halves[1].standard_error)
    assert found.score[-1] == pytest.approx(found.change[-1] / error)
    figure = found.plot()
    assert figure.layout.xaxis.type == "log"
    assert np.asarray(figure.data[1].y) == pytest.approx(found.mean)
    assert "loss" in repr(found)


def test_doubling_shows_a_mean_without_a_limit():
    """sin(log t): bounded and smooth in log t, and its time averages move for ever."""
    t = 1.0 + np.arange(2**15)
    x = np.sin(2 * np.log(t)) + 0.1 * np.random.default_rng(0).standard_normal(len(t))
    found = doubling(x)
    late = found.n >= 1024
    assert np.ptp(found.mean[late]) > 0.3
    assert (np.abs(found.score[late]) > 3).sum() >= 3
    steady = doubling(0.1 * np.random.default_rng(0).standard_normal(len(t)))
    assert (np.abs(steady.score) < 4).all()


def test_doubling_of_a_step_without_noise():
    found = doubling(np.repeat([1.0, 2.0], 32))
    assert found.score.tolist() == [0.0, math.inf]
    with pytest.raises(InvalidInput, match="shortest length is 8"):
        doubling(np.arange(100.0), least=8)
