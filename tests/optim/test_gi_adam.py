import copy
import math

import pytest
import torch
from torch import nn

from thalweg import Problem, rules
from thalweg.errors import InvalidInput, NonFinite
from thalweg.optim.gi_adam import gi_adam_, gi_adam_state
from thalweg.rules.edge import edge

KINDS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "coupled": (torch.optim.Adam, {"weight_decay": 0.1}),
    "foreach": (torch.optim.Adam, {"foreach": True}),
    "fused": (torch.optim.AdamW, {"fused": True, "weight_decay": 0.1}),
    "maximize": (torch.optim.Adam, {"maximize": True, "weight_decay": 0.1}),
    "tensor rate": (torch.optim.Adam, {"foreach": False}),
}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 3, (30,))


def backward(model, x, y):
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def naive(model, x, y, steps, lr, decay, coupled, sign, beta1=0.9, beta2=0.99, eps=1e-8):
    """Adam from nu = g_0^2 without correction of nu, at the rate lr sqrt(1 - beta2^t): written again, from the text."""
    held = list(model.parameters())
    mu, nu = [torch.zeros_like(p) for p in held], None
    for t in range(1, steps + 1):
        backward(model, x, y)
        with torch.no_grad():
            g = [sign * p.grad + (decay * p if coupled else 0) for p in held]
            nu = [force**2 for force in g] if nu is None else nu
            factor = math.sqrt(1 - beta2**t)
            for i, p in enumerate(held):
                mu[i] = beta1 * mu[i] + (1 - beta1) * g[i]
                nu[i] = beta2 * nu[i] + (1 - beta2) * g[i] ** 2
                shrink = 0 if coupled else lr * decay
                move = lr * factor * mu[i] / (1 - beta1**t) / (nu[i].sqrt() + factor * eps)
                p.mul_(1 - shrink).sub_(move)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_adam_without_correction_at_a_rising_rate(name):
    kind, settings = KINDS[name]
    model, x, y = network()
    other = copy.deepcopy(model)
    lr = torch.tensor(0.01, dtype=torch.float64) if name == "tensor rate" else 0.01
    optimizer = kind(model.parameters(), lr=lr, betas=(0.9, 0.99), **settings)
    for t in range(25):
        backward(model, x, y)
        if t == 0:
            assert gi_adam_(optimizer) is optimizer
        optimizer.step()
    sign = -1 if settings.get("maximize") else 1
    naive(other, x, y, 25, 0.01, settings.get("weight_decay", 0.0), kind is torch.optim.Adam, sign)
    for ours, theirs in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_with_a_constant_gradient_it_is_adam_at_a_rising_rate():
    g = torch.tensor([3.0, -0.2, 1e-3], dtype=torch.float64)
    plain, informed = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    first = torch.optim.Adam([plain], lr=1.0, betas=(0.9, 0.95), eps=0.0)
    second = torch.optim.Adam([informed], lr=1.0, betas=(0.9, 0.95), eps=0.0)
    informed.grad = g.clone()
    gi_adam_(second)
    for t in range(1, 30):
        first.param_groups[0]["lr"] = math.sqrt(1 - 0.95**t)
        plain.grad, informed.grad = g.clone(), g.clone()
        first.step()
        second.step()
        torch.testing.assert_close(plain, informed, rtol=1e-12, atol=0)


def test_amsgrad_keeps_its_form():
    model, x, y = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    backward(model, x, y)
    squares = [p.grad**2 for p in model.parameters()]
    gi_adam_(optimizer)
    optimizer.step()
    for p, square in zip(model.parameters(), squares):
        torch.testing.assert_close(optimizer.state[p]["max_exp_avg_sq"], square)
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"fused": True}])
def test_the_state_is_of_torchs_own_form(settings):
    model, x, y = network()
    model = model.float()
    x = x.float()
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.0, **settings) for m in (model, copy.deepcopy(model)))
    backward(model, x, y)
    gi_adam_(ours)
    for group in theirs.param_groups:
        for p, q in zip(group["params"], model.parameters()):
            p.grad = q.grad.clone()
    with torch.no_grad():
        theirs.step()
    for a, b in zip(ours.state.values(), theirs.state.values()):
        assert {k: (v.shape, v.dtype, v.device) for k, v in a.items()} == {
            k: (v.shape, v.dtype, v.device) for k, v in b.items()
        }
        assert float(a["step"]) == 0


def test_the_preconditioned_sharpness_is_lower_by_the_factor():
    model, x, y = network()
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    w = problem.initial
    g = problem.gradient(w)
    rule = rules.Adam(lr=0.01, beta2=0.999, eps=0.0)
    plain = edge(problem, rule, w, rule.update(rule.init(w), g, w))
    state = gi_adam_state(rule, w, g)
    informed = edge(problem, rule, w, rule.update(state, g, w))
    assert informed.sharpness / plain.sharpness == pytest.approx(math.sqrt(1 - 0.999), rel=1e-4)


def test_rule_and_optimizer_agree():
    model, x, y = network()
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    w = problem.initial
    rule = rules.Adam(lr=0.01, weight_decay=0.1)
    state = gi_adam_state(rule, w, problem.gradient(w))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    for t in range(5):
        backward(model, x, y)
        if t == 0:
            gi_adam_(optimizer)
        optimizer.step()
        w, state = rule.advance(w, state, problem.gradient(w))
    torch.testing.assert_close(problem.initial, w, rtol=1e-10, atol=1e-12)


def test_what_cannot_start_so_is_refused():
    model, x, y = network()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    with pytest.raises(InvalidInput, match="backward"):
        gi_adam_(adam)
    backward(model, x, y)
    with pytest.raises(InvalidInput, match="is a SGD"):
        gi_adam_(torch.optim.SGD(model.parameters(), lr=0.01))
    with pytest.raises(InvalidInput, match="is a NAdam"):
        gi_adam_(torch.optim.NAdam(model.parameters(), lr=0.01))
    adam.step()
    with pytest.raises(InvalidInput, match="taken a step"):
        gi_adam_(adam)
    fresh = torch.optim.Adam(model.parameters(), lr=0.01)
    model[2].bias.grad[0] = math.nan
    with pytest.raises(NonFinite, match="first gradient"):
        gi_adam_(fresh)
    assert not fresh.state, "nothing is set where one is refused"
    with pytest.raises(InvalidInput, match="differentiable"):
        gi_adam_(torch.optim.Adam(model.parameters(), lr=0.01, differentiable=True))
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(InvalidInput, match="complex"):
        gi_adam_(torch.optim.Adam([z], lr=0.1))
    with pytest.raises(InvalidInput, match="rule is RMSProp"):
        gi_adam_state(rules.RMSProp(lr=0.1), torch.zeros(2), torch.ones(2))


def test_parameters_without_a_gradient_start_as_usual():
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    adam = torch.optim.Adam([used, unused], lr=0.1)
    used.grad = torch.ones(2)
    gi_adam_(adam)
    assert used in adam.state
    assert unused not in adam.state
    adam.step()
    unused.grad = torch.ones(2)
    adam.step()
    assert unused.tolist() == pytest.approx([-0.1, -0.1])
