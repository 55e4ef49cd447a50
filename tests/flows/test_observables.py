"""Averages of any observable over the oscillation."""

import pytest
import torch
from toys import digits, valley

from thalweg.errors import InvalidInput
from thalweg.flows.central import CentralMap
from thalweg.flows.forecast import central_flow
from thalweg.flows.observables import average
from thalweg.flows.registry import law_of
from thalweg.rules import GradientDescent


def test_a_quadratic_observable_is_averaged_exactly():
    problem, rule = valley(e=0.01, z=0.0, start=(0.0, 6.66)), GradientDescent(lr=0.3)
    flow = CentralMap(problem, law_of(rule), problem.initial, rule.init(problem.initial))
    frame = [flow.step() for _ in range(30)][-1]
    here, predicted = average(lambda w: 3 * w[0] ** 2 + w[1], frame)
    assert here == pytest.approx(float(frame.w[1]), abs=1e-5)
    assert predicted - here == pytest.approx(3 * 2 * 0.01, rel=1e-2), "3 E x^2 = 3 (2 e)"


def test_the_loss_as_an_observable_is_the_predicted_loss():
    problem = digits(torch.float64, samples=100)
    flow = central_flow(problem, GradientDescent(lr=0.3), 60, observables={"train": problem.value})
    own, followed = flow.data["predicted_loss"], flow.data["predicted_train"]
    assert float(flow.data["critical"].max()) > 0
    assert float(abs(followed / own - 1).max()) < 2e-3, "but for orders beyond the second"
    assert float(abs(flow.data["train_discrete"] - flow.data["loss_discrete"]).max()) < 1e-12


@pytest.mark.parametrize("name", ["loss", "my loss", "time"])
def test_names_of_the_flow_itself_are_refused(name):
    with pytest.raises(InvalidInput, match="observable is called"):
        central_flow(digits(samples=20), GradientDescent(lr=0.1), 3, observables={name: lambda w: 0.0})
