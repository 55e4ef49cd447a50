"""Barriers against closed forms and dense grids, and what happens to layers that normalise by a batch."""

import math

import numpy as np
import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.problem import Problem
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.interpolation import BarrierStop, barrier, path_loss


def line(function, dtype=torch.float64):
    """A problem whose loss is ``function`` of one weight."""
    model = torch.nn.Linear(1, 1, bias=False).to(dtype)
    data = (torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype))
    return Problem(model, lambda out, _: function(out).mean(), data)


def at(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda w: (w**2 - 1) ** 2 + 0.3 * w,
        lambda w: 1 + torch.sin(3 * w) * torch.exp(-w),
        lambda w: torch.exp(-(((w - 0.61) / 0.15) ** 2)) + 0.1,
    ],
)
def test_the_barrier_is_the_maximum_of_a_dense_grid(function):
    a, b = at(-1.2, 1.4)
    found = barrier(line(function), a, b, tol=1e-4)
    alphas = torch.linspace(0, 1, 20001, dtype=torch.float64)
    losses = function((1 - alphas) * a + alphas * b)
    excess = losses - (1 - alphas) * losses[0] - alphas * losses[-1]
    best = int(excess.argmax())
    largest = float(losses.abs().max())
    assert found.stop.converged
    assert abs(found.value - float(excess[best])) <= 1e-4 * largest
    assert abs(found.alpha - float(alphas[best])) < 0.02
    assert found.evaluations == len(found.alphas) <= 33
    assert found.excess.max() == pytest.approx(found.value)


def test_a_convex_line_has_no_barrier_and_costs_few_evaluations():
    found = barrier(line(lambda w: w**2), *at(-1.0, 2.0))
    assert found.value == 0
    assert found.evaluations <= 20
    assert found.stop.converged


def test_refinement_beats_the_first_points_at_the_same_number_of_evaluations():
    function = lambda w: torch.exp(-(((w - 0.43) / 0.1) ** 2))  # noqa: E731
    fine = barrier(line(function), *at(0.0, 1.0), points=9, max_evaluations=17, tol=1e-6)
    plain = barrier(line(function), *at(0.0, 1.0), points=17, max_evaluations=17)
    assert plain.stop is BarrierStop.EVALUATIONS
    assert abs(fine.value - 1) < 0.1 * abs(plain.value - 1)


def test_a_loss_that_is_not_finite_is_an_infinite_barrier():
    found = barrier(line(lambda w: torch.where(w.abs() < 0.2, torch.inf, w**2)), *at(-1.0, 1.0))
    assert math.isinf(found.value)
    assert found.stop is BarrierStop.NOT_FINITE
    assert abs(found.alpha - 0.5) < 0.11


def test_the_path_has_all_losses_lengths_and_counts():
    problem = line(lambda w: (w**2 - 1) ** 2)
    points = at(-1.0, 0.0, 1.0, 1.5)
    asked = 0
    value = problem.value

    def counted(w):
        nonlocal asked
        asked += 1
        return value(w)

    problem.value = counted
    found = path_loss(problem, Trajectory.from_arrays([{"weight": p.reshape(1, 1)} for p in points], [0, 5, 7, 9]))
    np.testing.assert_allclose(found.losses, [0, 1, 0, 1.5625])
    np.testing.assert_allclose(found.travelled, [0, 1, 2, 2.5])
    assert found.evaluations == asked
    assert [one.steps for one in found.neighbours] == [(0, 5), (5, 7), (7, 9)]
    assert found.ends.steps == (0, 9)
    asked = 0
    plain = path_loss(problem, points, neighbours=False, ends=False)
    assert plain.evaluations == asked == 4
    np.testing.assert_allclose(plain.losses, found.losses)
    assert plain.barriers.shape == (0,)
    assert len(found.plot().data) == 3
    assert found.ends.plot().data[0].y is not None
    assert "Barrier between steps 0 and 9" in repr(found.ends)


def normed(training):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model.train(training)
    return model, Problem(model, torch.nn.MSELoss(), (torch.randn(20, 3), torch.randn(20, 2)))


def test_batch_statistics_are_taken_at_each_point_and_nothing_of_the_model_changes():
    model, problem = normed(training=False)
    other = normed(training=True)[1]
    a = problem.initial
    b = a + torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = path_loss(problem, torch.stack([a, b]))
    assert not any(one.training for one in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert found.losses[1] == pytest.approx(float(other.value(b)), rel=1e-6)
    assert "taken anew" in found.notes[0]
    kept = path_loss(problem, torch.stack([a, b]), statistics="model")
    assert kept.losses[1] == pytest.approx(float(problem.value(b)), rel=1e-6)
    assert abs(kept.losses[1] / found.losses[1] - 1) > 1e-2
    assert "running statistics" in kept.notes[0]


def test_points_that_do_not_fit_are_refused():
    problem = line(lambda w: w**2)
    with pytest.raises(InvalidInput, match="shape"):
        barrier(problem, torch.zeros(2), torch.zeros(2))
    with pytest.raises(InvalidInput, match="weight"):
        barrier(problem, {"other": torch.zeros(1)}, torch.zeros(1))
    with pytest.raises(InvalidInput, match="two ends"):
        path_loss(problem, torch.zeros(1, 1))
    with pytest.raises(InvalidInput, match="points"):
        barrier(problem, torch.zeros(1), torch.ones(1), points=2)
    with pytest.raises(InvalidInput, match="statistics"):
        barrier(problem, torch.zeros(1), torch.ones(1), statistics="running")
