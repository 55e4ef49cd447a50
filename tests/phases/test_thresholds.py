"""Every threshold against the spectral radius of the linear map, and the map against the rule's own steps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg import rules
from thalweg.errors import InvalidInput
from thalweg.phases.thresholds import NAMES, companion, limit, spectral_radius

RULES = [
    rules.GradientDescent(lr=0.1),
    rules.GradientDescent(lr=0.1, weight_decay=0.7),
    rules.HeavyBall(lr=0.1, momentum=0.9),
    rules.HeavyBall(lr=0.1, momentum=0.5, weight_decay=0.3),
    rules.HeavyBall(lr=0.1, momentum=0.9, dampening=0.9),
    rules.HeavyBall(lr=0.1, momentum=0.8, dampening=0.8, weight_decay=0.5),
    rules.Nesterov(lr=0.1, momentum=0.9),
    rules.Nesterov(lr=0.1, momentum=0.6, weight_decay=0.4),
    rules.Adam(lr=0.1, eps=0.0),
    rules.Adam(lr=0.1, beta1=0.7, eps=0.0),
    rules.AdamW(lr=0.1, weight_decay=0.5, eps=0.0),
    rules.AdamW(lr=0.1, beta1=0.0, weight_decay=0.5, eps=0.0),
    rules.RMSProp(lr=0.1, eps=0.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.describe())
def test_stability_ends_at_the_threshold(rule):
    edge = float(limit(rule).at(0.1))
    assert spectral_radius(rule, edge, 0.1) == pytest.approx(1, abs=1e-9)
    assert spectral_radius(rule, edge * (1 + 1e-4), 0.1) > 1 + 1e-6
    assert spectral_radius(rule, edge * (1 - 1e-4), 0.1) < 1 - 1e-6


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.describe())
def test_the_map_is_what_the_rule_does(rule):
    """Run the rule itself on a parabola, with squares held at one so that its preconditioner stands still."""
    h, steps = 0.8 * float(limit(rule).at(0.1)), 30
    w = torch.tensor([1.0], dtype=torch.float64)
    state = rule.init(w)
    path = []
    for _ in range(steps):
        if "nu" in state:
            state = state | {"nu": torch.ones_like(w), "step": torch.tensor(10**9)}
        updated = rule.update(state, h * w, w)
        if "nu" in updated:
            updated = updated | {"nu": torch.ones_like(w)}
        w, state = rule.step(w, updated, h * w), updated
        path.append(w.item())
    mapped = companion(rule, h, 0.1)
    m = state.get("momentum", state.get("mu", torch.zeros(1))).item()
    point = np.array([path[-1], m])
    for _ in range(3):
        point = mapped @ point
        if "nu" in state:
            state = state | {"nu": torch.ones_like(w), "step": torch.tensor(10**9)}
        updated = rule.update(state, h * w, w)
        if "nu" in updated:
            updated = updated | {"nu": torch.ones_like(w)}
        w, state = rule.step(w, updated, h * w), updated
        assert w.item() == pytest.approx(point[0], rel=1e-9, abs=1e-12)


def test_known_values():
    known = {"gd": 2, "heavy_ball": 3.8, "ema": 38, "nesterov": 3.8 / 2.8, "adam": 38, "rmsprop": 2}
    assert {name: limit(name).kappa for name in known} == pytest.approx(known)
    assert limit("adamw", weight_decay=0.01).shift == pytest.approx(0.19)
    assert limit("gd", weight_decay=0.5).at(0.1) == pytest.approx(19.5)
    assert limit(rules.GradientDescent(lr=1, weight_decay=0.5), decay_in_curvature=True).shift == 0
    assert set(NAMES) >= set(known)


@given(st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.floats(1e-4, 1e4))
def test_the_ratio_has_no_units(sharpness, scale, eta):
    found = limit("heavy_ball", momentum=0.7)
    assert found.ratio(sharpness * scale, eta / scale) == pytest.approx(found.ratio(sharpness, eta))


def test_a_rate_of_zero_is_always_stable():
    assert limit("gd").at([0.0, 0.5]).tolist() == [np.inf, 4.0]


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        ("lion", {}, "no rule 'lion'"),
        ("gd", {"kappa": -1.0}, "positive"),
        (rules.Adam(lr=1e-3, weight_decay=0.1), {}, "preconditioner"),
    ],
)
def test_bad_input_is_explained(rule, settings, words):
    with pytest.raises(InvalidInput, match=words):
        limit(rule, **settings)


def test_without_a_rule_descent_is_assumed_and_said():
    assert limit().assumed
    assert not limit(kappa=3.8).assumed
