"""The stationary flow: one direction in closed form, the joint flow beside it, and its resume."""

import pytest
import torch
from toys import digits, valley

from thalweg.errors import InvalidInput
from thalweg.flows.forecast import central_flow
from thalweg.flows.registry import law_of
from thalweg.flows.stationary_flow import TOLERANCE, StationaryFlow
from thalweg.rules import Adam, GradientDescent, RMSProp, ScalarRMSProp


def begin(problem, rule):
    return StationaryFlow(problem, law_of(rule), problem.initial, rule.init(problem.initial))


def test_one_direction_moves_as_its_closed_form_says():
    """With sharpness S = y, ``nu = g^2 + S^2 sigma^2`` at ``sqrt(nu) = eta S / 2``: sigma^2 = eta^2 / 4 - g^2 / S^2."""
    eta, e, y = 0.3, 0.01, 5.0
    flow = begin(valley(e=e, z=0.0, start=(0.0, y)), ScalarRMSProp(lr=eta))
    frame = flow.step()
    # The tilt along x is a gradient, too, and all of it lies along the direction that oscillates.
    variance = eta**2 / 4 - 2 * e**2 / y**2
    assert float(frame.metric) == pytest.approx(y / 2, rel=2 * TOLERANCE)
    assert float(frame.X[0] / frame.metric) == pytest.approx(variance, rel=2 * TOLERANCE)
    assert float(flow.w[1]) == pytest.approx(y - (2 / y) * (variance / 2 - e), rel=TOLERANCE)


def test_at_the_edge_it_is_near_the_joint_flow():
    """With a memory of ten steps the averages have caught up after 150; measured: losses differ by 6e-4."""
    rule = ScalarRMSProp(lr=0.04, beta2=0.9, bias_correction=True)
    names = ("discrete", "central", "stationary")
    data = central_flow(digits(torch.float64), rule, 8, warm_start=150, processes=names).data
    assert float(data["critical_stationary"].max()) >= 1
    assert float(abs(data["predicted_loss_stationary"] / data["predicted_loss"] - 1).max()) < 5e-3
    assert float(data["distance_stationary"][-1]) < 1.1 * float(data["distance_central"][-1])


def test_it_resumes_to_the_same_bits_and_names_what_it_is_not_for():
    problem, rule = digits(torch.float64, samples=30), RMSProp(lr=2e-3)
    whole = begin(problem, rule)
    whole.step()
    again = begin(problem, rule)
    again.load_state_dict(whole.state_dict())
    one, other = whole.step(), again.step()
    assert one.values == other.values
    assert torch.equal(one.w, other.w)
    for wrong in (GradientDescent(lr=0.1), Adam(lr=0.1), RMSProp(lr=lambda step: 0.1)):
        with pytest.raises(InvalidInput, match="constant learning rate"):
            begin(problem, wrong)
