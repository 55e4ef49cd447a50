"""Directional curvature against dense matrices, batch sharpness against every batch, cosines against simulated runs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import cases
from reference import dense
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, hessian
from thalweg.problem import Problem
from thalweg.spectra.directional import (
    batch_sharpness,
    directional_sharpness,
    sharpness_from_cosine,
    sharpness_from_updates,
)
from thalweg.spectra.estimate import EstimateStop


def symmetric(seed, size=6):
    stream = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=stream, dtype=torch.float64)
    return root + root.T, stream


@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), length=st.floats(1e-8, 1e8))
@settings(max_examples=60, deadline=None)
def test_directional_sharpness_is_the_rayleigh_quotient(seed, k, length):
    matrix, stream = symmetric(seed)
    u = torch.randn(6, k, generator=stream, dtype=torch.float64)
    found = directional_sharpness(from_dense(matrix), length * u)
    expected = torch.stack([c @ matrix @ c / (c @ c) for c in u.T])
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)
    assert found.products == k
    one = directional_sharpness(from_dense(matrix), u[:, 0])
    assert one.value.shape == ()
    assert float(one) == pytest.approx(expected[0].item())
    values = torch.linalg.eigvalsh(matrix)
    nearest = (values - one.value).abs().min()
    assert nearest <= one.residual * (1 + 1e-9)


def test_an_eigenvector_has_no_residual():
    matrix, _ = symmetric(0)
    values, vectors = torch.linalg.eigh(matrix)
    found = directional_sharpness(from_dense(matrix), vectors)
    torch.testing.assert_close(found.value, values)
    assert found.residual.max() < 1e-12
    assert "products=6" in repr(found)
    assert "curvature along it" in found.plot().to_json()


@pytest.mark.parametrize("name", cases.CASES)
def test_along_the_gradient_of_small_networks(name):
    case = cases.make(name)
    problem = case.problem()
    g, H = dense.gradient(case.model, case.whole), dense.hessian(case.model, case.whole)
    with hessian(problem) as operator:
        found = directional_sharpness(operator, problem.gradient(problem.initial))
    assert float(found) == pytest.approx((g @ H @ g / (g @ g)).item(), rel=1e-9)


def test_directions_that_make_no_sense_are_refused():
    operator = from_dense(torch.eye(3))
    for u in (torch.zeros(3), torch.full((3,), math.nan), torch.zeros(3, 2), torch.ones(1, 3, 1)):
        with pytest.raises(InvalidInput):
            directional_sharpness(operator, u)
    with pytest.raises(InvalidInput, match="shape"):
        directional_sharpness(operator, torch.ones(4))


def moments(case, groups):
    """``(g'Hg, g'g)`` of each group of samples, by dense derivatives."""
    x, y = case.data
    found = []
    for group in groups:
        index = torch.tensor(group)
        mean = lambda model: case.loss(model(x[index]), y[index])  # noqa: B023, E731
        g, H = dense.gradient(case.model, mean), dense.hessian(case.model, mean)
        found.append((g @ H @ g, g @ g))
    return torch.tensor(found, dtype=torch.float64).T


def test_over_all_its_batches_it_is_exact():
    """The problem's own ragged batches, weighted by their samples."""
    case = cases.make("mlp_mse")  # 11 samples in batches of 4
    over, under = moments(case, [range(4), range(4, 8), range(8, 11)])
    weight = torch.tensor([4.0, 4.0, 3.0], dtype=torch.float64) / 11
    found = batch_sharpness(case.problem())
    assert float(found.value) == pytest.approx(((weight * over).sum() / (weight * under).sum()).item(), rel=1e-9)
    assert found.products == 3
    mean = batch_sharpness(case.problem(), average="mean")
    assert float(mean.value) == pytest.approx((weight * over / under).sum().item(), rel=1e-9)


def test_of_the_whole_data_it_is_the_directional_sharpness(untouched):
    case = cases.make("mlp_ce")
    problem = case.problem()
    with untouched(case.model):
        found = batch_sharpness(problem, batch_size=9)
        with hessian(problem) as operator:
            expected = directional_sharpness(operator, problem.gradient(problem.initial))
    assert float(found.value) == pytest.approx(float(expected), rel=1e-9)
    assert (found.stop, found.products, float(found.standard_error)) == (EstimateStop.EXACT, 1, 0.0)


@pytest.mark.parametrize("average", ["ratio", "mean"])
def test_drawn_batches_estimate_the_mean_over_every_batch(average):
    """All 165 batches of 3 out of 11 samples are enumerated; the estimates must scatter about that as they say."""
    case = cases.make("mlp_mse")
    over, under = moments(case, itertools.combinations(range(11), 3))
    exact = float(over.sum() / under.sum() if average == "ratio" else (over / under).mean())
    problem = case.problem()
    scores = []
    for seed in range(6):
        found = batch_sharpness(problem, batch_size=3, average=average, max_products=32, seed=seed)
        assert (found.samples, found.stop) == (32, EstimateStop.SPENT)
        scores.append((float(found.value) - exact) / float(found.standard_error))
    assert max(map(abs, scores)) < 4
    assert sum(s * s for s in scores) / len(scores) < 2.5


def test_it_stops_at_its_target():
    problem = cases.make("mlp_mse").problem()
    found = batch_sharpness(problem, batch_size=4, target=0.1)
    assert found.stop is EstimateStop.TARGET
    assert found.relative_error <= 0.1
    assert found.products >= 8
    again = batch_sharpness(problem, batch_size=4, target=0.1)
    assert float(again.value) == float(found.value)
    with pytest.raises(NotConverged, match="relative standard error") as caught:
        batch_sharpness(problem, batch_size=4, target=1e-6, max_products=10)
    assert caught.value.result.products == 10
    assert batch_sharpness(problem, batch_size=4, target=1e-6, max_products=10, strict=False).stop.converged is False


def test_batches_that_make_no_sense_are_refused():
    case = cases.make("mlp_mse")
    problem = case.problem()
    for size in (0, 12):
        with pytest.raises(InvalidInput, match="11 samples"):
            batch_sharpness(problem, batch_size=size)
    with pytest.raises(InvalidInput, match="average"):
        batch_sharpness(problem, batch_size=2, average="median")
    with pytest.raises(InvalidInput):
        batch_sharpness(cases.make("ragged").problem(), batch_size=2)
    assert batch_sharpness(cases.make("ragged").problem()).products == 3
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    solved = Problem(model, F.mse_loss, (x, model(x).detach()))
    with pytest.raises(NonFinite, match="zero or not finite"):
        batch_sharpness(solved, batch_size=2)


def run(matrix, lr, momentum, dampening, steps, noise, stream, w):
    """Heavy ball on ``w'Hw / 2`` with gradient noise; returns updates and losses before each."""
    velocity, updates, losses = torch.zeros_like(w), [], []
    for _ in range(steps):
        losses.append(w @ matrix @ w / 2)
        g = matrix @ w + noise * torch.randn(len(w), generator=stream, dtype=w.dtype)
        velocity = momentum * velocity + (1 - dampening) * g
        updates.append(-lr * velocity)
        w = w + updates[-1]
    return torch.stack(updates), torch.stack(losses)


def felt(matrix, updates):
    """``sum U'HU / sum |U|^2`` over the updates that have a successor."""
    return float(((updates[:-1] @ matrix) * updates[:-1]).sum() / updates[:-1].square().sum())


@given(seed=st.integers(0, 10**6), momentum=st.floats(0, 0.95), dampening=st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_with_losses_it_is_exact_on_any_quadratic(seed, momentum, dampening):
    """Indefinite, transient, momentum still building up: the identity holds step by step."""
    matrix, stream = symmetric(seed)
    w = torch.randn(6, generator=stream, dtype=torch.float64)
    updates, losses = run(matrix, 0.05, momentum, dampening, 30, 0.0, stream, w)
    found = sharpness_from_updates(updates, 0.05, momentum, dampening, losses=losses)
    assert float(found.value) == pytest.approx(felt(matrix, updates), rel=1e-6, abs=1e-8)
    assert found.products == 0


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.5)])
def test_in_a_stationary_regime_the_cosine_suffices(momentum, dampening):
    stream = torch.Generator().manual_seed(1)
    matrix = torch.diag(torch.tensor([0.3, 1.0, 3.0, 9.0], dtype=torch.float64))
    w = torch.randn(4, generator=stream, dtype=torch.float64)
    updates, _ = run(matrix, 0.1, momentum, dampening, 12_000, 1.0, stream, w)
    settled = updates[2000:]
    found = sharpness_from_updates(settled, 0.1, momentum, dampening)
    exact = felt(matrix, settled)
    assert abs(float(found.value) - exact) < 4 * float(found.standard_error)
    assert found.relative_error < 0.15
    cosine = float((settled[:-1] * settled[1:]).sum() / settled[:-1].square().sum())
    assert sharpness_from_cosine(cosine, 0.1, momentum, dampening) == pytest.approx(float(found.value))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_the_edge_updates_flip(momentum):
    """With curvature at the threshold, the update changes its sign each step and the cosine tells the threshold."""
    lr, threshold = 0.1, (2 + 2 * momentum) / 0.1
    matrix = torch.diag(torch.tensor([threshold, 1.0], dtype=torch.float64))
    stream = torch.Generator().manual_seed(0)
    updates, _ = run(matrix, lr, momentum, 0.0, 2000, 0.0, stream, torch.tensor([1.0, 1.0], dtype=torch.float64))
    late = updates[-50:]
    assert float(F.cosine_similarity(late[0], late[1], dim=0)) == pytest.approx(-1, abs=1e-3)
    assert float(sharpness_from_updates(late, lr, momentum).value) == pytest.approx(threshold, rel=1e-2)


def test_updates_that_make_no_sense_are_refused():
    updates = torch.randn(10, 3)
    with pytest.raises(InvalidInput, match="rate is positive"):
        sharpness_from_cosine(0.1, lr=0.0)
    with pytest.raises(InvalidInput, match="rate is positive"):
        sharpness_from_updates(updates, lr=0.1, momentum=1.0)
    for bad in (updates[:2], torch.zeros(10, 3), updates[0]):
        with pytest.raises(InvalidInput, match="consecutive"):
            sharpness_from_updates(bad, lr=0.1)
    with pytest.raises(InvalidInput, match="losses of shape"):
        sharpness_from_updates(updates, lr=0.1, losses=torch.zeros(9))
