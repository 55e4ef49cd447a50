"""Critical sharpness against closed forms on quadratics, and against a fine scan of the loss of small networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

import cases
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.problem import Problem
from thalweg.spectra.critical import critical_sharpness, relative_critical_sharpness
from thalweg.spectra.crossing import CrossingStop, first_rise


class Weights(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)


def on_vector(function, w, **options):
    """The problem ``L(w) = function(w)``."""
    return Problem(Weights(w), lambda model, batch: (function(model.w), 1), [torch.zeros(1)], **options)


def draw(seed, size=6):
    """A definite matrix of random scale, its linear term, and a point."""
    stream = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=stream, dtype=torch.float64)
    scale = 10 ** (6 * torch.rand((), generator=stream, dtype=torch.float64) - 3)
    matrix = scale * (root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64))
    linear, w, d = (torch.randn(size, generator=stream, dtype=torch.float64) for _ in range(3))
    return matrix, linear * scale, w, d


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_on_quadratics_it_is_the_directional_sharpness(seed):
    matrix, linear, w, d = draw(seed)
    problem = on_vector(lambda v: v @ matrix @ v / 2 + linear @ v + 3, w)
    g = matrix @ w + linear
    found = critical_sharpness(problem)
    assert found.value == pytest.approx((g @ matrix @ g / (g @ g)).item(), rel=1e-6)
    assert found.evaluations <= 6
    assert found.gradients == 1
    d = d * torch.sign(d @ g)
    along = critical_sharpness(problem, direction=d, max_evaluations=20)
    assert along.value == pytest.approx((d @ matrix @ d / (d @ g)).item(), rel=1e-6)
    assert along.gradients == 0
    assert along.stop is CrossingStop.CONVERGED
    known = critical_sharpness(problem, direction=d, slope=(d @ g).item(), max_evaluations=20)
    assert known.value == pytest.approx(along.value, rel=1e-6)
    up = critical_sharpness(problem, direction=-d)
    assert up.stop is CrossingStop.RISES_AT_ONCE
    assert (up.value, up.learning_rate) == (math.inf, 0.0)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_relative_on_quadratics(seed):
    first, b1, w, _ = draw(seed)
    second, b2, *_ = draw(seed + 1)
    g1, g2 = first @ w + b1, second @ w + b2
    watched, trained = (on_vector(lambda v, m=m, b=b: v @ m @ v / 2 + b @ v, w) for m, b in ((second, b2), (first, b1)))
    found = relative_critical_sharpness(watched, trained, max_evaluations=30)
    same = relative_critical_sharpness(watched, g1, max_evaluations=30)
    assert (found.gradients, same.gradients) == (1, 0)
    assert same.value == pytest.approx(found.value, rel=1e-9)
    if g1 @ g2 > 0:
        assert found.value == pytest.approx((g1 @ second @ g1 / (g1 @ g2)).item(), rel=1e-6)
    else:
        assert found.stop is CrossingStop.RISES_AT_ONCE


def scan(problem, direction, upto):
    """The first crossing on a fine grid, refined."""
    w, start = problem.initial, problem.value(problem.initial).item()

    def change(eta):
        return problem.value(w - eta * direction).item() - start

    grid = np.linspace(0, upto, 400)[1:]
    index = next(i for i, eta in enumerate(grid) if change(eta) > 0)
    return brentq(change, grid[index - 1], grid[index], xtol=1e-14)


@pytest.mark.parametrize("name", cases.CASES)
def test_small_networks_against_a_scan(name, untouched):
    case = cases.make(name)
    problem = case.problem()
    with untouched(case.model):
        cold = critical_sharpness(problem)
        direction = problem.gradient(problem.initial)
        exact = 2 / scan(problem, direction, 1.5 * cold.learning_rate)
        blind = critical_sharpness(problem, direction=direction)
        warm = critical_sharpness(problem, direction=direction, guess=1.1 * cold.learning_rate)
    for found in (cold, blind, warm):
        low, high = found.interval
        assert low <= exact <= high
        assert found.value == pytest.approx(exact, rel=1e-4)
        assert found.evaluations <= 9
        seen = dict(found.points)
        assert seen[found.bracket[0]] < 0 < seen[found.bracket[1]]
    assert warm.evaluations <= 6


@pytest.mark.parametrize("name", ["mlp_mse", "attention", "ragged"])
def test_float32_agrees(name):
    problem = cases.make(name).problem()
    exact = critical_sharpness(problem).value
    assert critical_sharpness(problem.in_dtype(torch.float32)).value == pytest.approx(exact, rel=1e-3)


def test_bfloat16_knows_what_it_cannot_tell():
    """In bfloat16 the loss has 8 bits: where it moves by less, the search says so."""
    case = cases.make("mlp_mse")
    exact = critical_sharpness(case.problem()).value
    found = critical_sharpness(case.problem(dtype=torch.bfloat16), strict=False)
    assert found.noise > 1e-2 * found.loss
    assert found.interval[0] <= exact * 1.1
    assert found.interval[1] >= exact / 1.1
    assert found.stop is CrossingStop.ROUNDING
    with pytest.raises(NotConverged, match="wider dtype") as caught:
        critical_sharpness(case.problem(dtype=torch.bfloat16))
    assert caught.value.result.points == found.points


def test_a_dip_below_rounding_is_not_a_crossing():
    """Near a minimum the whole dip is smaller than the rounding of a large constant."""
    w = torch.full((3,), 1e-4)
    problem = on_vector(lambda v: v @ v + 100, w)
    found = critical_sharpness(problem, strict=False)
    assert not found.stop.converged
    exact = critical_sharpness(on_vector(lambda v: v @ v, w.double()))
    assert exact.value == pytest.approx(2)


def test_only_forward_passes(monkeypatch):
    """The loss has no derivative at all, and counts how often it is called."""
    calls = []

    def loss(v):
        calls.append(1)
        with torch.no_grad():
            return (v @ v).detach()

    problem = on_vector(loss, torch.ones(4, dtype=torch.float64), check=False)
    calls.clear()
    found = critical_sharpness(problem, direction=torch.ones(4, dtype=torch.float64))
    assert found.value == pytest.approx(1.0)  # d'Hd / d'g = 8 / 8
    assert len(calls) == found.evaluations < 10


def test_a_loss_that_never_rises():
    w = torch.ones(3, dtype=torch.float64)
    found = critical_sharpness(on_vector(lambda v: torch.sigmoid(v.sum()), w))
    assert found.stop is CrossingStop.NEVER_RISES
    assert (found.value, found.learning_rate, found.bracket[1]) == (0.0, math.inf, math.inf)
    assert found.interval[0] == 0
    assert found.interval[1] == 2 / found.bracket[0]


def test_a_loss_that_overflows_has_risen():
    w = torch.full((2,), 3.0, dtype=torch.float64)
    problem = on_vector(lambda v: torch.cosh(20 * v).sum().log(), w)
    blown = on_vector(lambda v: torch.cosh(200 * v.square()).sum(), w * 0.3)
    kinked = critical_sharpness(problem, max_evaluations=14)  # almost 20 |v|, where no parabola helps
    assert kinked.learning_rate == pytest.approx(0.6, rel=0.02)
    found = critical_sharpness(blown, guess=1.0, max_evaluations=60)
    assert found.stop is CrossingStop.CONVERGED
    assert any(change == math.inf for _, change in found.points)


def test_warm_starts_along_a_run_cost_less():
    case = cases.make("mlp_ce")
    problem = case.problem()
    w, guess, cold, warm = problem.initial, None, [], []
    for _ in range(12):
        direction = problem.gradient(w)
        cold.append(critical_sharpness(problem, w, direction))
        warm.append(critical_sharpness(problem, w, direction, guess=guess))
        assert warm[-1].value == pytest.approx(cold[-1].value, rel=1e-3)
        guess = warm[-1].learning_rate
        w = w - 0.5 * direction
    assert sum(r.evaluations for r in warm[1:]) < sum(r.evaluations for r in cold[1:])
    assert max(r.evaluations for r in warm[1:]) <= 6


def test_the_result_can_be_read():
    found = critical_sharpness(cases.make("mlp_mse").problem())
    assert "CONVERGED" in repr(found)
    assert f"evaluations={found.evaluations}" in repr(found)
    assert "critical learning rate" in found.plot().to_json()
    with pytest.raises(NotConverged, match="max_evaluations") as caught:
        critical_sharpness(cases.make("mlp_mse").problem(), max_evaluations=4)
    assert caught.value.result.evaluations == 4


def test_what_makes_no_sense_is_refused():
    problem = on_vector(lambda v: v @ v, torch.zeros(2, dtype=torch.float64))
    other = on_vector(lambda v: v @ v, torch.zeros(3, dtype=torch.float64))
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="direction is zero"):
        critical_sharpness(problem)
    with pytest.raises(InvalidInput, match="shape"):
        critical_sharpness(problem, direction=torch.ones(3))
    with pytest.raises(InvalidInput, match="first point -1"):
        critical_sharpness(problem, direction=one, guess=-1.0)
    with pytest.raises(InvalidInput, match="0 < tol < 1"):
        critical_sharpness(problem, direction=one, tol=0.0)
    with pytest.raises(InvalidInput, match="2 and 3 parameters"):
        relative_critical_sharpness(problem, other)
    with pytest.raises(NonFinite, match="nan"):
        critical_sharpness(problem, w=one * math.nan, direction=one)


@given(
    bend=st.floats(1e-6, 1e6),
    cubic=st.floats(-0.2, 5.0),
    first=st.floats(-4, 4),
    level=st.sampled_from([0.0, 1e-9, 1e-3, 0.05]),
    know=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_the_bracket_is_true_whatever_the_noise(bend, cubic, first, level, know, seed):
    """f = x (x/r - 1) (1 + c x/r) falls, and rises at r; errors stay within the stated noise."""
    root, stream = 1 / bend, np.random.default_rng(seed)

    def exact(x):
        t = x / root
        return x * (t - 1) * (1 + cubic * t)

    noise = level * root / 4  # in units of the depth of the dip
    found = first_rise(
        lambda x: exact(x) + noise * stream.uniform(-1, 1),
        root * 10**first,
        slope=1.0 if know else None,
        noise=2 * noise,
        max_evaluations=40,
    )
    low, high = found.bracket
    assert exact(low) <= 0 or low == 0
    assert high == math.inf or exact(high) >= 0
    if found.stop is CrossingStop.CONVERGED:
        assert low < found.root < high <= low * 1.01
        assert found.root == pytest.approx(root, rel=0.011) or cubic < 0  # then there are two crossings
    elif found.stop is CrossingStop.ROUNDING:
        assert level >= 1e-3
    else:
        assert cubic < 0 or (level == 0.05 and not know)
