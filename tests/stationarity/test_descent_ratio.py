"""The descent ratio, on systems where it is known."""

import sys
from pathlib import Path

import numpy as np
import pytest

from thalweg.errors import InvalidInput
from thalweg.stationarity.assess import assess
from thalweg.stationarity.descent import descent_ratio

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import synthetic_map


def test_a_quadratic_keeps_all_but_its_curvature():
    w, losses, promised, bent = np.array([1.0, 1.0]), [], [], []
    h, rate = np.array([1.0, 3.0]), 0.1
    for _ in range(300):
        g = h * w
        losses.append(0.5 * float(h @ w**2))
        promised.append(rate * float(g @ g))
        bent.append(0.5 * rate**2 * float(h @ g**2))
        w = w - rate * g
    found = descent_ratio(np.arange(300), losses, np.arange(300), promised, curvature=np.array(bent), end=0)
    assert found.fall == pytest.approx(found.promised - found.measured, rel=1e-12)  # a quadratic has no third order
    assert found.mismatch == pytest.approx(0, abs=1e-12)
    assert found.ratio == pytest.approx(1 - sum(bent) / sum(promised))


def test_probes_estimate_the_sum():
    t = np.arange(4000)
    promised = 1 + 0.5 * np.random.default_rng(0).standard_normal(4000)
    loss = 10 - 0.3 * np.cumsum(promised)
    found = descent_ratio(t, loss, t[::20], promised[::20])
    assert abs(found.ratio - 0.3) < 4 * found.standard_error
    assert found.standard_error < 0.02


def test_the_synthetic_map_goes_nowhere():
    start = np.random.default_rng(0).uniform(0, 2 * np.pi, (1, 2))
    path = synthetic_map.descend(0.04, start, 4000)[:, 0]
    square = (synthetic_map.gradient(path) ** 2).sum(-1)
    log = {
        "loss": synthetic_map.loss(path),
        "gradient_unbiased": square,
        "promised_descent": 0.04 * square,
        "learning_rate": np.full(len(path), 0.04),
    }
    found = assess(log)
    assert found.kind == "invariant regime", found
    assert found.loss.mean.value == pytest.approx(-18.2, abs=0.3)
    assert abs(found.descent.ratio) < 0.01
    assert found.descent.curvature_share == pytest.approx(1, abs=0.01)
    assert "Lower the learning rate" in found.advice


def test_the_synthetic_map_at_rest():
    path = synthetic_map.descend(0.01, np.array([[0.3, 2.0]]), 2000)[:, 0]
    log = {"loss": synthetic_map.loss(path), "gradient_unbiased": (synthetic_map.gradient(path) ** 2).sum(-1)}
    found = assess(log)
    assert found.kind == "undecided"
    assert "Every value of loss in the window is -100" in found.undecided[0].reason
    assert found.level.state == "zero"


def test_bad_arguments():
    with pytest.raises(InvalidInput, match="Each value has its step"):
        descent_ratio(np.arange(3), np.arange(4.0), np.arange(4), np.ones(4))
    with pytest.raises(InvalidInput, match="less than half"):
        descent_ratio(np.arange(4), np.arange(4.0), np.arange(4), np.ones(4), end=0.5)
