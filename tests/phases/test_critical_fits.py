"""Summaries over seeds, and fits: against NumPy, optimality of pooling, what is left out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InvalidInput
from thalweg.phases.fits import isotonic_fit, polynomial_fit, summarise

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_a_summary_is_mean_quantiles_and_a_bootstrap_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = summarise(values, quantiles=(0.1, 0.5))
    assert np.isclose(found.mean, values.mean())
    assert np.allclose(found.quantiles, np.quantile(values, [0.1, 0.5]))
    half = (found.interval[1] - found.interval[0]) / 2
    assert np.isclose(half, 1.96 * values.std() / 20, rtol=0.1)
    assert summarise(values).interval == summarise(values).interval
    assert summarise(values).interval != summarise(values, seed=1).interval


def test_what_lies_beyond_the_grid_is_left_out_and_counted():
    found = summarise([2.0, 8.0, np.nan, np.inf], log=True)
    assert np.isclose(found.mean, 4)
    assert (found.count, found.missing) == (2, 2)
    none = summarise([np.nan])
    assert np.isnan(none.mean)
    assert none.count == 0
    for wrong in ({"quantiles": (2,)}, {"bootstrap": 0}, {"level": 1.0}):
        with pytest.raises(InvalidInput):
            summarise([1.0], **wrong)
    with pytest.raises(InvalidInput, match="logarithms"):
        summarise([-1.0], log=True)


def test_a_polynomial_in_the_inverse_width():
    z = 1 / np.array([64, 128, 256, 512, 1024])
    y = 2.4 + 226 * z - 900 * z**2
    fit = polynomial_fit(z, y)
    assert np.allclose(fit.coefficients, (2.4, 226, -900))
    assert np.allclose(fit(z), y)
    noisy = y + np.random.default_rng(1).normal(size=5)
    assert np.allclose(polynomial_fit(z, noisy, 1).coefficients, np.polyfit(z, noisy, 1)[::-1])
    weights = np.array([1.0, 2, 3, 4, 5])
    assert np.allclose(polynomial_fit(z, noisy, 1, weights).coefficients, np.polyfit(z, noisy, 1, w=weights**0.5)[::-1])


def test_few_points_lower_the_degree():
    assert polynomial_fit([0.1, 0.1, 0.1], [1, 2, 3]).coefficients == pytest.approx((2.0,))
    assert len(polynomial_fit([0.1, 0.2], [1, 2]).coefficients) == 2
    fit = polynomial_fit([0.1, 0.2, 0.3], [1, np.nan, 3])
    assert np.isclose(fit(0.2), 2)
    for wrong in (([0.1], [1, 2]), ([], []), ([0.1], [np.nan])):
        with pytest.raises(InvalidInput):
            polynomial_fit(*wrong)
    with pytest.raises(InvalidInput, match="degree"):
        polynomial_fit([1], [1], -1)


@given(numbers, st.data())
def test_pooling_gives_the_nearest_monotone_values(y, data):
    z, y = np.arange(len(y), dtype=float), np.array(y)
    fit = isotonic_fit(z, y, increasing=True)
    own = np.array(fit.coefficients)
    assert np.all(np.diff(own) >= -1e-12)
    best = np.sum((own - y) ** 2)
    for _ in range(5):
        other = np.sort(data.draw(st.lists(st.floats(-100, 100), min_size=len(y), max_size=len(y))))
        assert best <= np.sum((other - y) ** 2) + 1e-9
        near = own + 1e-3 * (other - own)  # monotone, too
        assert best <= np.sum((near - y) ** 2) + 1e-9
    down = isotonic_fit(z, -y, increasing=False)
    assert np.allclose(down.coefficients, -own)


def test_the_direction_is_the_better_one_and_equal_points_are_pooled():
    assert isotonic_fit([1, 2, 3], [3, 2, 1]).coefficients == (3.0, 2.0, 1.0)
    fit = isotonic_fit([1, 1, 2], [0, 2, 5])
    assert fit.z == (1.0, 2.0)
    assert fit.coefficients == (1.0, 5.0)
    assert np.allclose(fit([0, 1.5, 9]), [1, 3, 5])
    assert "isotonic" in repr(fit)
