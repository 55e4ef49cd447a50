"""What third derivatives miss of the curvature's change, and how a flow that has missed it once knows it afterwards."""

import pytest
import torch
from toys import of_weights

from thalweg.flows.central import CentralMap
from thalweg.flows.registry import law_of
from thalweg.flows.settings import Settings
from thalweg.flows.subspace import Critical, misjudged
from thalweg.rules import GradientDescent


def rotated(angle):
    c, s = torch.cos(torch.tensor(angle)).item(), torch.sin(torch.tensor(angle)).item()
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def bowl():
    """Sharpness ``y + z^2 / 2`` of x: at the limit y and z slide along a parabola, of which D knows the tangent."""
    return of_weights(lambda w: 0.5 * (w[1] + 0.5 * w[2] ** 2) * w[0] ** 2 - 0.05 * (w[1] + 2 * w[2]), 0.0, 6.6, 0.1)


def follow(learns, monkeypatch, time=150):
    if not learns:
        monkeypatch.setattr(CentralMap, "_learn", lambda self, block, metric: None)
    problem, rule = bowl(), GradientDescent(lr=0.3)
    flow = CentralMap(problem, law_of(rule), problem.initial, rule.init(problem.initial), Settings(max_interval=100))
    return flow, [flow.step() for _ in range(time)]


def test_a_prediction_in_a_turned_basis_of_other_lengths_missed_nothing():
    metric = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    fresh = Critical(basis / metric.sqrt()[:, None], torch.diag(torch.tensor([2.01, 1.97]).double()), torch.zeros(3, 6))
    mix = rotated(0.4) @ torch.diag(torch.tensor([1.1, 0.9]).double())
    old = Critical(fresh.U @ mix, mix.T @ fresh.A @ mix, fresh.D)
    missed, turn = misjudged(old, fresh, metric)
    assert float(missed.norm()) < 1e-12
    assert torch.allclose(turn @ turn.T, torch.eye(2).double())

    extra = torch.tensor([[1e-3, 2e-3], [2e-3, -1e-3]], dtype=torch.float64)
    old.A = mix.T @ (fresh.A - extra) @ mix
    assert torch.allclose(misjudged(old, fresh, metric)[0], extra, atol=1e-12), "in the basis of the fresh vectors"


def test_of_a_new_direction_nothing_is_said_and_another_space_is_not_compared():
    eye = torch.eye(4, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    old = Critical(eye[:, :1], torch.tensor([[2.0]]).double(), eye[:1])
    wider = Critical(eye[:, :2], torch.diag(torch.tensor([2.01, 1.96]).double()), eye[:3])
    missed, turn = misjudged(old, wider, one)
    assert missed.tolist() == [[pytest.approx(0.01), 0.0], [0.0, 0.0]]
    assert turn.shape == (2, 1)
    narrow, turn = misjudged(wider, old, one)
    assert narrow.tolist() == [[pytest.approx(-0.01)]]
    assert turn.shape == (1, 2)
    assert misjudged(old, Critical(eye[:, 1:2], old.A, old.D), one) is None


def test_a_flow_that_learns_looks_less_often_and_keeps_the_limit_better(monkeypatch):
    flow, frames = follow(True, monkeypatch)
    other, rest = follow(False, monkeypatch)
    assert len(flow.looks) < 0.8 * len(other.looks)
    assert flow.excess < other.excess

    def worst(found):
        sharpness = [float(f.w[1] + 0.5 * f.w[2] ** 2) * 0.3 for f in found[40:]]
        return max(abs(s - 2) for s in sharpness)

    assert worst(frames) < worst(rest)


def test_what_was_learnt_is_saved():
    problem, rule = bowl(), GradientDescent(lr=0.3)

    def new():
        return CentralMap(problem, law_of(rule), problem.initial, rule.init(problem.initial))

    flow = new()
    for _ in range(60):
        flow.step()
    saved = flow.state_dict()
    assert float(saved["bend"].norm()) > 0
    other = new()
    other.load_state_dict(saved)
    for _ in range(40):
        assert torch.equal(flow.step().w, other.step().w)
