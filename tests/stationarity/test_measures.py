"""Invariant-measure tools: bounds that hold and are attained, what telescopes, and two systems that are known."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from thalweg.errors import InvalidInput, NonFinite
from thalweg.stationarity import refusals
from thalweg.stationarity.measures import empirical_measure, invariance_bound, invariance_residual
from thalweg.stationarity.series import refusal, time_average
from thalweg.stationarity.two_sample import block_test

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_bounds_are_the_formulas():
    assert invariance_bound(500, 3.0) == 2 * 3 / 500
    assert invariance_bound(500, 3.0, 0.1) == 2 * 3 / 500 + 3 * math.sqrt(2 * math.log(20) / 500)
    fresh = 2 * 3 / 500 + 3 * math.sqrt(1 + 1 / 4) * math.sqrt(2 * math.log(20) / 500)
    assert invariance_bound(500, 3.0, 0.1, draws=4) == pytest.approx(fresh)


@pytest.mark.parametrize("bad", [(0, 1.0), (10, -1.0), (10, math.nan), (10, 1.0, 1.0), (10, 1.0, 0.5, 0)])
def test_bounds_of_nonsense(bad):
    with pytest.raises(InvalidInput, match="The bound needs"):
        invariance_bound(*bad)


def test_empirical_measure_is_the_mean_with_its_error():
    x = np.random.default_rng(0).standard_normal((300, 2))
    measure = empirical_measure(x, {"first": lambda s: s[0], "one": lambda s: 1.0})
    assert measure.means["first"] == time_average(x[:, 0])
    assert measure.means["one"].value == 1.0
    assert measure.means["one"].standard_error == 0.0
    assert measure.refused == {"one": refusals.constant("one", 1.0)}
    assert "(no verdict)" in repr(measure)
    assert len(measure.plot().data) == 2, "the constant is not drawn"
    assert empirical_measure(x[:20], {"first": lambda s: s[0]}).refused == {"first": refusals.too_few("first", 20)}


def test_a_deterministic_residual_telescopes_and_its_bound_is_attained():
    def flip(state):
        return -state

    path = [(-1.0) ** t for t in range(101)]  # ends where it began, and the next state is the other one
    found = invariance_residual(path, flip, {"x": float}, deterministic=True, bounds={"x": 1.0})
    assert found.residuals["x"].value == pytest.approx(-2 / 101)
    assert found.residuals["x"].bound == pytest.approx(2 / 101)
    assert found.residuals["x"].within
    assert found.total_variation == 1 / 101
    assert found.largest == pytest.approx(2 / 101)
    assert found.delta is None


def test_states_that_are_no_path_of_the_map_are_told():
    path = 0.9 ** np.arange(50.0)
    assert invariance_residual(path, lambda x: 0.9 * x, {"x": float}, deterministic=True).residuals["x"].within
    found = invariance_residual(path, lambda x: x + 3.0, {"x": float}, deterministic=True)
    assert not found.residuals["x"].within
    assert "ABOVE IT" in repr(found)


def test_weights_alone_are_not_the_state_of_momentum(seed):
    """The map of weights and velocity leaves the measure as it is; the one that forgets the velocity does not."""
    rng = np.random.default_rng(seed)

    def update(state, rng):
        velocity = 0.9 * state[1] + state[0] + rng.standard_normal()
        return np.array([state[0] - 0.05 * velocity, velocity])

    path = [np.zeros(2)]
    for _ in range(4999):
        path.append(update(path[-1], rng))
    path = path[1000:]
    square = {"square": lambda s: float(s[0] ** 2)}
    whole = invariance_residual(path, update, square, deterministic=False).residuals["square"]
    part = invariance_residual(
        path, lambda s, r: update(np.array([s[0], 0.0]), r), square, deterministic=False
    ).residuals["square"]
    assert abs(whole.value) < 4 * whole.standard_error
    assert abs(part.value) > 8 * part.standard_error


def test_residual_of_a_random_map_is_unbiased_and_bounded(seed):
    """An autoregression seen through tanh, from fresh draws: within its error, and rarely beyond its bound."""
    rng = np.random.default_rng(seed)

    def update(x, rng):
        return 0.8 * x + 0.6 * rng.standard_normal()

    scores, sizes = [], []
    for trial in range(60):
        path = [0.0]
        for _ in range(199):
            path.append(update(path[-1], rng))
        found = invariance_residual(
            path, update, {"tanh": math.tanh}, deterministic=False, bounds={"tanh": 1.0}, draws=2, seed=trial
        )
        residual = found.residuals["tanh"]
        assert residual.within
        assert residual.bound == invariance_bound(200, 1.0, 0.05, 2)
        scores.append(residual.value / residual.standard_error)
        sizes.append(abs(residual.value))
    assert np.mean(scores) == pytest.approx(0, abs=0.5)
    assert 0.6 < np.std(scores) < 1.4
    assert max(sizes) < 0.5 * invariance_bound(200, 1.0, 0.05, 2), "Azuma is generous"
    assert found.total_variation is None
    assert "random map" in repr(found)


def test_a_random_map_that_is_another_one_is_told(seed):
    rng = np.random.default_rng(seed)
    path = rng.uniform(-1, 1, 2000)
    right = invariance_residual(
        path, lambda x, r: r.uniform(-1, 1), {"sign": lambda x: float(x > 0)}, deterministic=False
    )
    wrong = invariance_residual(
        path, lambda x, r: r.uniform(-0.4, 1.6), {"sign": lambda x: float(x > 0)}, deterministic=False
    )
    assert abs(right.residuals["sign"].value) < 4 * right.residuals["sign"].standard_error
    assert wrong.residuals["sign"].value > 8 * wrong.residuals["sign"].standard_error
    assert not wrong.residuals["sign"].within
    assert not wrong.residuals["sign"].assured
    figure = wrong.plot()
    assert figure.data[0].y[0] == wrong.residuals["sign"].value / wrong.residuals["sign"].largest


def test_draws_depend_on_the_seed_alone():
    def residual(seed):
        path = np.linspace(0, 1, 50)
        return invariance_residual(
            path, lambda x, r: x + r.standard_normal(), {"x": float}, deterministic=False, seed=seed
        )

    assert residual(1).residuals["x"] == residual(1).residuals["x"]
    assert residual(1).residuals["x"].value != residual(2).residuals["x"].value


def test_the_telescoped_mean_is_no_evidence(seed):
    """A random walk through a bounded observable: the telescoped mean vanishes, and the windows give no agreement."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        x = np.tanh(np.cumsum(rng.standard_normal(2000)) / 40)
        assert abs(np.mean(x[:-1] - x[1:])) < 1e-3
        told = block_test(x[:1000], x[1000:], permutations=99)
        assert refusal(x) is not None
        assert told.refused is not None or told.p <= 0.05
    found = invariance_residual([0.0, 0.1, 0.2, 0.3], lambda x: x + 0.1, {"x": float}, deterministic=True)
    assert "no evidence" in repr(found)


def test_bad_input():
    path = np.zeros((5, 1))
    one = {"x": lambda s: float(s[0])}
    with pytest.raises(InvalidInput, match="0 observables"):
        empirical_measure(path, {})
    with pytest.raises(InvalidInput, match="3 states"):
        empirical_measure(path[:3], one)
    with pytest.raises(NonFinite, match="5 are NaN"):
        empirical_measure(path, {"x": lambda s: math.nan})
    with pytest.raises(NonFinite, match="x after the update"):
        invariance_residual(path, lambda s: s + np.inf, one, deterministic=True)
    with pytest.raises(InvalidInput, match="Bounds of y"):
        invariance_residual(path, lambda s: s, one, deterministic=True, bounds={"y": 1.0})
    with pytest.raises(InvalidInput, match="above its bound"):
        invariance_residual(path, lambda s: s + 2, one, deterministic=True, bounds={"x": 1.0})
    with pytest.raises(InvalidInput, match="one draw"):
        invariance_residual(path, lambda s: s, one, deterministic=True, draws=3)
    with pytest.raises(InvalidInput, match="0 draws"):
        invariance_residual(path, lambda s, r: s, one, deterministic=False, draws=0)


def test_synthetic_map(capsys):
    """The averages stated for the map of arXiv 2110.06256, which for the gradient hold on one of its three cycles."""
    found = runpy.run_path(str(EXAMPLES / "synthetic_map.py"))["main"]()
    assert np.abs(found["calm loss"] + 100).max() < 1e-9
    assert found["calm norm"].max() < 1e-6
    assert np.abs(found["loss"] + 18.2).max() < 0.2
    usual = np.abs(found["norm"] - 66.7) < 0.1
    assert 0.5 < usual.mean() < 0.85
    assert ((found["norm"][~usual] > 63.9) & (found["norm"][~usual] < 64.8)).all()
    assert set(found["spots"]) == {12}
    assert 15 <= min(found["cells"]) <= 17
    assert max(found["cells"]) <= 24
    assert np.abs(found["ratio"]).max() < 1e-3
    assert np.abs(found["share"] - 1).max() < 1e-3
    assert found["ratio"] + found["share"] == pytest.approx(1, abs=1e-5), "exact but for the quadrature"
    assert all(residual.within for residual in found["residual"].residuals.values())
    assert "no evidence" in capsys.readouterr().out


def test_noisy_quadratic(capsys):
    found = runpy.run_path(str(EXAMPLES / "noisy_quadratic.py"))["main"]()
    for name, row in found.items():
        assert row["update"] == pytest.approx(1, abs=0.01), name
        assert row["gradient"] == pytest.approx(row["expected"], rel=0.01), name
    assert found["rate 0.1"]["plain"] == pytest.approx(1, abs=0.01)
    assert found["rate 0.3"]["plain"] == pytest.approx(1, abs=0.01)
    assert found["rate 0.02, momentum 0.9"]["plain"] < 0.2, "the plain form fails with momentum"
    assert "momentum" in capsys.readouterr().out
