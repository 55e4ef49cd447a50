"""A flow does not depend on how the problem is written down, and its reference converges with its substeps."""

import numpy as np
import pytest
import torch
from toys import digits

from thalweg import Problem
from thalweg.flows.central import CentralMap
from thalweg.flows.reference import CentralReference, Euler
from thalweg.flows.registry import law_of
from thalweg.flows.settings import Settings
from thalweg.rules import GradientDescent, ScalarRMSProp

RULE = GradientDescent(lr=0.3)
STEPS = 70


def losses(problem, kind=CentralMap, *settings, rule=RULE, steps=STEPS):
    flow = kind(problem, law_of(rule), problem.initial, rule.init(problem.initial), *settings)
    frames = [flow.step() for _ in range(steps)]
    assert frames[-1].values["critical"] > 0, "nothing oscillates, so nothing is tested"
    return np.array([f.values["predicted_loss"] for f in frames]), flow.w


def test_batches_and_precision_do_not_matter():
    problem = digits(torch.float64, samples=100)
    tight = Settings(eigen_tol=1e-6)  # eigenvectors are found to their tolerance, wherever rounding leads the search
    whole, w = losses(problem, CentralMap, tight)
    cut, v = losses(problem.recut(37), CentralMap, tight)
    assert np.abs(cut / whole - 1).max() < 1e-6
    assert float((v - w).norm() / w.norm()) < 1e-6
    single, u = losses(digits(torch.float32, samples=100))
    assert np.abs(single / whole - 1).max() < 1e-3
    assert float((u.double() - w).norm() / w.norm()) < 1e-3


def test_the_order_of_the_parameters_does_not_matter():
    class Turned(torch.nn.Module):
        """The same network with its layers registered backwards."""

        def __init__(self, layers):
            super().__init__()
            self.layers = torch.nn.ModuleList(reversed(list(layers)))

        def forward(self, x):
            for layer in reversed(self.layers):
                x = layer(x)
            return x

    problem = digits(torch.float64, samples=100)
    batch = next(iter(problem.batches()))[0]
    turned = Problem(Turned(problem.model), problem._function.loss, batch)
    assert not torch.equal(turned.initial, problem.initial)
    one, other = losses(problem)[0], losses(turned)[0]
    assert np.abs(one / other - 1).max() < 2e-3, "eigenvectors start at random, and are found to their tolerance"


@pytest.mark.slow
@pytest.mark.parametrize("rule", [RULE, ScalarRMSProp(lr=0.05, beta2=0.9, bias_correction=True)])
def test_the_reference_converges_with_its_substeps(rule):
    """Explicit Euler, the constraint at the end of each substep: errors fall with the length of a substep."""
    problem = digits(torch.float64, samples=60)
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(10):
        w, state = rule.advance(w, state, problem.gradient(w))
    found = {}
    for substeps in (1, 2, 4, 8):
        settings = Euler(substeps=substeps, refresh="substep", eigen_tol=1e-7)
        flow = CentralReference(problem, law_of(rule), w, state, settings)
        frames = [flow.step() for _ in range(25)]
        found[substeps] = np.array([f.values["loss"] for f in frames])
    gaps = [np.abs(found[n] / found[2 * n] - 1).max() for n in (1, 2, 4)]
    assert gaps[0] > 1.6 * gaps[1] > 1.6 * 1.6 * gaps[2] > 0
