"""Largest eigenvalues of many Hessians at once, against dense ones and against spectra made for the purpose."""

import pytest
import torch
from torch import nn

from reference.batched import dense
from thalweg.errors import InvalidInput
from thalweg.problem import Problem
from thalweg.sweeps.batched_lanczos import top_eigenvalues
from thalweg.sweeps.stack import Stack


class Spectrum(nn.Module):
    """Its Hessian is ``diag(d)`` at zero, with ``e w^2`` added: the loss is ``sum d w^2 / 2 + e w^4 / 12``."""

    def __init__(self, d, e=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(d), dtype=torch.float64))
        self.register_buffer("d", torch.as_tensor(d, dtype=torch.float64))
        self.e = e


def quadratic(model, batch):
    w = model.w
    return (model.d * w**2).sum() / 2 + model.e * (w**4).sum() / 12 + 0 * batch.sum(), 1


def stack_of(d, e=0.0, **options) -> Stack:
    return Stack(Problem(Spectrum(d, e), quadratic, [torch.ones(1, 1).double()], check=False), **options)


def network(activation=nn.Tanh) -> Problem:
    model = nn.Sequential(nn.Linear(4, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 2)).double()
    x = torch.randn(20, 4).double()
    return Problem(model, nn.MSELoss(), (x, torch.randn(20, 2).double()))


@pytest.mark.parametrize("method", ["mlp", "loop"])
def test_a_network_of_200_parameters_against_dense(method):
    problem = network()
    assert 150 < problem.dimension < 250
    W = torch.randn(6, problem.dimension).double()
    stack = Stack(problem, method=method)
    found = top_eigenvalues(stack, W, tol=1e-11)
    assert bool(found.converged.all())
    for r in range(6):
        values, vectors = torch.linalg.eigh(dense(problem, W[r]))
        assert abs(float(found.values[r] / values[-1]) - 1) < 1e-10
        assert abs(abs(float(found.vectors[r] @ vectors[:, -1])) - 1) < 1e-9
    true = stack.products(W).matvec(found.vectors) - found.values[:, None] * found.vectors
    assert bool((true.norm(dim=1) <= 1.01 * found.residuals + 1e-13 * found.values).all())


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
def test_residuals_are_those_of_fresh_products(tol):
    problem = network(nn.ReLU)
    W = torch.randn(5, problem.dimension).double()
    stack = Stack(problem)
    found = top_eigenvalues(stack, W, tol=tol)
    true = stack.products(W).matvec(found.vectors) - found.values[:, None] * found.vectors
    torch.testing.assert_close(true.norm(dim=1), found.residuals, rtol=1e-6, atol=1e-12)
    assert bool((found.residuals <= tol * found.values).all())
    assert found.products.unique().numel() > 1  # rows leave when they are done


def test_a_row_leaves_once_it_is_above_its_level():
    problem = network()
    W = torch.randn(6, problem.dimension).double()
    stack = Stack(problem)
    whole = top_eigenvalues(stack, W, tol=1e-9)
    above = whole.values * torch.tensor([0.3, 1 + 1e-6, 0.5, 2.0, 0.9, torch.inf]).double()
    found = top_eigenvalues(stack, W, tol=1e-9, above=above)
    over = torch.tensor([True, False, True, False, True, False])
    assert torch.equal(found.values > above, over)
    assert bool((found.values[over] < whole.values[over]).all())  # bounds from below
    assert bool((found.products[over] < whole.products[over]).all())
    assert not bool(found.converged[over].any())
    torch.testing.assert_close(found.values[~over], whole.values[~over], rtol=1e-9, atol=0)
    assert torch.equal(found.products[~over], whole.products[~over])
    split = top_eigenvalues(Stack(problem, budget=100_000), W, tol=1e-9, above=above)
    assert torch.equal(split.products, found.products)
    with pytest.raises(InvalidInput, match="above of"):
        top_eigenvalues(stack, W, above=above[:2])


def test_largest_is_algebraic_not_by_magnitude():
    d = torch.cat([torch.linspace(-1.0, 0.8, 300), torch.tensor([-9.0, -9.0, 1.0])])
    found = top_eigenvalues(stack_of(d), torch.zeros(2, 303).double(), tol=1e-9)
    torch.testing.assert_close(found.values, torch.ones(2).double(), rtol=1e-9, atol=0)
    below = top_eigenvalues(stack_of([-3.0, -2.0, -5.0]), torch.zeros(1, 3).double(), tol=1e-9)
    assert abs(float(below.values) + 2.0) < 1e-9


def test_restarts_with_a_small_basis():
    d = torch.linspace(0.0, 1.0, 400) ** 3
    W = torch.zeros(2, 400).double()
    long = top_eigenvalues(stack_of(d), W, tol=1e-7, basis=200)
    short = top_eigenvalues(stack_of(d), W, tol=1e-7, basis=8, max_products=2000)
    assert bool(short.converged.all())
    assert int(short.products[0]) > 2 * 8
    assert int(short.products[0]) >= int(long.products[0])
    torch.testing.assert_close(short.values, torch.ones(2).double(), rtol=1e-9, atol=0)


def test_degenerate_spectra():
    for d, top in (([2.0] * 7, 2.0), ([0.0] * 7, 0.0), ([5.0], 5.0), ([-1.0], -1.0), ([3.0, 3.0, 1.0], 3.0)):
        found = top_eigenvalues(stack_of(d), torch.zeros(2, len(d)).double(), tol=1e-10)
        assert bool(found.converged.all())
        torch.testing.assert_close(found.values, torch.full((2,), top).double(), rtol=1e-10, atol=1e-12)


def test_rows_have_their_own_hessians_and_leave_on_their_own():
    W = torch.zeros(3, 50).double()
    W[1, 7], W[2, 9] = 3.0, 40.0
    found = top_eigenvalues(stack_of(torch.linspace(0, 1, 50, dtype=torch.float64), e=1.0), W, tol=1e-8)
    expected = torch.tensor([1.0, 9 + 7 / 49, 1600 + 9 / 49], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=0)
    assert found.products[0] > found.products[2]


def test_rows_that_are_not_finite_reach_no_other():
    problem = network()
    stack = Stack(problem)
    W = torch.randn(4, problem.dimension).double()
    alone = top_eigenvalues(stack, W, tol=1e-6)
    for poison in (torch.nan, 1e200):
        bad = W.clone()
        bad[2] = poison
        found = top_eigenvalues(stack, bad, tol=1e-6)
        healthy = torch.tensor([0, 1, 3])
        torch.testing.assert_close(found.values[healthy], alone.values[healthy], rtol=1e-12, atol=0)
        torch.testing.assert_close(found.vectors[healthy], alone.vectors[healthy], rtol=0, atol=1e-12)
        assert torch.equal(found.products[healthy], alone.products[healthy])
        assert bool(found.values[2].isnan())
        assert not bool(found.converged[2])
        assert not bool(found.vectors[2].any())
    assert bool(top_eigenvalues(stack, bad[2:3]).values.isnan().all())


def test_neither_chunks_nor_neighbours_matter():
    problem = network()
    W = torch.randn(5, problem.dimension).double()
    together = top_eigenvalues(Stack(problem), W, tol=1e-8)
    chunked = top_eigenvalues(Stack(problem, budget=200_000), W, tol=1e-8)
    single = top_eigenvalues(Stack(problem), W[3:4], tol=1e-8)
    assert Stack(problem, budget=200_000).rows_that_fit(32) < 5
    torch.testing.assert_close(chunked.values, together.values, rtol=1e-12, atol=0)
    torch.testing.assert_close(single.values, together.values[3:4], rtol=1e-12, atol=0)
    assert torch.equal(chunked.products, together.products)


def test_a_guess_follows_an_eigenvalue_that_is_overtaken():
    """The old vector stays an exact eigenvector after the crossing, so it alone would seem to have converged."""
    W = torch.zeros(1, 800).double()
    d = torch.rand(800).double() * 0.3
    guess, cost = None, []
    for shift in torch.linspace(0, 0.1, 11).tolist():
        d[:4] = torch.tensor([1.0 - shift, 0.95 + shift, 0.6, 0.5])
        found = top_eigenvalues(stack_of(d), W, start=guess, tol=1e-3)
        assert abs(float(found.values / d.max()) - 1) < 1e-5
        guess = found.guess
        cost.append(int(found.products))
    assert max(cost[1:]) <= cost[0]


def test_bad_guesses_cost_products_not_correctness():
    problem = network()
    W = torch.randn(3, problem.dimension).double()
    start = torch.zeros_like(W)
    start[1], start[2] = torch.nan, 1e-30
    found = top_eigenvalues(Stack(problem), W, start=start, tol=1e-9)
    torch.testing.assert_close(found.values, top_eigenvalues(Stack(problem), W, tol=1e-9).values, rtol=1e-10, atol=0)


def test_a_budget_that_ends_is_said():
    found = top_eigenvalues(stack_of(torch.linspace(0, 1, 500)), torch.zeros(1, 500).double(), tol=1e-9, max_products=5)
    assert (int(found.products), bool(found.converged)) == (5, False)
    assert 0 < float(found.values) < 1
    assert float(found.residuals) > 1e-9
    assert "0 of 1 converged, 5 products" in repr(found)


def test_single_precision():
    problem = network()
    W = torch.randn(3, problem.dimension).double()
    found = top_eigenvalues(Stack(problem, dtype=torch.float32), W.float(), tol=1e-4)
    torch.testing.assert_close(found.values, top_eigenvalues(Stack(problem), W, tol=1e-9).values, rtol=1e-5, atol=0)
    finest = top_eigenvalues(Stack(problem, dtype=torch.float32), W.float(), tol=1e-12)
    assert bool(finest.converged.all())  # never held to less than rounding
    assert bool((finest.residuals >= 1e-8 * finest.values).all())  # nor said to be below it


@pytest.mark.parametrize(
    "wrong", [{"tol": 0.0}, {"tol": 1.0}, {"max_products": 0}, {"basis": 3}, {"start": torch.ones(2)}]
)
def test_refusals(wrong):
    with pytest.raises(InvalidInput, match="residual is relative"):
        top_eigenvalues(stack_of([1.0, 2.0]), torch.zeros(1, 2).double(), **wrong)
