"""The edge flow: its average, its overshoot, and its resume."""

import numpy as np
import pytest
import torch
from toys import digits, of_weights, valley

from thalweg.errors import InvalidInput
from thalweg.flows.edge import EdgeFlow
from thalweg.flows.forecast import central_flow
from thalweg.flows.registry import law_of
from thalweg.rules import GradientDescent, RMSProp


def begin(problem, rule, **options):
    return EdgeFlow(problem, law_of(rule), problem.initial, rule.init(problem.initial), **options)


def test_in_the_tilted_valley_it_averages_to_limit_and_variance_after_an_overshoot():
    eta, e = 0.3, 0.01
    flow = begin(valley(e=e, z=1.0, start=(0.05, 5.0)), GradientDescent(lr=eta))
    frames = [flow.step() for _ in range(4000)]
    y = np.array([float(f.w[1]) for f in frames])
    amplitude = np.array([f.values["amplitude"] for f in frames])
    assert y[2000:].mean() == pytest.approx(2 / eta, rel=2e-3)
    assert (amplitude[2000:] ** 2).mean() == pytest.approx(2 * e, rel=5e-3)
    assert y.max() > 2 / eta + 0.3, "the central flow cannot show this"


def test_on_a_quadratic_below_the_limit_it_is_descent():
    problem = of_weights(lambda w: 0.5 * (1.0 * w[0] ** 2 + 4.0 * w[1] ** 2), 1.0, 1.0)
    rule = GradientDescent(lr=0.4)
    flow, w, state = begin(problem, rule), problem.initial, rule.init(problem.initial)
    for _ in range(15):
        frame = flow.step()
        torch.testing.assert_close(frame.w, w, rtol=1e-9, atol=1e-9)
        w, state = rule.advance(w, state, problem.gradient(w))
    assert frame.values["effective_sharpness"] == pytest.approx(1.6, rel=1e-6)
    assert flow.ledger.products < 15, "one eigenvector at the start, and none after"


def test_it_runs_beside_the_others_and_resumes_to_the_same_bits():
    problem, rule = digits(torch.float64, samples=80), GradientDescent(lr=0.2)
    flow = central_flow(problem, rule, 25, processes=("discrete", "central", "edge"))
    assert flow.data["amplitude_edge"].attrs["units"] == "weight"
    assert float(flow.data["distance_edge"][-1]) < 0.02 * float(flow.data["travelled"][-1])
    assert len(flow.plot().data) > 5
    whole = begin(problem, rule)
    for _ in range(10):
        whole.step()
    again = begin(problem, rule)
    again.load_state_dict(whole.state_dict())
    for _ in range(5):
        one, other = whole.step(), again.step()
        assert one.values == other.values
        assert torch.equal(one.w, other.w)


def test_other_rules_are_refused():
    problem = digits(torch.float64, samples=20)
    with pytest.raises(InvalidInput, match="known for gradient descent"):
        central_flow(problem, RMSProp(lr=1e-3), 3, processes=("central", "edge"))
    with pytest.raises(InvalidInput, match="seed"):
        begin(problem, GradientDescent(lr=0.1), seed=0.0)
