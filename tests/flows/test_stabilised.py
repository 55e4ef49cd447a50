"""The Runge-Kutta-Chebyshev method: order, stable interval, error estimate, interpolation."""

import math

import pytest
import torch

from thalweg.flows.stabilised import chebyshev_step, coefficients, error_estimate, hermite, stages_for


def solve(steps, stages, length=2.0):
    """``y' = -y^2 + 0.3 cos(3 t) y`` from 1."""

    def velocity(t, y):
        return [-(y[0] ** 2) + 0.3 * math.cos(3 * t) * y[0]]

    y, h = [torch.ones((), dtype=torch.float64)], length / steps
    for i in range(steps):
        y = chebyshev_step(y, velocity(i * h, y), h, lambda since, at, t=i * h: velocity(t + since, at), stages)
    return float(y[0])


@pytest.mark.parametrize("stages", [2, 3, 7, 12])
def test_the_method_is_of_second_order(stages):
    truth = solve(2000, 2)
    coarse, fine = (abs(solve(n, stages) - truth) for n in (32, 64))
    assert math.log2(coarse / fine) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("stages", [2, 3, 5, 10, 40])
def test_the_stable_interval_grows_with_the_square_of_the_stages(stages):
    interval = coefficients(stages).interval
    assert interval > 0.65 * (stages**2 - 1)

    def factor(z):
        return chebyshev_step([torch.ones_like(z)], [z], 1.0, lambda _, y: [z * y[0]], stages)[0]

    inside = torch.linspace(-interval, 0, 4001, dtype=torch.float64)
    assert float(factor(inside).abs().max()) <= 1 + 1e-12
    assert float(factor(torch.tensor([-1.2 * interval], dtype=torch.float64)).abs()) > 1
    small = torch.tensor([-1e-3], dtype=torch.float64)
    assert float(factor(small)) == pytest.approx(1 - 1e-3 + 0.5e-6, abs=2e-10)


def test_as_many_stages_are_taken_as_the_stiffness_needs():
    for stiffness in (0.0, 1.9, 2.0, 30.0, 300.0):
        stages = stages_for(stiffness)
        assert coefficients(stages).interval >= stiffness
        assert stages == 2 or coefficients(stages - 1).interval < stiffness


def test_estimate_and_interpolation_know_a_cubic():
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    y, slope = t**3 - t, 3 * t**2 - 1
    found = error_estimate([y[0]], [y[1]], [slope[0]], [slope[1]], 0.5)[0]
    assert float(found) == pytest.approx(0.5**3 * 6 / 15), "a fifteenth of h^3 y'''"
    between = hermite(0.3, 0.5, [y[0]], [y[1]], [slope[0]], [slope[1]])[0]
    assert float(between) == pytest.approx(0.15**3 - 0.15)
