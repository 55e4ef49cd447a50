"""The rod flow: rates and fixed points in closed form, the tilted valley, and its resume."""

import math

import numpy as np
import pytest
import torch
from toys import digits, of_weights, valley

from thalweg.errors import InvalidInput
from thalweg.flows.forecast import central_flow
from thalweg.flows.registry import law_of
from thalweg.flows.rod import RodFlow
from thalweg.rules import GradientDescent, RMSProp


def begin(problem, rule, **options):
    return RodFlow(problem, law_of(rule), problem.initial, rule.init(problem.initial), **options)


@pytest.mark.parametrize(("eta", "grows"), [(0.45, False), (0.5, None), (0.55, True)])
def test_on_a_quadratic_the_extent_grows_at_its_rate(eta, grows):
    sharpness = 4.0
    problem = of_weights(lambda w: 0.5 * (sharpness * w[0] ** 2 + w[1] ** 2), 0.0, 1.0)
    flow = begin(problem, GradientDescent(lr=eta), seed=0.1)
    lengths = [flow.step().values["amplitude"] for _ in range(8)]
    rate = (eta * sharpness) ** 2 / 2 - 2  # of the square
    np.testing.assert_allclose(lengths, lengths[0] * np.exp(np.arange(8) * rate / 2), rtol=1e-7)
    assert grows is None or (lengths[-1] > lengths[0]) == grows


def test_on_a_quartic_it_rests_at_the_extent_in_closed_form():
    S, Q, eta = 8.0, 3.0, 0.3
    problem = of_weights(lambda w: S * w[0] ** 2 / 2 - Q * w[0] ** 4 / 4, 0.0)
    flow = begin(problem, GradientDescent(lr=eta), seed=0.1)
    for _ in range(60):
        frame = flow.step()
    assert frame.values["amplitude"] ** 2 == pytest.approx(S / Q - 2 / (eta * Q), rel=1e-6)
    assert frame.values["effective_sharpness"] == pytest.approx(2.0, rel=1e-6)


def test_the_centre_follows_the_rule_to_second_order():
    """The modified equation differs from the map by its third order: from step ``eta`` to ``eta / 2`` by eight."""
    problem, off = of_weights(lambda w: torch.cosh(w[0]) + 0.5 * w[1] ** 2 + 0.1 * w[0] * w[1], 1.0, 0.5), []
    for eta in (0.1, 0.05):
        rule = GradientDescent(lr=eta)
        flow, state = begin(problem, rule, seed=1e-4), rule.init(problem.initial)
        flow.step()
        after, _ = rule.advance(problem.initial, state, problem.gradient(problem.initial))
        off.append(float((flow.w - after).norm()))
    assert math.log2(off[0] / off[1]) == pytest.approx(3, abs=0.3)


@pytest.mark.slow
def test_in_the_tilted_valley_it_averages_to_limit_and_variance_after_an_overshoot():
    eta, e = 0.3, 0.03
    flow = begin(valley(e=e, z=1.0, start=(0.05, 6.2)), GradientDescent(lr=eta))
    frames = [flow.step() for _ in range(900)]
    y = np.array([float(f.w[1]) for f in frames])
    amplitude = np.array([f.values["amplitude"] for f in frames])
    # y is the sharpness where x is 0, and x is of the order e: hence 0.5 % here, and 0.14 % at e = 0.01.
    assert y[450:].mean() == pytest.approx(2 / eta, rel=5e-3)
    assert (amplitude[450:] ** 2).mean() == pytest.approx(2 * e, rel=1e-2)
    assert y.max() > 2 / eta + 0.3, "the central flow cannot show this"


def test_the_drift_does_not_turn_the_rod():
    """Started half-way between the drift and the sharp direction it finds the sharp one, while the centre drifts."""
    flow = begin(valley(e=0.01, z=1.0, start=(0.05, 6.5)), GradientDescent(lr=0.3))
    flow._direction = torch.tensor([1.0, 1.0], dtype=torch.float64)
    flow._direction /= flow._direction.norm()
    for _ in range(12):
        frame = flow.step()
    assert abs(float(flow._direction[0])) > 0.99
    assert frame.values["effective_sharpness"] == pytest.approx(0.3 * float(frame.w[1] + 3 * frame.w[0]), rel=0.02)


def test_it_runs_beside_the_others_and_resumes_to_the_same_bits(tmp_path):
    problem, rule, path = digits(torch.float64, samples=60), GradientDescent(lr=0.2), tmp_path / "s.safetensors"
    names = {"processes": ("discrete", "central", "stable", "rod")}
    flow = central_flow(problem, rule, 8, **names)
    assert flow.data["amplitude_rod"].attrs["units"] == "weight"
    assert flow.data["predicted_loss_rod"].attrs["units"] == "loss"
    assert (flow.data["distance_rod"][1:] < flow.data["distance_stable"][1:]).all(), "it knows the steps' length"
    assert any("rod" in (line.name or "") for line in flow.plot().data)
    central_flow(problem, rule, 4, **names, state_path=path)
    again = central_flow(problem, rule, 8, **names, state_path=path, resume=True)
    for name in flow.data.variables:
        np.testing.assert_array_equal(flow.data[name], again.data[name], err_msg=name)


def test_other_rules_are_refused():
    problem = digits(torch.float64, samples=20)
    with pytest.raises(InvalidInput, match="known for gradient descent"):
        central_flow(problem, RMSProp(lr=1e-3), 3, processes=("central", "rod"))
    with pytest.raises(InvalidInput, match="seed"):
        begin(problem, GradientDescent(lr=0.1), seed=0.0)
