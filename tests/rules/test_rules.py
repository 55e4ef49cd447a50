"""Rules against torch.optim step by step, and thresholds against the spectral radius of the update."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import rules
from thalweg.errors import InvalidInput
from thalweg.operators import from_dense
from thalweg.rules import effective_hessian

P = 12

PAIRS = {
    "gd": (rules.GradientDescent(lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "gd decay": (
        rules.GradientDescent(lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    ),
    "heavy ball": (rules.HeavyBall(lr=0.02), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "dampened": (
        rules.HeavyBall(lr=0.1, momentum=0.8, dampening=0.8, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.8, weight_decay=0.01),
    ),
    "nesterov": (
        rules.Nesterov(lr=0.02, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "rmsprop": (
        rules.RMSProp(lr=0.01, beta2=0.95, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.95, weight_decay=0.1),
    ),
    "adam": (rules.Adam(lr=0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
    "adamw": (
        rules.AdamW(lr=0.01, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    ),
}


def loss(w):
    scale = torch.arange(1, P + 1, dtype=w.dtype) / P
    return (scale * w**2).sum() / 2 + torch.cos(w).sum() + 0.1 * (w[0] * w[1]) ** 2


def gradient(w):
    leaf = w.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("scheduled", [False, True])
def test_steps_equal_torch(name, scheduled):
    rule, build = PAIRS[name]
    parameter = torch.nn.Parameter(torch.randn(P, dtype=torch.float64))
    optimizer = build([parameter])
    schedule = rules.Warmup(5, rules.Cosine(1.0, 50), start=0.2)
    if scheduled:
        base = rule.lr
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        rule = type(rule)(**{**vars(rule), "lr": lambda t: base * schedule(t)})
    w, state = parameter.detach().clone(), None
    state = rule.init(w)
    for _ in range(60):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
        if scheduled:
            scheduler.step()
        w, state = rule.advance(w, state, gradient(w))
        assert (w - parameter.detach()).norm() <= 1e-12 * w.norm()
    if not scheduled:
        assert rules.from_torch(optimizer) == rule
        converted = rules.state_from_torch(optimizer, [parameter])
        for key in ("momentum", "mu", "nu"):
            if key in state:
                torch.testing.assert_close(converted[key], state[key], rtol=1e-10, atol=1e-14)
        # The live state continues the run: the next step agrees too.
        g = gradient(w)
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
        w, _ = rule.advance(w, converted, g)
        assert (w - parameter.detach()).norm() <= 1e-12 * w.norm()


def spectral_radius(rule, curvature, frozen):
    """Of the linear map (w, momentum) -> next, for the loss curvature w^2 / 2 with the preconditioner held fixed."""
    columns = []
    for basis in np.eye(2):
        w = torch.tensor([basis[0]], dtype=torch.float64)
        state = dict(frozen)
        key = "mu" if "mu" in state else "momentum" if "momentum" in state else None
        if key:
            state[key] = torch.tensor([basis[1]], dtype=torch.float64)
        g = curvature * w
        new = rule.update(state, g, w)
        if "nu" in new:
            new["nu"], new["step"] = frozen["nu"], frozen["step"]
            if "gradient" in new:
                new["gradient"] = rule._with_decay(g, w)
        after = rule.step(w, new, g)
        columns.append([float(after), float(new[key]) if key else 0.0])
    return np.abs(np.linalg.eigvals(np.array(columns).T)).max()


CASES = [
    rules.GradientDescent(lr=0.05),
    rules.GradientDescent(lr=0.05, weight_decay=0.7),
    rules.HeavyBall(lr=0.05),
    rules.HeavyBall(lr=0.05, momentum=0.5, weight_decay=0.7),
    rules.HeavyBall(lr=0.05, momentum=0.9, dampening=0.9),
    rules.Nesterov(lr=0.05),
    rules.Nesterov(lr=0.05, momentum=0.6, weight_decay=0.7),
    rules.ScalarRMSProp(lr=0.05),
    rules.RMSProp(lr=0.05, weight_decay=0.4),
    rules.Adam(lr=0.05),
    rules.Adam(lr=0.05, beta1=0.5, weight_decay=0.4),
    rules.AdamW(lr=0.05, weight_decay=0.7),
]


@pytest.mark.parametrize("rule", CASES, ids=lambda r: r.describe())
def test_threshold_is_where_the_update_loses_stability(rule):
    frozen = rule.init(torch.zeros(1, dtype=torch.float64))
    frozen["step"] = torch.tensor(10**6)  # bias corrections are done
    if "nu" in frozen:
        frozen["nu"] = torch.full_like(frozen["nu"], 0.36)
    for side, stable in ((0.999, True), (1.001, False)):
        # Choose the curvature whose effective eigenvalue lies just below or above the threshold.
        target = side * rule.stability_threshold(10**6)
        unit = effective_hessian(rule, frozen, from_dense(torch.zeros(1, 1, dtype=torch.float64))).dense().item()
        slope = effective_hessian(rule, frozen, from_dense(torch.ones(1, 1, dtype=torch.float64))).dense().item() - unit
        curvature = (target - unit) / slope
        assert (spectral_radius(rule, curvature, frozen) < 1) == stable


def test_published_thresholds():
    assert rules.HeavyBall(lr=1.0).stability_threshold() == pytest.approx(3.8)
    assert rules.HeavyBall(lr=1.0, dampening=0.9).stability_threshold() == pytest.approx(38)
    assert rules.Nesterov(lr=1.0).stability_threshold() == pytest.approx(1.357, abs=1e-3)
    assert rules.Adam(lr=1.0).stability_threshold() == pytest.approx(38)
    shift = rules.AdamW(lr=0.01, weight_decay=0.0).stability_threshold() - rules.AdamW(lr=0.01).stability_threshold()
    assert shift == pytest.approx(19 * 0.01)


@pytest.mark.parametrize("rule", CASES, ids=lambda r: r.describe())
def test_nothing_is_changed_in_place(rule):
    w, g = torch.randn(P), torch.randn(P)
    state = rule.update(rule.init(w), g, w)
    copies = {key: value.clone() for key, value in state.items()}
    w0, g0 = w.clone(), g.clone()
    rule.advance(w, state, g)
    rule.drift(state, g, w)
    assert torch.equal(w, w0)
    assert torch.equal(g, g0)
    assert all(torch.equal(copies[key], state[key]) for key in state)


@pytest.mark.parametrize("rule", CASES, ids=lambda r: r.describe())
def test_drift_is_the_limit_of_many_small_steps(rule):
    """After momentum has built up in a constant gradient, one step is the drift (no decay, fixed P)."""
    rule = type(rule)(**{**vars(rule), "weight_decay": 0.0})
    w, g = torch.zeros(P, dtype=torch.float64), torch.linspace(-1, 1, P, dtype=torch.float64) + 0.01
    state = rule.init(w)
    for _ in range(20_000 if "nu" in state else 500):
        state = rule.update(state, g, w)
    torch.testing.assert_close(rule.step(w, state, g) - w, rule.drift(state, g, w), rtol=1e-6, atol=1e-9)


def test_scalar_rmsprop_by_hand():
    rule = rules.ScalarRMSProp(lr=0.1, beta2=0.9, eps=0.0)
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    w, state = rule.advance(torch.zeros(2, dtype=torch.float64), rule.init(g), g)
    assert state["nu"].item() == pytest.approx(2.5)
    torch.testing.assert_close(w, -0.1 * g / math.sqrt(2.5))


@given(step=st.integers(0, 500), steps=st.integers(1, 200), peak=st.floats(0, 10), floor=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_schedules_stay_within_their_ends(step, steps, peak, floor):
    rate = rules.Cosine(peak, steps, floor)(step)
    assert min(peak, floor) - 1e-12 <= rate <= max(peak, floor) + 1e-12
    warm = rules.Warmup(steps, rules.Constant(peak))(step)
    assert 0 <= warm <= peak * (1 + 1e-12)
    assert warm == pytest.approx(peak * min(step / steps, 1))
    assert rules.Step(peak, 0.5, steps)(step) == pytest.approx(peak * 0.5 ** (step // steps))


@pytest.mark.parametrize(
    "build",
    [
        lambda: rules.GradientDescent(lr=-1.0),
        lambda: rules.HeavyBall(lr=0.1, momentum=1.0),
        lambda: rules.Adam(lr=float("nan")),
        lambda: rules.RMSProp(lr=0.1, beta2=1.5),
        lambda: rules.Cosine(1.0, 0),
        lambda: rules.Constant(-1.0),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(InvalidInput):
        build()


def test_optimizers_without_counterpart_are_refused():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    with pytest.raises(InvalidInput, match="differ in lr"):
        rules.from_torch(torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}], lr=0.1))
    with pytest.raises(InvalidInput, match="Adagrad"):
        rules.from_torch(torch.optim.Adagrad([a]))
    with pytest.raises(InvalidInput, match="amsgrad"):
        rules.from_torch(torch.optim.Adam([a], amsgrad=True))
    with pytest.raises(InvalidInput, match="maximize"):
        rules.from_torch(torch.optim.SGD([a], lr=0.1, maximize=True))
