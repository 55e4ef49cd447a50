"""The cosine of consecutive updates on quadratics, its lag form, and bursts found in a path."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.oscillation import bursts, lag_cosine, mode_autocorrelation, oscillation, rotates


def descent(rate, momentum, curvature, *, steps, warm, noise=1.0, seed=0, decay=0.0):
    """Noisy gradient descent on a diagonal quadratic, in the stationary regime: (steps, P)."""
    rng = np.random.default_rng(seed)
    w, v, kept = np.zeros(len(curvature)), np.zeros(len(curvature)), []
    for step in range(warm + steps):
        v = momentum * v + (curvature + decay) * w + noise * rng.standard_normal(len(w))
        w = w - rate * v
        if step >= warm:
            kept.append(w.copy())
    return np.stack(kept)


@pytest.mark.parametrize(
    ("rate", "momentum", "decay"),
    [(0.1, 0.0, 0.0), (0.1, 0.9, 0.0), (0.3, 0.5, 0.1), (0.05, 0.95, 0.0), (0.4, 0.0, 0.2)],
)
def test_the_cosine_of_updates_is_momentum_less_half_the_curvature_they_feel(rate, momentum, decay):
    curvature = np.tile(np.linspace(0.2, 4.0, 50), 80)
    points = descent(rate, momentum, curvature, steps=200, warm=800, decay=decay)
    found = oscillation(Kernels.from_points(points), rate, momentum)[0]
    u = np.diff(points, axis=0)
    felt = ((curvature + decay) * u**2).sum() / (u**2).sum()
    assert found.cosine == pytest.approx(momentum - rate / 2 * felt, abs=2e-3)
    assert found.sharpness == pytest.approx(felt, abs=2 * 2e-3 / rate)
    assert abs(found.sharpness - felt) < 5 * found.standard_error
    assert found.drift < 0.02


def test_a_single_mode_follows_its_autocorrelation_at_every_lag():
    rate, momentum, curvature = 0.1, 0.6, 5.0
    points = descent(rate, momentum, np.full(20_000, curvature), steps=70, warm=200)
    found = oscillation(Kernels.from_points(points), rate, momentum)[0]
    r = mode_autocorrelation(rate, momentum, curvature, 64)
    for lag, measured in zip(found.lags, found.lag_cosines):
        assert measured == pytest.approx(lag_cosine(r[lag], r[2 * lag]), abs=0.01)
    assert found.lag_cosines[-1] == pytest.approx(-0.5, abs=0.02)  # 32 steps mix
    assert lag_cosine(r[1], r[2]) == pytest.approx(momentum - rate * curvature / 2, abs=1e-12)


def test_full_batch_descent_tells_its_curvature_with_losses_though_it_is_not_stationary():
    h, rate = 3.0, 0.1
    w = (1 - rate * h) ** np.arange(12.0)[:, None]
    found = oscillation(Kernels.from_points(w), rate, losses=0.5 * h * w[:, 0] ** 2)[0]
    assert found.sharpness == pytest.approx(h, rel=1e-6)


def test_at_the_edge_updates_are_opposite_and_the_curvature_is_the_threshold():
    for momentum in (0.0, 0.9):
        threshold = (2 + 2 * momentum) / 0.1
        points = np.outer((-1.0) ** np.arange(20), np.ones(3))
        found = oscillation(Kernels.from_points(points), 0.1, momentum)[0]
        assert found.cosine == pytest.approx(-1.0, abs=1e-12)
        assert found.sharpness == pytest.approx(threshold, rel=1e-9)
        assert rotates(0.1, momentum, 0.9999 * threshold) == "flipping"
        assert rotates(0.1, momentum, 1.01 * threshold) == "unstable"


@pytest.mark.parametrize(
    ("rate", "momentum", "h"), [(0.1, 0.0, 15.0), (0.1, 0.0, 5.0), (0.1, 0.9, 5.0), (0.1, 0.2, 21.0)]
)
def test_how_a_mode_moves_is_told_by_the_roots_of_its_recursion(rate, momentum, h):
    roots = np.roots([1, -(1 + momentum - rate * h), momentum])
    kind = (
        "spiral" if np.iscomplex(roots).any() else "flipping" if roots[np.abs(roots).argmax()].real < 0 else "monotone"
    )
    assert rotates(rate, momentum, h) == kind


def test_bursts_are_stretches_of_consecutive_steps_and_each_is_measured_alone():
    rng = np.random.default_rng(1)
    steps = np.array([0, 1, 2, 3, 4, 100, 200, 201, 202, 203])
    assert bursts(steps) == [(0, 5), (6, 10)]
    points = rng.standard_normal((10, 30))
    found = oscillation(Kernels.from_points(points, steps))
    assert [(one.first, one.last) for one in found] == [(0, 4), (200, 203)]
    u = np.diff(points[6:], axis=0)
    assert found[1].cosine == pytest.approx((u[:-1] * u[1:]).sum() / (u[:-1] ** 2).sum())
    assert np.isnan(found[0].sharpness)  # no rate is known
    assert oscillation(Kernels.from_points(points, np.arange(10) * 5)) == []


def test_modes_beyond_stability_are_refused():
    with pytest.raises(InvalidInput, match="stationary"):
        mode_autocorrelation(0.1, 0.0, 20.0, 3)
