"""Rows of a stack against the problem itself, a dense Hessian, differences, and each other."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference.batched import dense
from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import hessian
from thalweg.problem import Problem
from thalweg.problem.data import DataConfig, load_data
from thalweg.problem.losses import OneHotSquares
from thalweg.problem.zoo import ModelConfig, build_model
from thalweg.sweeps.batched_losses import row_loss
from thalweg.sweeps.stack import Stack

DIGITS = load_data(DataConfig(samples=16))
CONFIGS = {
    "mlp, relu, no bias": ModelConfig("mlp", depth=4, width=9, activation="relu", bias=False),
    "mlp, ntk, scaled": ModelConfig(
        "mlp", depth=3, width=7, activation="gelu", parametrisation="ntk", output_scale=0.3
    ),
    "mlp, one layer": ModelConfig("mlp", depth=1, width=7, output_scale=2.0),
    "cnn": ModelConfig("cnn", depth=4, width=3, activation="relu"),
    "cnn, group norm, ntk": ModelConfig("cnn", depth=3, width=4, norm="group", bias=True, parametrisation="ntk"),
    "cnn, batch norm": ModelConfig("cnn", depth=3, width=3, norm="batch", activation="silu"),
}
LOSSES = {
    "squares": OneHotSquares(10, 20.0),
    "cross-entropy": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "function": lambda output, target: F.softplus(-output.gather(1, target[:, None])).mean(),
}


def problem_of(name="mlp, relu, no bias", loss="squares", **options) -> Problem:
    model = build_model(CONFIGS[name], DIGITS)
    return Problem(model, LOSSES[loss], DIGITS.pair(), dtype=torch.float64, **options)


def points(problem: Problem, rows=3) -> torch.Tensor:
    noise = torch.randn(rows, problem.dimension, dtype=torch.float64)
    return problem.initial * torch.linspace(0.8, 1.3, rows, dtype=torch.float64)[:, None] + 0.02 * noise


def close(a, b, tol=1e-12):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tol * max(float(b.abs().max()), 1.0)


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_equal_the_problem(name, method):
    problem = problem_of(name)
    stack = Stack(problem, method=name[:3] if method == "layers" else method)
    W = points(problem)
    values, gradients = stack.value_and_gradient(W)
    close(stack.loss(W), values)
    for r in range(3):
        value, gradient = problem.value_and_gradient(W[r])
        close(values[r], value)
        close(gradients[r], gradient)
    shared, own = torch.arange(9), torch.randint(0, 16, (3, 5))
    for index in (shared, own):
        values, gradients = stack.value_and_gradient(W, index)
        for r in range(3):
            value, gradient = problem.subset(index if index.ndim == 1 else index[r]).value_and_gradient(W[r])
            close(values[r], value)
            close(gradients[r], gradient)


@pytest.mark.parametrize("name", ["mlp, relu, no bias", "cnn, group norm, ntk"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(name, loss):
    problem = problem_of(name, loss)
    W = points(problem)
    fast, plain = Stack(problem), Stack(problem, method="loop")
    assert fast.method == name[:3]
    V = torch.randn_like(W)
    close(fast.value_and_gradient(W)[1], plain.value_and_gradient(W)[1])
    close(fast.products(W).matvec(V), plain.products(W).matvec(V))


@pytest.mark.parametrize("method", ["mlp", "vmap", "loop"])
def test_products_equal_the_dense_hessian(method):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(11, 3).double(), torch.randn(11, 2).double()
    problem = Problem(model, nn.MSELoss(), (x, y), batch_size=4)
    stack = Stack(problem, method=method)
    W = torch.randn(4, problem.dimension).double()
    operator = stack.products(W)
    V = torch.randn_like(W)
    found = operator.matvec(V)
    step = 1e-5
    for r in range(4):
        close(found[r], dense(problem, W[r]) @ V[r])
        ahead, behind = problem.gradient(W[r] + step * V[r]), problem.gradient(W[r] - step * V[r])
        close(found[r], (ahead - behind) / (2 * step), 1e-8)
        close(operator.gradient[r], problem.gradient(W[r]))
    kept = torch.tensor([1, 3])
    part = operator.select(kept)
    close(part.matvec(V[kept]), found[kept])
    close(part.gradient, operator.gradient[kept])
    assert (operator.products, part.products) == (4, 2)


def test_a_small_budget_gives_the_same():
    problem = problem_of(batch_size=10)
    W = points(problem, 5)
    wide, tight = Stack(problem), Stack(problem, budget=1)
    assert tight.rows_at_once == 1
    assert tight.rows_that_fit(4) == 1
    assert wide.rows_at_once > 1
    V = torch.randn_like(W)
    close(tight.value_and_gradient(W)[1], wide.value_and_gradient(W)[1])
    close(tight.products(W).matvec(V), wide.products(W).matvec(V))
    rows = torch.tensor([0, 4])
    close(tight.products(W).select(rows).matvec(V[rows]), wide.products(W).matvec(V)[rows])


@pytest.mark.parametrize("name", ["mlp, relu, no bias", "cnn"])
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_a_bad_row_reaches_no_other(name, method):
    problem = problem_of(name)
    stack = Stack(problem, method=name[:3] if method == "layers" else method)
    W, V = points(problem, 4), torch.randn(4, problem.dimension).double()
    losses, gradients = stack.value_and_gradient(W)
    products = stack.products(W).matvec(V)
    for poison in (torch.nan, torch.inf, 1e200):
        bad = W.clone()
        bad[1] = poison
        healthy = torch.tensor([0, 2, 3])
        values, found = stack.value_and_gradient(bad)
        assert torch.equal(values[healthy], losses[healthy])
        assert not torch.isfinite(values[1])
        close(found[healthy], gradients[healthy], 1e-14)
        close(stack.products(bad).matvec(V)[healthy], products[healthy], 1e-14)


@pytest.mark.parametrize("method", ["cnn", "vmap", "loop"])
def test_batch_norm_normalises_each_row_by_its_own_batch(method, untouched):
    problem = problem_of("cnn, batch norm")
    assert problem.model.training
    W = points(problem)
    with untouched(problem.model):
        stack = Stack(problem, method=method)
        _, gradients = stack.value_and_gradient(W)
        products = stack.products(W).matvec(W)
    for r in range(3):
        close(gradients[r], problem.gradient(W[r]))
        close(products[r], hessian(problem, W[r]).matvec(W[r]), 1e-11)


def test_residual_network_takes_vmap():
    model = build_model(ModelConfig("resnet", depth=8, width=2), DIGITS)
    problem = Problem(model, nn.CrossEntropyLoss(), DIGITS.pair(), dtype=torch.float64)
    stack = Stack(problem)
    assert stack.method == "vmap"
    assert "ResNet" in stack.why
    W = points(problem, 2)
    close(stack.value_and_gradient(W)[1][1], problem.gradient(W[1]), 1e-11)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.there = nn.Linear(4, 4)
        self.back = nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(torch.tanh(self.there(x)))


def model_loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(), len(x)


@pytest.mark.parametrize("loss", [nn.MSELoss(), model_loss])
@pytest.mark.parametrize("options", [{}, {"parameters": "*weight"}])
def test_tied_and_frozen_parameters(loss, options):
    x = torch.randn(7, 4).double()
    for model in (Tied(), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))):
        problem = Problem(model.double(), loss, (x, x.flip(0)), **options)
        stack = Stack(problem)
        assert stack.method == ("vmap" if isinstance(model, Tied) or loss is model_loss else "mlp")
        W = points(problem)
        for r in range(3):
            close(stack.value_and_gradient(W)[1][r], problem.gradient(W[r]))
    shared = nn.Linear(4, 4)
    problem = Problem(nn.Sequential(shared, nn.Tanh(), shared).double(), nn.MSELoss(), (x, x))
    W = points(problem)
    assert Stack(problem).method == "mlp"
    close(Stack(problem).value_and_gradient(W)[1][2], problem.gradient(W[2]))


def test_features_of_two_dimensions_with_own_batches():
    x, y = torch.randn(8, 3, 5).double(), torch.randn(8, 2).double()
    problem = Problem(nn.Sequential(nn.Flatten(), nn.Linear(15, 2)).double(), nn.MSELoss(), (x, y))
    W, own = points(problem, 2), torch.tensor([[0, 1, 2], [5, 5, 7]])
    close(Stack(problem, method="mlp").value_and_gradient(W, own)[1][1], problem.subset(own[1]).gradient(W[1]))


def test_rows_in_another_dtype():
    problem = problem_of()
    stack = Stack(problem, dtype=torch.float32)
    W = points(problem)
    values, gradients = stack.value_and_gradient(W)
    assert values.dtype == gradients.dtype == torch.float32
    close(values.double(), Stack(problem).loss(W), 1e-5)


def test_row_losses_of_columns_and_of_ignored_samples():
    outputs = torch.randn(3, 6, 4).double()
    wanted = torch.randn(6, 4).double()
    close(row_loss(nn.MSELoss())(outputs, wanted, False), (outputs - wanted).square().mean((1, 2)))
    target = torch.tensor([0, 3, -100, 1, 2, 0])
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(weight=torch.rand(4).double())):
        alone = torch.stack([loss(row, target) for row in outputs])
        close(row_loss(loss)(outputs, target, False), alone)


def test_refusals():
    problem = problem_of()
    with pytest.raises(InvalidInput, match="method is 'fast'"):
        Stack(problem, method="fast")
    with pytest.raises(InvalidInput, match="budget is 0"):
        Stack(problem, budget=0)
    with pytest.raises(InvalidInput, match="layer '0' is a convolution"):
        Stack(problem_of("cnn"), method="mlp")
    stack = Stack(problem)
    for W in (problem.initial, torch.zeros(2, 3), torch.zeros(0, problem.dimension)):
        with pytest.raises(InvalidInput, match="W has shape"):
            stack.loss(W)
    W = points(problem)
    for index in (
        torch.tensor([16]),
        torch.tensor([-1]),
        torch.zeros(2, 2).long(),
        torch.zeros(3),
        torch.zeros(0).long(),
    ):
        with pytest.raises(InvalidInput, match="Batch has shape"):
            stack.value_and_gradient(W, index)
    with pytest.raises(InvalidInput, match="V has shape"):
        stack.products(W).matvec(W[:2])
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    live = Problem(model, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)), check=False)
    for method in ("mlp", "vmap"):
        with pytest.raises(InvalidInput, match=method):
            Stack(live, method=method)
    with pytest.raises(NotDifferentiable, match="does not depend"):
        Stack(
            Problem(nn.Linear(2, 1), lambda o, t: o.detach().mean(), (torch.ones(3, 2), torch.ones(3, 1)), check=False)
        )


def test_hooks_are_heard():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    x = torch.randn(5, 2).double()
    problem = Problem(model, nn.MSELoss(), (x, x[:, :1]))
    stack = Stack(problem)
    assert stack.method == "vmap"
    assert "hooks" in stack.why
    close(stack.loss(problem.initial[None])[0], problem.value(problem.initial))
