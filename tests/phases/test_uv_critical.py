"""Critical values of the solvable model: formulas against simulation, averages against sampling, chaos."""

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.phases.uv import UVModel, reduced_step, uv_path
from thalweg.phases.uv_chaos import (
    chaos_begins,
    cubic_step,
    lyapunov,
    map_diverges,
    period_doublings,
    period_two_points,
    uv_orbits,
)
from thalweg.phases.uv_critical import (
    eps_mean,
    quadratic_c_loss,
    settled_trace,
    sharpness_factor,
    uv_c_loss,
    uv_c_max,
    uv_constants,
    uv_eps,
)
from thalweg.phases.uv_runs import UVRuns

TABLE = {
    2: (2.787, 3.44, 4.76),
    4: (2.430, 2.79, 4.48),
    8: (2.185, 2.37, 4.29),
    16: (2.074, 2.16, 4.16),
    64: (2.016, 2.039, 4.045),
    256: (2.004, 2.010, 4.012),
}
"""Averages found with 400 000 draws elsewhere: c_loss by trace and sharpness, c_max by sharpness."""


def starts(width, count, seed=0):
    """Outputs and kernels of random weights."""
    draw = np.random.default_rng(seed).standard_normal((2, count, width))
    return (draw[0] * draw[1]).sum(1) / width**0.5, (draw**2).sum((0, 2)) / width


@pytest.mark.parametrize("width", TABLE)
def test_the_table_of_averages(width):
    found = uv_constants(width)
    for value, known in zip((found.c_loss, found.c_loss_lambda, found.c_max_lambda), TABLE[width]):
        assert value == pytest.approx(known, rel=0.01)
    assert found.c_max == 4


@pytest.mark.parametrize("width", [1, 2, 5, 30])
def test_averages_are_those_of_random_weights(width):
    eps = uv_eps(UVModel(width), *starts(width, 200_000))
    found = uv_constants(width)
    for values, exact in (
        (uv_c_loss(eps), found.c_loss),
        (uv_c_loss(eps, "lambda"), found.c_loss_lambda),
        (uv_c_max(eps, "lambda"), found.c_max_lambda),
        (eps, found.mean_eps),
        (eps >= 1 / 8, found.never_rises),
        (eps, eps_mean(width, lambda e: e)),
    ):
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - exact) <= 4.5 * error + 1e-12


def test_the_loss_of_one_step_first_rises_at_the_formula():
    f, t = starts(8, 500)
    model = UVModel(8)
    eps = uv_eps(model, f, t)
    low, high = np.full(500, 0.5), np.full(500, 4.0)
    for _ in range(60):
        middle = (low + high) / 2
        rises = uv_path(model, f, t, lr=middle / t, steps=1).loss[:, 1] > f**2 / 2
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    below = eps < 1 / 8
    assert 0.9 < below.mean() < 1
    assert abs(low / uv_c_loss(eps) - 1)[below].max() < 1e-6  # both sides are flat near eps = 1/8
    assert abs(low - 4)[~below].max() < 1e-12  # no rise up to 4


def test_no_later_step_rises_below_the_formula():
    f, t = starts(4, 3000)
    model = UVModel(4)
    eps = uv_eps(model, f, t)
    rises = uv_path(model, f, t, lr=(1 - 1e-9) * uv_c_loss(eps) / t, steps=300).loss[:, 1:].max(1) > f**2 / 2
    assert not rises[eps < 1 / 8].any()
    assert rises[eps >= 1 / 8].any()  # the first step raises nothing below 4; a later one does just below it


def test_a_later_step_raises_the_loss_of_a_start_with_a_large_eps():
    for c, expected in ((3.82, False), (3.84, True)):
        s, g = np.float64(c), 0.15 * c**2
        peak = 0.0
        for _ in range(100):
            s, g = reduced_step(s, g)
            peak = max(peak, float(g))
        assert (peak > 0.15 * c**2) == expected


def test_training_diverges_at_four():
    f, t = starts(4, 300)
    model = UVModel(4)
    below = uv_path(model, f, t, lr=3.98 / t, steps=20_000)
    assert np.isfinite(below.loss).all()
    assert (np.diff(below.kernel) <= 1e-12 * t[:, None]).all()  # the trace never rises
    assert np.isinf(uv_path(model, f, t, lr=4.02 / t, steps=20_000).loss[:, -1]).all()


def test_where_the_trace_settles():
    for width, c in ((16, 1.0), (64, 1.5), (256, 0.5)):
        eps = 1 / (4 * (width + 1))
        s, g = c, c**2 * eps
        for _ in range(400):
            s, g = reduced_step(s, g)
        lost = 1 - float(s) / c
        assert 1 - float(settled_trace(eps, c)) == pytest.approx(lost, rel=25 * eps)  # first order
    f, t = starts(16, 4000)
    path = uv_path(UVModel(16), f, t, lr=1 / t, steps=300)
    left = path.kernel[:, -1] / t
    assert abs(left.mean() - float(settled_trace(1 / 68, 1.0))) < 4 * left.std() / 4000**0.5 + 1e-3  # second order


def test_the_quadratic_model_has_the_wrong_sign():
    eps = np.linspace(0.001, 0.12, 20)
    assert (quadratic_c_loss(eps) < 2).all()
    assert (uv_c_loss(eps) > 2).all()
    assert (sharpness_factor(eps) > 1).all()


def test_period_doublings_and_chaos():
    doublings = period_doublings(6)
    assert doublings[0] == pytest.approx(1, abs=1e-12)
    assert doublings[1] == pytest.approx(5**0.5 - 1, abs=1e-12)
    assert doublings[2] == pytest.approx(1.29, abs=0.005)
    gaps = np.diff(doublings)
    assert gaps[-2] / gaps[-1] == pytest.approx(4.6692, rel=1e-3)  # universal
    start = chaos_begins()
    assert start == pytest.approx(1.303, abs=0.001)
    assert chaos_begins(7) == pytest.approx(start, abs=1e-6)
    assert map_diverges() == pytest.approx(2, abs=1e-12)
    exponents = lyapunov([0.9, 1.1, 1.27, start - 0.003, start + 0.002, 1.36, 1.455, 1.9])
    assert (exponents > 0).tolist() == [False, False, False, False, True, True, False, True]


def test_periods_are_seen_in_orbits():
    psi = [0.9, 1.1, 1.26, 1.295, 1.455]
    found = uv_orbits(psi, points=96)
    periods = [len(np.unique(row.round(6))) for row in found.kernel]
    assert periods == [1, 2, 4, 8, 3]
    assert sorted(found.kernel[1, :2]) == pytest.approx([2 * z for z in period_two_points(1.1)], rel=1e-9)
    assert len(found.plot().data) == 3
    assert "1.2361" in repr(found)


def test_beyond_two_orbits_leave():
    phi = (1 + 2.001) / 3
    for _ in range(2000):
        phi = cubic_step(phi, 2.001)
        if phi > 10:
            break
    assert phi > 10


@pytest.mark.parametrize("units", ["trace", "lambda"])
def test_runs_agree_with_the_path_and_with_their_weights(units):
    model, seeds = UVModel(6), (3, 4, 9)
    runs = UVRuns(model, seeds, units)
    rows = [(0, 1.0), (2, 3.0), (1, 2.5), (1, 9.0)]
    curves = runs.run(rows, measure=[1, 4])
    assert (runs.first_losses(rows)[:3] == curves.loss[:3, 1]).all()
    assert np.isfinite(curves.sharpness[0]).nonzero()[0].tolist() == [0, 1, 4]
    assert np.isinf(curves.loss[3, -1])
    at = runs.sharpness_at(rows, [4, 1, 0, 10])
    assert at[0] == curves.sharpness[0, 4]
    assert at[1] == curves.sharpness[1, 1]
    assert at[2] == runs.sharpness0[1]
    assert np.isnan(at[3])
    from reference.uv import descend

    barrier = runs.barrier(rows, points=11)
    for row, (place, c) in enumerate(rows[:3]):
        u, v = model.weights(seeds[place])
        end = descend(u, v, 1.0, 0.0, c / runs.sharpness0[place], runs.steps)[-1]
        line = [
            model.reduce((1 - a) * u + a * end[0], (1 - a) * v + a * end[1])[0] ** 2 / 2 / runs.loss0[place]
            for a in np.linspace(0, 1, 11)[1:]
        ]
        assert barrier[row] == pytest.approx(max(line), rel=1e-9)
    assert np.isinf(barrier[3])
    assert runs.cost.runs == 8


@pytest.mark.parametrize(
    "call",
    [
        lambda: uv_c_loss(0.3),
        lambda: uv_c_loss(0.1, "kernel"),
        lambda: settled_trace(0.01, 2.5),
        lambda: uv_constants(0),
        lambda: lyapunov(2.5),
        lambda: uv_orbits([]),
        lambda: period_doublings(0),
        lambda: period_two_points(0.5),
        lambda: UVRuns(UVModel(4), ()),
        lambda: UVRuns(UVModel(4), units="kernel"),
        lambda: UVRuns(UVModel(4, y=1.0)).c_loss,
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(InvalidInput):
        call()


@pytest.mark.parametrize("mode", ["bisect", "grid"])
@pytest.mark.parametrize("width", [4, 64])
def test_the_search_for_critical_constants_finds_the_truth(width, mode):
    from thalweg.phases.critical import critical_constants

    runs = UVRuns(UVModel(width), seeds=tuple(range(40)), steps=30)
    found = critical_constants(runs, mode=mode, barrier=False)
    loss, most, sharp = found["c_loss"], found["c_max"], found["c_sharp"]
    exact = runs.eps < 1 / 8
    assert exact.sum() > 30
    assert ((loss.low <= runs.c_loss) & (runs.c_loss <= loss.high))[exact].all()
    assert ((most.low <= 4) & (most.high > 4)).all()
    assert (sharp.low <= 4 + 1e-12).all()  # on the grid, c = 4 itself rises or not by rounding
    assert (sharp.high >= 4 - 1e-12).all()
    assert found["c_max"].value == pytest.approx(4, rel=0.04)  # a grid of 0.1


@pytest.mark.parametrize("width", [4, 64, 1024])
def test_the_saturated_trace_bends_at_two_whatever_the_width(width):
    from thalweg.phases.saturation import saturation

    found = saturation(UVRuns(UVModel(width), seeds=tuple(range(500))), stop=1.9, grid_step=0.1)
    assert found.c_crit == pytest.approx(2.0, rel=1e-9)
    assert found.interval == pytest.approx((2.0, 2.0), rel=0.08)  # one step of the grid
