"""Norms in primitives: same values, same statistics, and right third derivatives where the fused ones are wrong."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import Problem, hessian
from thalweg.problem.norms import decomposed_norms

D = torch.float64


class ChannelsFirst(nn.LayerNorm):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


class Functional(nn.Module):
    """Norms that are no layers."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def cases():
    return {
        "layer": (nn.LayerNorm(6), torch.randn(5, 6)),
        "layer plain": (nn.LayerNorm((3, 6), elementwise_affine=False), torch.randn(5, 3, 6)),
        "instance": (nn.InstanceNorm1d(6, affine=True), torch.randn(5, 6, 4)),
        "instance tracked": (nn.InstanceNorm2d(6, track_running_stats=True), torch.randn(5, 6, 3, 3)),
        "instance volumes": (nn.InstanceNorm3d(2), torch.randn(2, 2, 3, 3, 3)),
        "batch volumes": (nn.BatchNorm3d(2), torch.randn(2, 2, 3, 3, 3)),
        "channels first": (ChannelsFirst(6), torch.randn(5, 6, 4)),
        "batch": (nn.BatchNorm1d(6), torch.randn(5, 6)),
        "batch images": (nn.BatchNorm2d(6), torch.randn(5, 6, 3, 3)),
        "batch cumulative": (nn.BatchNorm2d(6, momentum=None), torch.randn(5, 6, 3, 3)),
        "batch untracked": (nn.BatchNorm1d(6, track_running_stats=False), torch.randn(5, 6)),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("training", [True, False])
def test_same_values_and_statistics(name, training):
    torch.manual_seed(0)
    norm, x = cases()[name]
    norm, x = norm.to(D).train(training), x.to(D)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    other = copy.deepcopy(norm)
    expected = [norm(x), norm(2 * x + 1)]
    with decomposed_norms(other) as count:
        found = [other(x), other(2 * x + 1)]
    assert count == 1
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for (key, a), b in zip(norm.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), key  # running statistics, to the bit


FUNCTIONAL = {
    "F.layer_norm": lambda x: F.layer_norm(x, [5], eps=1e-3),
    "torch.layer_norm": lambda x: torch.layer_norm(x, [6, 5], None, None, 1e-5),
    "F.batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, torch.arange(1.0, 7, dtype=D), torch.ones(6, dtype=D), None, None, True, 0.1, 1e-5, False
    ),
    "F.instance_norm": lambda x: F.instance_norm(x, weight=torch.arange(1.0, 7, dtype=D)),
    "torch.instance_norm": lambda x: torch.instance_norm(
        x, torch.arange(1.0, 7, dtype=D), None, None, None, True, 0.1, 1e-5, False
    ),
    "F.instance_norm by running statistics": lambda x: F.instance_norm(
        x, torch.ones(6, dtype=D), torch.ones(6, dtype=D), use_input_stats=False
    ),
}


def written_out(model, x):
    """Whether the output comes from primitives, by its graph."""
    seen, todo = set(), [model(x).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return not [n for n in seen if "Norm" in type(n).__name__ and "Linalg" not in type(n).__name__]


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_use_is_written_out_with_the_same_values(name):
    x = torch.randn(4, 6, 5, dtype=D, requires_grad=True)
    assert not written_out(FUNCTIONAL[name], x)
    with decomposed_norms(nn.Identity()):
        found = FUNCTIONAL[name](x)
        assert written_out(FUNCTIONAL[name], x) == ("running" not in name)
    torch.testing.assert_close(found, FUNCTIONAL[name](x), rtol=1e-12, atol=1e-12)


def test_only_while_open_and_given_back_after_an_exception():
    model, x = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3)), torch.randn(4, 3)
    keys = [set(vars(m)) for m in model.modules()]
    assert not written_out(model, x)
    with pytest.raises(ZeroDivisionError), decomposed_norms(model) as count:  # noqa: PT012
        assert count == 2
        assert written_out(model, x)
        with decomposed_norms(model):
            assert written_out(model, x)
        assert written_out(model, x)
        raise ZeroDivisionError
    assert not written_out(model, x)
    assert [set(vars(m)) for m in model.modules()] == keys


@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.BatchNorm1d(3), torch.randn(1, 3)),
        (nn.BatchNorm2d(3), torch.randn(5, 3)),
        (nn.InstanceNorm1d(3), torch.randn(2, 3, 1)),
        (nn.LayerNorm(3), torch.randn(2, 4)),
    ],
)
def test_what_torch_refuses_is_refused(norm, x):
    with pytest.raises((ValueError, RuntimeError)) as expected:
        norm(x)
    with pytest.raises(expected.type) as found, decomposed_norms(norm):
        norm(x)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_the_fused_norm(dtype):
    norm, x = nn.LayerNorm(256).to(dtype), (torch.randn(4, 256) * 3 + 50).to(dtype)
    exact = F.layer_norm(x.to(D), [256])
    with decomposed_norms(norm):
        found = norm(x)
    assert found.dtype == dtype
    assert float((found.detach() - exact).abs().max()) <= 1.01 * float((norm(x).detach() - exact).abs().max())


def test_a_problem_sees_right_products_in_every_layout_and_keeps_its_buffers():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2)).to(D)
    problem = Problem(model, nn.MSELoss(), (torch.randn(9, 4, dtype=D), torch.randn(9, 2, dtype=D)))
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    v = torch.randn(problem.dimension, dtype=D)
    expected = hessian(problem).matvec(v)
    for layout in ("double_backward", "linearised", "forward_reverse"):
        with decomposed_norms(model) as count:
            assert count == 2
            found = hessian(problem, layout=layout).matvec(v)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=layout)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def third(model, x, y, u):
    """Gradient of u' H u by autograd, at the model's weights, flat."""
    parameters = list(model.parameters())
    loss = ((model(x) - y) ** 2).mean()
    for _ in range(2):
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        loss = sum((g * v).sum() for g, v in zip(grads, u))
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])


def second(model, x, y, u):
    parameters = list(model.parameters())
    grads = torch.autograd.grad(((model(x) - y) ** 2).mean(), parameters, create_graph=True)
    dot = sum((g * v).sum() for g, v in zip(grads, u))
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(dot, parameters)])


def by_differences(model, x, y, u):
    """Richardson-extrapolated central differences of Hessian products, which are right through fused norms."""
    start = [p.detach().clone() for p in model.parameters()]

    def at(h):
        with torch.no_grad():
            for p, s, v in zip(model.parameters(), start, u):
                p.copy_(s + h * v)
        return second(model, x, y, u)

    estimates = [(at(h) - at(-h)) / (2 * h) for h in (2e-4, 1e-4)]
    at(0.0)
    return (4 * estimates[1] - estimates[0]) / 3


def network(kind):
    """Two norms of a kind between layers, and inputs."""
    if kind == "instance":
        norms = [
            nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3, affine=True), nn.Flatten())
            for _ in range(2)
        ]
        after = 12
    else:
        make = {
            "layer": lambda: nn.LayerNorm(6),
            "batch": lambda: nn.BatchNorm1d(6),
            "functional": lambda: Functional(lambda x: F.layer_norm(x, [6])),
            "subclass": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), ChannelsFirst(6), nn.Flatten()),
        }[kind]
        norms, after = [make(), make()], 6
    layers = [nn.Linear(4, 6), norms[0], nn.Tanh(), nn.Linear(after, 6), norms[1], nn.Tanh(), nn.Linear(after, 2)]
    return nn.Sequential(*layers).to(D).train(), torch.randn(9, 4, dtype=D), torch.randn(9, 2, dtype=D)


# Relative errors of the fused third derivative on these problems are 0.06 to 0.7.
@pytest.mark.parametrize("kind", ["layer", "batch", "instance", "functional", "subclass"])
def test_third_derivatives(kind):
    torch.manual_seed(0)
    model, x, y = network(kind)
    u = [torch.randn_like(p) for p in model.parameters()]
    truth = by_differences(model, x, y, u)
    with decomposed_norms(model):
        right = third(model, x, y, u)
    assert float((right - truth).norm() / truth.norm()) < 1e-6
    fused = third(model, x, y, u)
    # The defect that this module exists for. If PyTorch mends it, this line says so.
    assert float((fused - truth).norm() / truth.norm()) > 0.01


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.RMSNorm(6), nn.BatchNorm1d(6).eval()])
def test_what_stays_fused_is_right_as_it_is(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), norm, nn.Tanh(), nn.Linear(6, 2)).to(D)
    x, y = torch.randn(9, 4, dtype=D), torch.randn(9, 2, dtype=D)
    u = [torch.randn_like(p) for p in model.parameters()]
    truth = by_differences(model, x, y, u)
    assert float((third(model, x, y, u) - truth).norm() / truth.norm()) < 1e-6
