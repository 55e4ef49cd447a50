"""The estimators on simulated layouts of jumps, whose density is known, and the law of the loss change."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.glass import KURTOSIS, integrated, jump_paths, three_point
from thalweg.errors import InvalidInput
from thalweg.glass.estimators import (
    GAUSSIAN,
    JENSEN,
    Increments,
    curvature_and_density,
    glass_part,
    independent_glass_part,
    relative_variance,
)

DRAWS = 200_000
SIGMA = 0.01


def estimates(rate, law, curvature=0.0, points=3, draws=DRAWS, seed=0):
    """(h, rho) of many layouts with ``rate`` jumps per unit length."""
    at = np.linspace(-SIGMA, SIGMA, points)
    paths = jump_paths(draws, rate, SIGMA, at, law, np.random.default_rng(seed))
    gradients = torch.tensor(paths.T + curvature * at[:, None])
    h, rho = curvature_and_density(gradients, SIGMA)
    return h.numpy(), rho.numpy()


@pytest.mark.parametrize(("crossings", "law"), [(20, "gaussian"), (2, "signs"), (2, "laplace"), (200, "signs")])
def test_density_and_its_variance_are_those_of_the_layout(crossings, law):
    rate = crossings / SIGMA
    draws = DRAWS if crossings < 100 else 30_000
    h, rho = estimates(rate, law, curvature=5.0, draws=draws)
    true = rate  # jumps have mean square one
    assert rho.mean() == pytest.approx(true, rel=0.03)
    assert rho.var() / true**2 == pytest.approx(relative_variance(3, crossings, KURTOSIS[law]), rel=0.06)
    assert h.var() == pytest.approx(true / (2 * SIGMA), rel=0.05)
    assert abs(h.mean() - 5.0) < 5 * h.std() / math.sqrt(draws)


def test_rare_jumps_spread_the_estimate():
    _, rho = estimates(0.2 / SIGMA, "gaussian")
    assert relative_variance(3, 0.2, 3.0) == pytest.approx(9.5)
    assert rho.mean() == pytest.approx(0.2 / SIGMA, rel=0.03)
    assert rho.var() / rho.mean() ** 2 == pytest.approx(9.5, rel=0.06)


def test_mean_jumps_are_curvature():
    rate = 2000.0
    h, _ = estimates(rate, "shifted", curvature=3.0, draws=50_000)
    assert h.mean() == pytest.approx(3 + rate / 2, rel=0.01)  # between jumps, plus lambda E[J]


@pytest.mark.parametrize("points", [4, 5, 9])
def test_more_points_are_worth_what_theory_says(points):
    crossings = 100 * (points - 1) / 2  # between neighbours: 100
    at = np.linspace(-SIGMA, SIGMA, points)
    rng = np.random.default_rng(points)
    steps = rng.normal(size=(DRAWS, points - 1)) * math.sqrt(2 * SIGMA / (points - 1) * crossings)
    paths = np.concatenate([np.zeros((DRAWS, 1)), steps.cumsum(axis=1)], axis=1) + 40 * at
    h, rho = curvature_and_density(torch.tensor(paths.T), SIGMA)
    assert float(rho.mean()) == pytest.approx(crossings, rel=0.01)
    assert float(rho.var()) / crossings**2 == pytest.approx(2 / (points - 2), rel=0.03)
    assert relative_variance(points) == 2 / (points - 2)
    assert float(h.var()) == pytest.approx(crossings / (2 * SIGMA), rel=0.02)


def test_a_two_point_estimate_would_be_biased():
    at = np.array([0.0, SIGMA])
    paths = jump_paths(50_000, 2000, SIGMA, at, "signs", np.random.default_rng(1)) + 1000 * at
    biased = np.square(paths[:, 1] - paths[:, 0]).mean() / SIGMA
    assert biased == pytest.approx(2000 + 1000**2 * SIGMA, rel=0.03)


@pytest.mark.parametrize("law", ["gaussian", "signs", "laplace"])
@pytest.mark.parametrize("crossings", [0.01, 0.1, 1, 10, 100])
def test_the_glass_part_bounds_the_deviation(law, crossings):
    draws = 400_000 if crossings < 5 else 40_000
    length = 0.5
    x = integrated(draws, crossings / length, length, law, np.random.default_rng(2))
    rho = torch.tensor([crossings / length])
    move = torch.tensor([length])
    noise = 4 * np.abs(x).std() / math.sqrt(draws)
    mean = np.abs(x).mean()
    assert mean <= float(glass_part(rho, move)) + noise
    assert np.sqrt(np.square(x).mean()) == pytest.approx(float(glass_part(rho, move, JENSEN)), rel=0.06)
    if crossings >= 10:
        assert mean == pytest.approx(float(glass_part(rho, move)), rel=0.05)
    if crossings <= 0.01:  # quadratic with few jumps: lambda E|J| length^2 / 2
        size = {"gaussian": math.sqrt(2 / math.pi), "signs": 1.0, "laplace": math.sqrt(0.5)}[law]
        assert mean == pytest.approx(0.5 * crossings / length * size * length**2, rel=0.06)


def test_constants():
    assert pytest.approx(0.4606588659617807) == GAUSSIAN
    assert pytest.approx(0.5773502691896258) == JENSEN
    # the density's own constant: alpha = (9/8) c^2 is 3 / (4 pi)
    assert pytest.approx(3 / (4 * math.pi)) == 9 / 8 * GAUSSIAN**2


def test_coordinates_add_up_or_in_squares():
    rho, move = torch.tensor([4.0, 9.0]), torch.tensor([1.0, -4.0])
    assert float(glass_part(rho, move)) == pytest.approx(GAUSSIAN * (2 + 3 * 8))
    assert float(independent_glass_part(rho, move)) == pytest.approx(GAUSSIAN * math.sqrt(4 + 9 * 64))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 10),
)
def test_three_points_are_the_printed_formulas(values, slope, sigma):
    minus, centre, plus = values
    h, rho = curvature_and_density(torch.tensor(values, dtype=torch.float64), sigma)
    by_hand = three_point([minus], [centre], [plus], sigma)
    assert float(h) == pytest.approx(by_hand[0][0], rel=1e-9, abs=1e-9)
    assert float(rho) == pytest.approx(by_hand[1][0], rel=1e-9, abs=1e-9)
    tilted = torch.tensor([minus - slope * sigma, centre, plus + slope * sigma], dtype=torch.float64)
    again = curvature_and_density(tilted, sigma)
    assert float(again[1]) == pytest.approx(float(rho), rel=1e-6, abs=1e-6 * slope**2)


def test_increments_are_numpys():
    rows = torch.randn(7, 3, dtype=torch.float64) + 1e6
    kept = Increments()
    for row in rows:
        kept.add(row)
    np.testing.assert_allclose(kept.mean, rows.mean(0))
    np.testing.assert_allclose(kept.standard_error, rows.numpy().std(axis=0, ddof=1) / math.sqrt(7), rtol=1e-8)
    alone = Increments()
    alone.add(rows[0])
    assert alone.standard_error.isnan().all()


@pytest.mark.parametrize(("count", "sigma"), [(2, 1.0), (3, 0.0), (3, -1.0), (3, math.nan)])
def test_bad_input_is_refused(count, sigma):
    with pytest.raises(InvalidInput, match="three gradients"):
        curvature_and_density(torch.zeros(count, 1), sigma)
