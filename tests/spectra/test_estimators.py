"""Trace, diagonal and Frobenius norm against dense matrices: values, errors, coverage, budgets, what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from spectra_of_all_kinds import SPECTRA, symmetric

from reference import estimators
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, from_function
from thalweg.spectra.diagonal import diagonal
from thalweg.spectra.estimate import Estimate, EstimateStop, student_quantile
from thalweg.spectra.frobenius import frobenius_norm
from thalweg.spectra.sampling import draw, stream_of
from thalweg.spectra.trace import trace

VERBS = {
    "trace": (trace, lambda A: A.trace(), ("xtrace", "hutch++", "hutchinson")),
    "diagonal": (diagonal, lambda A: A.diagonal(), ("xdiag", "plain")),
    "frobenius_norm": (frobenius_norm, lambda A: A.norm(), ("deflated", "plain")),
}
ALL = [(verb, method) for verb, (_, _, methods) in VERBS.items() for method in methods]
EVERY = pytest.mark.parametrize(("verb", "method"), ALL, ids=[f"{verb}, {method}" for verb, method in ALL])
DEFLATING = {"xtrace": 2, "hutch++": 3, "xdiag": 2, "deflated": 2}
"""Products a probe."""

_rng = np.random.default_rng(3)
COVERED = {
    "decaying": 0.9 ** np.arange(150),
    "flat and indefinite": np.linspace(-1, 1.4, 150),
    "outliers": np.r_[[10, 8, 5, -4], _rng.uniform(-0.3, 0.7, 146)],
    "power law": 1 / np.arange(1, 151),
}


def run(verb, method, operator, **options) -> Estimate:
    return VERBS[verb][0](operator, method=method, **options)


def within(estimate, truth, confidence, slack):
    low, high = estimate.interval(confidence)
    return bool(((low - slack <= truth) & (truth <= high + slack)).all())


@EVERY
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_the_truth(name, verb, method):
    matrix = symmetric(SPECTRA[name])
    operator = from_dense(matrix)
    found = run(verb, method, operator, max_products=60)
    truth = VERBS[verb][1](matrix)
    assert found.value.shape == found.standard_error.shape == found.skewness.shape == truth.shape
    assert found.products == operator.products <= 60
    assert found.stop in (EstimateStop.SPENT, EstimateStop.EXACT)
    assert within(found, truth, 1 - 1e-7, 1e-12 * max(float(matrix.norm()), 1e-300))


@EVERY
def test_few_parameters_are_had_exactly(verb, method):
    for values in ([3.0], [2.0, -1.0, 0.5], np.linspace(-1, 2, 40), np.zeros(25)):
        matrix = symmetric(values)
        operator = from_dense(matrix)
        found = run(verb, method, operator)
        assert found.stop is EstimateStop.EXACT
        assert found.products == operator.products == found.samples == len(matrix)
        scale = max(float(matrix.norm()), 1e-300)
        assert float((found.value - VERBS[verb][1](matrix)).abs().max()) <= 1e-13 * scale
        assert float(found.standard_error.max()) <= 1e-13 * scale


@pytest.mark.parametrize(("verb", "method"), [(v, m) for v, m in ALL if m in DEFLATING])
@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_exact_where_the_probes_span_the_range(verb, method, rank):
    matrix = symmetric(np.r_[np.linspace(3, -2, rank), np.zeros(300 - rank)])
    operator = from_dense(matrix)
    found = run(verb, method, operator, target=1e-10)
    assert found.stop is EstimateStop.EXACT
    assert found.products == operator.products <= 40 * DEFLATING[method]
    error = float((found.value - VERBS[verb][1](matrix)).norm())
    assert error <= 1e-12 * max(float(matrix.norm()), 1e-300)
    assert error <= 3 * float(found.standard_error.norm()) or error == 0


@EVERY
@pytest.mark.parametrize("target", [0.1, 0.02])
def test_targets_are_met(verb, method, target):
    matrix = symmetric(0.97 ** np.arange(400))
    operator = from_dense(matrix)
    found = run(verb, method, operator, target=target)
    truth = VERBS[verb][1](matrix)
    assert found.stop.converged
    assert found.relative_error <= target
    assert found.products == operator.products
    assert float((found.value - truth).norm() / truth.norm()) <= 4 * target


@EVERY
def test_a_tighter_target_costs_more(verb, method):
    matrix = symmetric(0.98 ** np.arange(500))
    costs = [run(verb, method, from_dense(matrix), target=target).products for target in (0.3, 0.05, 0.005)]
    assert costs[0] < max(costs[1:])
    assert max(costs) <= 2 * len(matrix), "never much more than all columns"


@EVERY
def test_budget(verb, method):
    operator = from_dense(symmetric(np.linspace(-1, 1.1, 300)))
    with pytest.raises(NotConverged, match="relative standard error is") as caught:
        run(verb, method, operator, target=1e-6, max_products=100)
    found = caught.value.result
    assert isinstance(found, Estimate)
    assert found.stop is EstimateStop.BUDGET
    assert not found.stop.converged
    assert found.products == operator.products <= 100
    again = run(verb, method, operator, target=1e-6, max_products=100, strict=False)
    assert torch.equal(again.value, found.value)
    assert again.stop is EstimateStop.BUDGET


@EVERY
def test_a_budget_is_used_up(verb, method):
    operator = from_dense(symmetric(np.linspace(-1, 2, 300)))
    found = run(verb, method, operator, max_products=67)
    assert 67 - DEFLATING.get(method, 1) < found.products <= 67
    assert found.samples == found.products // DEFLATING.get(method, 1)
    assert run(verb, method, operator).products in (99, 100), "the default"


@EVERY
def test_a_budget_of_all_columns_gives_the_exact_value(verb, method):
    for size in (37, 38, 39):
        matrix = symmetric(np.linspace(-1, 2, size))
        found = run(verb, method, from_dense(matrix), max_products=size)
        assert found.stop is EstimateStop.EXACT
        assert float((found.value - VERBS[verb][1](matrix)).abs().max()) <= 1e-13 * size


@EVERY
def test_targets_below_rounding(verb, method):
    matrix = symmetric(np.r_[3.0, 0.3 + 0.2 * np.linspace(-1, 1, 399)]).float()
    found = run(verb, method, from_dense(matrix), target=1e-9, max_products=300, strict=False)
    assert found.value.dtype == torch.float32
    assert found.stop is EstimateStop.ROUNDING
    with pytest.raises(NotConverged, match="float64"):
        run(verb, method, from_dense(matrix), target=1e-9, max_products=300)


@EVERY
def test_seeds(verb, method):
    matrix = symmetric(COVERED["outliers"])
    before = torch.get_rng_state()
    one, two, other = (run(verb, method, from_dense(matrix), max_products=60, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.value, two.value)
    assert torch.equal(one.standard_error, two.standard_error)
    assert not torch.equal(one.value, other.value)
    assert torch.equal(before, torch.get_rng_state())


@EVERY
def test_bad_input(verb, method):
    operator = from_dense(symmetric(np.linspace(1, 2, 100)))
    with pytest.raises(InvalidInput, match="relative standard error"):
        run(verb, method, operator, target=0.0)
    with pytest.raises(InvalidInput, match="relative standard error"):
        run(verb, method, operator, target=math.nan)
    for budget in (0, 9):
        with pytest.raises(InvalidInput, match="needs at least"):
            run(verb, method, operator, max_products=budget)
    with pytest.raises(InvalidInput, match="No such estimator"):
        run(verb, "guess", operator)
    assert operator.products == 0


@EVERY
def test_products_that_are_not_finite(verb, method):
    operator = from_function(lambda v: v * torch.nan, 100)
    with pytest.raises(NonFinite, match="not finite"):
        run(verb, method, operator)
    calls = iter(range(1000))
    late = from_function(lambda v: v if next(calls) < 25 else v / 0.0, 1000)
    with pytest.raises(NonFinite, match="not finite"):
        run(verb, method, late)


@EVERY
def test_float32(verb, method):
    matrix = symmetric(COVERED["decaying"])
    found = run(verb, method, from_dense(matrix.float()), max_products=60)
    double = run(verb, method, from_dense(matrix), max_products=60)
    assert found.value.dtype == found.standard_error.dtype == torch.float32
    assert float((found.value.double() - double.value).abs().max()) <= 1e-4


@EVERY
def test_shifts_and_multiples(verb, method):
    """``2 A`` has twice the value and twice the error, to rounding."""
    matrix = symmetric(COVERED["power law"])
    one = run(verb, method, from_dense(matrix), max_products=60)
    two = run(verb, method, from_dense(matrix) * 2.0, max_products=60)
    torch.testing.assert_close(two.value, 2 * one.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(two.standard_error, 2 * one.standard_error, rtol=1e-6, atol=1e-13)


def test_xtrace_is_that_of_its_paper():
    matrix = symmetric(COVERED["outliers"])
    probes = draw(from_dense(matrix), 20, stream_of(4, "xtrace"), "normal")
    found = trace(from_dense(matrix), max_products=40, seed=4)
    torch.testing.assert_close(found.value, estimators.xtrace(matrix, probes), rtol=1e-11, atol=0)


def test_hutch_plus_plus_is_that_of_its_paper():
    matrix = symmetric(COVERED["outliers"])
    basis = draw(from_dense(matrix), 20, stream_of(4, "hutch++ basis"), "normal")
    probes = draw(from_dense(matrix), 20, stream_of(4, "hutch++"), "normal")
    found = trace(from_dense(matrix), method="hutch++", max_products=60, seed=4)
    torch.testing.assert_close(found.value, estimators.hutchplusplus(matrix, basis, probes), rtol=1e-11, atol=0)


def test_hutchinson_is_a_mean_of_quadratic_forms():
    matrix = symmetric(COVERED["outliers"])
    probes = draw(from_dense(matrix), 50, stream_of(4, "hutchinson"), "normal")
    probes = probes / probes.norm(dim=0) * len(matrix) ** 0.5
    found = trace(from_dense(matrix), method="hutchinson", max_products=50, seed=4)
    torch.testing.assert_close(found.value, torch.trace(probes.T @ matrix @ probes) / 50, rtol=1e-11, atol=0)


def test_the_norm_is_xtrace_of_the_square():
    matrix = symmetric(COVERED["outliers"])
    probes = draw(from_dense(matrix), 20, stream_of(4, "xtrace"), "normal")
    found = frobenius_norm(from_dense(matrix), max_products=40, seed=4)
    square = estimators.xtrace(matrix, probes, of=matrix @ matrix)
    torch.testing.assert_close(found.value.square(), square, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", COVERED)
def test_xdiag_and_its_error_by_leaving_two_out_by_hand(name):
    matrix = symmetric(COVERED[name][:40])
    probes = draw(from_dense(matrix), 15, stream_of(4, "xdiag"), "signs")
    found = diagonal(from_dense(matrix), max_products=30, seed=4)
    value, error = estimators.xdiag(matrix, probes)
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.standard_error, error, rtol=1e-7, atol=1e-12)


def test_growing_reuses_every_probe():
    """A target that is met in several rounds ends where one round of as many probes would."""
    matrix = symmetric(0.97 ** np.arange(400))
    for verb, method in ALL:
        grown = run(verb, method, from_dense(matrix), target=0.03, seed=2)
        once = run(verb, method, from_dense(matrix), max_products=grown.products, seed=2)
        assert grown.samples > 10
        torch.testing.assert_close(grown.value, once.value, rtol=1e-9, atol=1e-10)


def test_what_each_method_is_best_for():
    decaying, flat = from_dense(symmetric(0.9 ** np.arange(600))), from_dense(symmetric(np.linspace(0.9, 1.1, 600)))
    assert trace(decaying, target=0.01).products < 0.5 * trace(decaying, method="hutchinson", target=0.01).products
    assert trace(flat, method="hutchinson", target=2e-3).products <= trace(flat, target=2e-3).products
    assert (
        frobenius_norm(decaying, target=0.01).products < frobenius_norm(decaying, method="plain", target=0.01).products
    )


@given(
    values=st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 0.5000001, 2.0, 7.0, 1e3]), min_size=1, max_size=60),
    chosen=st.sampled_from(ALL),
    budget=st.integers(30, 70),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_any_spectrum(values, chosen, budget, seed):
    """Whatever the eigenvalues: the budget holds, the error is finite, and the truth lies within a wide interval."""
    matrix = symmetric(values, seed)
    operator = from_dense(matrix)
    found = run(*chosen, operator, max_products=budget, seed=seed)
    assert found.products == operator.products <= budget
    assert bool(torch.isfinite(found.standard_error).all())
    assert bool((found.standard_error >= 0).all())
    size = max(float(matrix.norm()), 1e-300)
    assert (
        float((found.value - VERBS[chosen[0]][1](matrix)).norm())
        <= 12 * float(found.standard_error.norm()) + 1e-12 * size
    )


@given(g=st.floats(-1, 1), confidence=st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_intervals_invert_halls_transformation(g, confidence):
    """``T + g T^2 / 3 + g^2 T^3 / 27 + g / 6`` at the ends of the interval is plus and minus Student's quantile."""
    one = torch.tensor(1.0, dtype=torch.float64)
    estimate = Estimate(3 * one, 0.7 * one, 20, 10, EstimateStop.SPENT, "by hand", 9.0, g * one)
    low, high = estimate.interval(confidence)
    assert low <= high
    t = stats.t.ppf(0.5 + confidence / 2, 9)
    for end, wanted in ((low, t), (high, -t)):
        T = float((3 - end) / 0.7)
        assert T + g * T**2 / 3 + g**2 * T**3 / 27 + g / 6 == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_intervals_lean_to_the_side_of_the_skewness():
    one = torch.tensor(1.0, dtype=torch.float64)
    plain, skewed, steep, steepest = (
        Estimate(0 * one, one, 20, 10, EstimateStop.SPENT, "by hand", math.inf, g * one) for g in (0.0, 0.5, 1.0, 30.0)
    )
    assert [round(float(end), 4) for end in plain.interval()] == [-1.96, 1.96]
    assert skewed.interval()[1] > -skewed.interval()[0]
    assert steep.interval() == steepest.interval(), "what is mostly noise corrects no more than this"
    assert student_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(InvalidInput, match="probability"):
            plain.interval(confidence)


def test_figures_and_text():
    matrix = symmetric(COVERED["power law"])
    number, entries = trace(from_dense(matrix)), diagonal(from_dense(matrix))
    assert f"products={number.products}" in repr(number)
    assert "±" in repr(number)
    assert "150 values" in repr(entries)
    assert len(entries.plot().data[0].x) == 150
    assert number.plot().data[0].y == (float(number.value),)
    long = diagonal(from_function(lambda v: v, 9001), max_products=20)
    assert len(long.plot().data[0].x) <= 2000
    for stop in EstimateStop:
        assert stop.value.endswith(".")
        assert stop.converged or ": " in stop.value, "what is not converged says what to try"


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("target", [None, 0.1], ids=["60 products", "to a target"])
def test_coverage(verb, method, target):
    """Of 200 intervals of 95 per cent, 90 to 99 per cent hold the truth; of a diagonal, on average over entries."""
    names = COVERED if target is None else ("decaying", "outliers")
    for name in names:
        matrix = symmetric(COVERED[name])
        operator, truth = from_dense(matrix), VERBS[verb][1](matrix)
        held = []
        for seed in range(200):
            budget = 60 if target is None else 149  # one less than all columns, which would be exact
            found = run(verb, method, operator, target=target, max_products=budget, seed=seed, strict=False)
            assert found.stop is not EstimateStop.EXACT
            low, high = found.interval()
            held.append(float(((low <= truth) & (truth <= high)).double().mean()))
        assert 0.90 <= np.mean(held) <= 0.99, f"{name}: {np.mean(held)}"
