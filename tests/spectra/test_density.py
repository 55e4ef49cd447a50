"""The spectral density against dense eigenvalues: quadratures, moments, errors, coverage, early ends, figures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra_of_all_kinds import SPECTRA, symmetric

import cases
from reference import dense, estimators
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, from_function, hessian
from thalweg.problem import Problem
from thalweg.spectra.density import Density, spectral_density
from thalweg.spectra.estimate import EstimateStop
from thalweg.spectra.krylov import Krylov
from thalweg.spectra.sampling import stream_of

_rng = np.random.default_rng(3)
COVERED = {
    "decaying": 0.9 ** np.arange(120),
    "flat and indefinite": np.linspace(-1, 1.4, 120),
    "outliers": np.r_[[10, 8, 5, -4], _rng.uniform(-0.3, 0.7, 116)],
}


def first_vectors(operator, probes, seed):
    """The random vectors that the quadratures start from: each has a stream of its own."""
    found = []
    for i in range(probes):
        space = Krylov(operator, 1, stream_of(seed, f"density {i}"))
        space.begin(None)
        found.append(space.rows[0].clone())
    return found


def smoothed_truth(values, grid, width):
    """The density of these eigenvalues, each a Gaussian."""
    bumps = torch.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return bumps.mean(dim=1)


@pytest.mark.parametrize("name", SPECTRA)
def test_weights_and_nodes(name):
    matrix = symmetric(SPECTRA[name])
    operator = from_dense(matrix)
    found = spectral_density(operator, probes=6, steps=12)
    assert found.nodes.shape == found.weights.shape == (6, min(12, len(matrix)))
    assert found.probes == 6
    assert found.products == operator.products <= 72
    assert found.stop is EstimateStop.SPENT
    assert bool((found.weights >= 0).all())
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)
    assert bool((found.nodes.diff(dim=1) >= 0).all())
    values, norm = torch.linalg.eigvalsh(matrix), max(float(matrix.norm()), 1e-300)
    assert values[0] - 1e-13 * norm <= found.nodes.min()
    assert found.nodes.max() <= values[-1] + 1e-13 * norm
    low, high = found.moment(1).interval(1 - 1e-9)
    assert low - 1e-13 * norm <= values.mean() <= high + 1e-13 * norm
    assert float(found.moment(0).value) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("name", ["outliers", "negative", "both signs"])
def test_moments_of_every_probe_are_exact(name):
    """``v'A^j v`` for j up to ``2 steps - 1``, and not for the next."""
    matrix, steps = symmetric(SPECTRA[name]), 5
    operator = from_dense(matrix)
    found = spectral_density(operator, probes=3, steps=steps, seed=7)
    norm = float(torch.linalg.eigvalsh(matrix).abs().max())
    for v, nodes, weights in zip(first_vectors(operator, 3, 7), found.nodes, found.weights):
        power = v
        for j in range(2 * steps + 1):
            error = abs(float((weights * nodes**j).sum() - v @ power)) / norm**j
            assert error <= 1e-12 if j < 2 * steps else error > 1e-12
            power = matrix @ power


@pytest.mark.parametrize("name", ["outliers", "two values", "rank deficient", "tiny"])
def test_a_second_implementation(name):
    matrix = symmetric(SPECTRA[name])
    operator = from_dense(matrix)
    found = spectral_density(operator, probes=3, steps=9, seed=1)
    for v, nodes, weights in zip(first_vectors(operator, 3, 1), found.nodes, found.weights):
        expected_nodes, expected_weights = estimators.lanczos_quadrature(matrix, v, 9)
        kept = weights > 1e-20
        for power in (0, 1, 2, 5):  # nodes of an invariant space may come in another number, with weight zero
            mine = float((weights[kept] * nodes[kept] ** power).sum())
            assert mine == pytest.approx(float((expected_weights * expected_nodes**power).sum()), rel=1e-10, abs=1e-12)
        if name == "outliers":
            np.testing.assert_allclose(nodes.numpy(), expected_nodes, rtol=0, atol=1e-10)
            np.testing.assert_allclose(weights.numpy(), expected_weights, rtol=0, atol=1e-10)


def test_all_steps_give_all_eigenvalues():
    values = np.linspace(-1, 3, 25)
    found = spectral_density(from_dense(symmetric(values)), probes=4, steps=100)
    assert found.nodes.shape == (4, 25)
    assert found.complete
    for nodes in found.nodes:
        np.testing.assert_allclose(nodes.numpy(), values, rtol=0, atol=1e-12)
    assert float(found.moment(60).value) > 0, "no order is too high for a complete quadrature"


def test_invariant_spaces_end_early():
    operator = from_dense(symmetric(SPECTRA["two values"]))
    found = spectral_density(operator, probes=5, steps=20)
    assert found.complete
    assert found.products == operator.products == 5 * 2
    assert bool((found.weights > 1e-20).sum(dim=1).eq(2).all())
    assert float(found.cumulative(torch.tensor([0.0])).value) == pytest.approx(0.5, abs=0.2)
    one = spectral_density(from_dense(torch.eye(30, dtype=torch.float64)), probes=2)
    assert one.products == 2
    assert float(one.moment(1).standard_error) <= 1e-14
    grid, mean, _ = one.density()
    assert float(torch.trapezoid(mean, grid)) == pytest.approx(1.0, abs=1e-3)


def test_orders_that_the_quadrature_does_not_know():
    found = spectral_density(from_dense(symmetric(SPECTRA["outliers"])), probes=2, steps=4)
    found.moment(7)
    for order in (8, -1):
        with pytest.raises(InvalidInput, match="orders 0 to 7"):
            found.moment(order)


def test_cumulative():
    values = torch.from_numpy(np.r_[[-2.0] * 30, [1.0] * 60, [4.0] * 10])
    found = spectral_density(from_dense(symmetric(values)), probes=20, steps=10)
    x = torch.tensor([-3.0, -1.0, 0.99, 1.01, 3.9, 5.0])
    estimate = found.cumulative(x)
    truth = torch.tensor([0.0, 0.3, 0.3, 0.9, 0.9, 1.0], dtype=torch.float64)
    assert bool(((estimate.value - truth).abs() <= 4 * estimate.standard_error + 1e-12).all())
    assert float(estimate.value[0]) == 0.0
    assert float(estimate.value[-1]) == pytest.approx(1.0, abs=1e-14)
    assert bool((estimate.value.diff() >= 0).all())
    assert bool((estimate.standard_error[1:5] > 1e-3).all())


def test_smoothed_density():
    matrix = symmetric(COVERED["flat and indefinite"])
    values = torch.linalg.eigvalsh(matrix)
    found = spectral_density(from_dense(matrix), probes=30, steps=40)
    spread = float(found.nodes.max() - found.nodes.min())
    assert found.default_width() == pytest.approx(spread / 40)
    grid, mean, error = found.density()
    assert grid.shape == mean.shape == error.shape == (512,)
    assert float(torch.trapezoid(mean, grid)) == pytest.approx(1.0, abs=1e-3)
    assert bool(((mean - smoothed_truth(values, grid, found.default_width())).abs() <= 6 * error + 1e-3).all())
    own = torch.tensor([-0.5, 0.0, 0.5])
    grid, mean, error = found.density(own, width=0.2)
    torch.testing.assert_close(grid, own.double())
    truth = smoothed_truth(values, grid, 0.2)
    assert bool(((mean - truth).abs() <= 4 * error).all())
    assert torch.equal(found.smoothed(grid, 0.2).value, mean)
    for width in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInput, match="positive width"):
            found.density(width=width)


def test_targets():
    operator = from_dense(symmetric(COVERED["flat and indefinite"]))
    found = spectral_density(operator, steps=15, target=0.02)
    assert found.stop is EstimateStop.TARGET
    assert found.products == operator.products == 15 * found.probes
    assert found.distance() <= 0.02
    assert found.probes > 10
    loose = spectral_density(operator, steps=15, target=0.2)
    assert loose.probes < found.probes
    grid, mean, _ = found.density()
    truth = smoothed_truth(torch.from_numpy(COVERED["flat and indefinite"]), grid, found.default_width())
    assert float(torch.trapezoid((mean - truth).abs(), grid)) <= 4 * 0.02


def test_budget():
    operator = from_dense(symmetric(COVERED["flat and indefinite"]))
    with pytest.raises(NotConverged, match="relative standard error is") as caught:
        spectral_density(operator, steps=10, target=1e-4, max_products=250)
    found = caught.value.result
    assert isinstance(found, Density)
    assert found.stop is EstimateStop.BUDGET
    assert found.products == operator.products == 250
    again = spectral_density(operator, steps=10, target=1e-4, max_products=250, strict=False)
    assert torch.equal(again.nodes, found.nodes)
    spent = spectral_density(operator, probes=4, steps=10, max_products=75)
    assert (spent.probes, spent.products, spent.stop) == (7, 70, EstimateStop.SPENT)


def test_seeds():
    operator, before = from_dense(symmetric(COVERED["outliers"])), torch.get_rng_state()
    one, two, other = (spectral_density(operator, probes=2, steps=5, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.nodes, two.nodes)
    assert torch.equal(one.weights, two.weights)
    assert not torch.equal(one.nodes, other.nodes)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options", [{"probes": 1}, {"steps": 0}, {"target": 0.0}, {"probes": 10, "steps": 10, "max_products": 99}]
)
def test_bad_input(options):
    operator = from_dense(symmetric(COVERED["outliers"]))
    with pytest.raises(InvalidInput, match="It needs two probes"):
        spectral_density(operator, **options)
    assert operator.products == 0


def test_products_that_are_not_finite():
    calls = iter(range(1000))
    with pytest.raises(NonFinite, match="number 18 is not finite"):
        spectral_density(from_function(lambda v: v * torch.arange(50.0) / float(next(calls) != 17), 50), steps=10)


def nan_at_once(v):
    return v * torch.nan


def test_nan():
    with pytest.raises(NonFinite, match="number 1 is not finite"):
        spectral_density(from_function(nan_at_once, 50))


def test_a_hessian():
    """40 steps on a network of 700 parameters with a few large eigenvalues over a mass at zero."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(150, 10, generator=stream, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cases.mlp(10, 30, 12, 3).double()
    problem = Problem(model, torch.nn.CrossEntropyLoss(), (x, torch.arange(150) % 3))
    assert problem.dimension == 741
    matrix = dense.hessian(model, lambda m: torch.nn.functional.cross_entropy(m(x), torch.arange(150) % 3))
    values = torch.linalg.eigvalsh(matrix)
    with hessian(problem) as operator:
        found = spectral_density(operator)
        assert found.products == operator.products == 400
    low, high = found.moment(1).interval(0.999)
    assert low <= values.mean() <= high
    low, high = found.moment(2).interval(0.999)
    assert low <= values.square().mean() <= high
    top = float(values[-1])
    assert float(found.nodes.max()) == pytest.approx(top, rel=1e-9), "the largest eigenvalue is a node"
    grid, width = torch.linspace(float(values[0]), top, 9).double(), found.default_width()
    estimate = found.smoothed(grid, width)
    assert bool(((estimate.value - smoothed_truth(values, grid, width)).abs() <= 6 * estimate.standard_error).all())


def test_float32():
    matrix = symmetric(COVERED["outliers"])
    single = spectral_density(from_dense(matrix.float()), probes=3, steps=8)
    double = spectral_density(from_dense(matrix), probes=3, steps=8)
    assert abs(float(single.moment(1).value - double.moment(1).value)) <= 1e-5


@given(
    values=st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 0.5000001, 2.0, 7.0, 1e3]), min_size=1, max_size=40),
    steps=st.integers(1, 45),
    seed=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_any_spectrum(values, steps, seed):
    """Rows sum to one, every probe's first moments are ``v'Av`` and ``v'A^2v``, and plots can be drawn of anything."""
    matrix = symmetric(values, seed)
    operator = from_dense(matrix)
    found = spectral_density(operator, probes=2, steps=steps, seed=seed)
    assert found.products == operator.products <= 2 * min(steps, len(values))
    scale = max(float(matrix.abs().sum(dim=1).max()), 1e-300)
    for v, nodes, weights in zip(first_vectors(operator, 2, seed), found.nodes, found.weights):
        assert abs(float(weights.sum()) - 1) <= 1e-13
        assert abs(float(weights @ nodes - v @ matrix @ v)) <= 1e-11 * scale
        if found.moment(0).value == 1 and (steps >= 2 or found.complete):
            assert abs(float(weights @ nodes**2 - (matrix @ v).square().sum())) <= 1e-11 * scale**2
    grid, mean, error = found.density()
    assert bool(torch.isfinite(torch.stack([grid, mean, error])).all())


def test_figures_and_text():
    found = spectral_density(from_dense(symmetric(COVERED["outliers"])), probes=5, steps=12)
    assert "5 probes of 12 steps" in repr(found)
    assert f"products={found.products}" in repr(found)
    figure = found.plot()
    assert [len(trace.x) for trace in figure.data] == [512, 512, 512]
    high, low, middle = (np.array(trace.y) for trace in figure.data)
    assert bool((low <= middle).all() and (middle <= high).all())
    assert bool((low > 0).all()), "the axis is logarithmic"
    assert figure.layout.yaxis.type == "log"
    narrow = found.plot(width=found.default_width() / 10)
    assert max(narrow.data[2].y) > max(figure.data[2].y)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_coverage(name):
    """Of 200 intervals of 95 per cent, 90 to 99 per cent hold the mean eigenvalue, and the density at each point."""
    values = torch.from_numpy(COVERED[name])
    operator = from_dense(symmetric(COVERED[name]))
    spread = float(values.max() - values.min())
    grid, width = torch.linspace(float(values.min()), float(values.max()), 5).double(), spread / 10
    truth = smoothed_truth(values, grid, width)
    first, points = [], []
    for seed in range(200):
        found = spectral_density(operator, probes=10, steps=15, seed=seed)
        low, high = found.moment(1).interval()
        first.append(bool(low <= values.mean() <= high))
        low, high = found.smoothed(grid, width).interval()
        points.append(((low <= truth) & (truth <= high)).double())
    assert 0.90 <= np.mean(first) <= 0.99
    for x, held in zip(grid, torch.stack(points).mean(dim=0)):
        assert 0.90 <= held <= 0.99, f"at {x:.3g}"
