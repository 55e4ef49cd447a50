"""The empirical Fisher against single gradients, one after the other, for every loss, layout and convention."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cases
from operator_suite import OperatorSuite
from reference import gauss_newton as textbook
from thalweg.errors import InvalidInput, NonFinite
from thalweg.operators.fisher import empirical_fisher
from thalweg.problem import Problem
from thalweg.problem.losses import OneHotSquares

LAYOUTS = ("linearised", "forward", "rebuilt")
CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5], dtype=torch.float64)
INDICES = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 1])


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def singly(loss, x, y):
    """The loss of each sample as a batch of one."""
    return lambda m: torch.stack([loss(m(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))])


def probabilities():
    return torch.softmax(double(9, 4), 1)


LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), lambda: INDICES),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), lambda: INDICES),
    "class weights": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), lambda: INDICES),
    "class weights, smoothed": (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2), lambda: INDICES),
    "partial": (partial(F.cross_entropy, weight=CLASS_WEIGHTS), lambda: INDICES),
    "probabilities": (nn.CrossEntropyLoss(), probabilities),
    "mse": (nn.MSELoss(), lambda: double(9, 4)),
    "half mse, summed": (lambda z, y: (z - y).square().sum() / (2 * len(z)), lambda: double(9, 4)),
    "bce": (nn.BCEWithLogitsLoss(), lambda: torch.rand(9, 4, dtype=torch.float64)),
    "nll": (nn.NLLLoss(), lambda: INDICES),
}


def expected(name, model, loss, x, y):
    weights = CLASS_WEIGHTS[y] if "class weights" in name or name == "partial" else None
    return textbook.empirical_fisher(model, singly(loss, x, y), weights)


def example(name):
    loss, make = LOSSES[name]
    model = cases.mlp(3, 5, 4).double()
    if name == "nll":
        model.append(nn.LogSoftmax(1))
    return model, loss, double(9, 3), make()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name, layout, untouched):
    model, loss, x, y = example(name)
    problem = Problem(model, loss, (x, y), batch_size=4)
    with untouched(model):
        found = empirical_fisher(problem, layout=layout).dense()
    right = expected(name, model, loss, x, y)
    assert relative(found, right) < 1e-12
    assert torch.linalg.eigvalsh(found).min() > -1e-13 * float(found.trace())


@pytest.mark.parametrize("name", ["cnn", "attention", "layer_norm", "batch_norm_eval", "tied", "ragged", "unused"])
@pytest.mark.parametrize("per", ["term", "sample"])
def test_every_kind_of_model(name, per):
    case = cases.make(name)
    x, y = [torch.cat(parts) for parts in zip(*case.data)] if isinstance(case.data, list) else case.data
    if per == "term" and y.ndim == 2 and not y.is_floating_point():

        def losses(m):
            return F.cross_entropy(m(x), y, reduction="none").reshape(-1)
    else:
        losses = singly(case.loss, x, y)
    for layout in LAYOUTS:
        found = empirical_fisher(case.problem(), per=per, layout=layout).dense()
        assert relative(found, textbook.empirical_fisher(case.model, losses)) < 1e-12


@pytest.mark.parametrize("per", ["term", "sample"])
def test_ignored_tokens_and_sequences_of_different_lengths(per):
    case = cases.make("ignored")
    tokens, target = case.data
    kept = target != -1
    if per == "term":
        right = textbook.empirical_fisher(
            case.model, lambda m: F.cross_entropy(m(tokens), target, reduction="none", ignore_index=-1)[kept]
        )
    else:
        rows = kept.any(1)
        losses = singly(case.loss, tokens[rows], target[rows])
        right = textbook.empirical_fisher(case.model, losses, kept[rows].sum(1).double())
    assert relative(empirical_fisher(case.problem(), per=per).dense(), right) < 1e-12


def test_per_term_and_per_sample_differ_for_sequences():
    problem = cases.make("attention").problem()
    v = double(problem.dimension)
    a, b = (empirical_fisher(problem, per=per).matvec(v) for per in ("term", "sample"))
    assert relative(a, b) > 0.1


def test_the_mean_gradient_lies_below_it():
    """``F - g g'`` is a covariance."""
    problem = cases.make("mlp_ce").problem()
    g = problem.gradient(problem.initial)
    values = torch.linalg.eigvalsh(empirical_fisher(problem).dense() - torch.outer(g, g))
    assert float(values.min()) > -1e-14


class FisherSuite(OperatorSuite):
    layout = "linearised"
    case = "mlp_ce"

    def make(self):
        return empirical_fisher(cases.make(self.case).problem(), layout=self.layout)

    def dense(self):
        case = cases.make(self.case)
        return textbook.empirical_fisher(case.model, singly(case.loss, *case.data))


class TestLinearised(FisherSuite):
    pass


class TestForward(FisherSuite):
    layout = "forward"
    case = "mlp_mse"


class TestFloat32(FisherSuite):
    tolerance = 5e-5

    def make(self):
        return empirical_fisher(cases.make(self.case).problem(dtype=torch.float32))


class TestRefusals:
    def test_a_sum_over_samples(self):
        model, x, y = cases.mlp(3, 2).double(), double(5, 3), double(5, 2)
        problem = Problem(model, lambda z, y: (z - y).square().sum(), (x, y))
        with pytest.raises(InvalidInput, match="mean over its samples"):
            empirical_fisher(problem)

    def test_names(self):
        problem = cases.make("mlp_ce").problem()
        with pytest.raises(InvalidInput, match="whose gradients"):
            empirical_fisher(problem, per="batch")
        with pytest.raises(InvalidInput, match="at least one token"):
            empirical_fisher(problem, chunk=0)
        with pytest.raises(InvalidInput, match="calls the model itself"):
            empirical_fisher(cases.make("dict_batches").problem())

    def test_nan(self):
        model, x, y = cases.mlp(3, 2).double(), double(5, 3), double(5, 2)
        problem = Problem(model, lambda z, y: (z - y).square().mean() / 0.0 * 0.0, (x, y), check=False)
        with pytest.raises(NonFinite, match="NaN"):
            empirical_fisher(problem)


@pytest.mark.parametrize("per", ["term", "sample"])
def test_our_own_squared_error_is_not_taken_sample_by_sample(per, monkeypatch):
    """It is the loss of the command line; one by one, products on digits take 30 times as long."""
    generator = torch.Generator().manual_seed(3)
    x, target = torch.randn(12, 4, generator=generator).double(), torch.arange(12) % 3
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    loss = OneHotSquares(3, 2)
    slow = empirical_fisher(Problem(model, lambda output, y: loss(output, y), (x, target)), per=per).dense()
    monkeypatch.setattr("thalweg.operators.fisher._one_by_one", None)
    fast = empirical_fisher(Problem(model, loss, (x, target)), per=per).dense()
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-14)
