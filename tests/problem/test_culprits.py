"""The module that cannot be differentiated twice is named."""

import pytest
import torch
from torch.autograd.function import once_differentiable

import thalweg as tw
from thalweg.errors import NotDifferentiable
from thalweg.problem.culprits import once_only


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Layer(torch.nn.Module):
    """One operation among modules that are innocent."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x, scale=1.0):
        return Square.apply(self.inner(x)) * scale


def problem(*layers, loss=None):
    model = torch.nn.Sequential(*layers).double()
    data = (torch.randn(5, 3).double(), torch.randn(5, 3).double())
    return tw.Problem(model, loss or torch.nn.MSELoss(), data)


def blamed(p):
    batch = next(iter(p.batches()))[0]
    return once_only(p, list(p.layout.split(p.initial)), batch)


def test_the_innermost_module_is_named_with_its_type():
    p = problem(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Tanh(), Layer()), torch.nn.Linear(3, 3))
    assert blamed(p) == ["1.1 (Layer)"]
    with pytest.raises(NotDifferentiable, match=r"Found in: 1\.1 \(Layer\)"):
        tw.top_eigenpairs(tw.hessian(p))


def test_innocent_networks_have_nobody_to_blame():
    attention = torch.nn.TransformerEncoderLayer(3, 1, 8, dropout=0.0, batch_first=True)
    assert blamed(problem(torch.nn.Linear(3, 3), torch.nn.Unflatten(1, (1, 3)), attention, torch.nn.Flatten())) == []


def test_a_loss_that_fails_leaves_the_modules_alone():
    p = problem(torch.nn.Linear(3, 3), loss=lambda z, t: Square.apply(z - t).mean())
    assert blamed(p) == []
    with pytest.raises(NotDifferentiable, match="custom backward hides it") as caught:
        tw.top_eigenpairs(tw.hessian(p))
    assert "Found in" not in str(caught.value)
