"""What rounding of stored weights does, against rounded weights."""

import dataclasses

import numpy as np
import pytest
import torch
from path_cases import plain_grams

from thalweg.trajectories.kernels import Kernels
from thalweg.trajectories.map import trajectory_map
from thalweg.trajectories.precision import inflation, precision, turning_bias


def rounded(dtype, u, size=200_000, count=12):
    """A walk of orthogonal updates of relative size u, as the type stores it, and its rounding q."""
    rng = np.random.default_rng(2)
    start = 0.02 * rng.standard_normal(size)
    steps = rng.standard_normal((count - 1, size)) * 0.02 * u
    points = start + np.concatenate([np.zeros((1, size)), np.cumsum(steps, axis=0)])
    stored = torch.from_numpy(points).to(dtype).double().numpy()
    q = np.sqrt(((stored - points) ** 2).mean() / (points**2).mean())
    return Kernels.from_points(points), Kernels.from_points(stored), q


@pytest.mark.parametrize(("dtype", "q"), [(torch.float16, 2.1e-4), (torch.bfloat16, 1.66e-3)])
@pytest.mark.parametrize("size", [5, 15])
def test_rounding_bends_and_lengthens_as_predicted(dtype, q, size):
    exact, stored, measured_q = rounded(dtype, size * q)
    assert measured_q == pytest.approx(q, rel=0.03)
    bias = np.diag(stored.updates, 1).mean() - np.diag(exact.updates, 1).mean()
    predicted = float(turning_bias(size * q, q))
    assert bias == pytest.approx(predicted, rel=0.1, abs=1e-3)
    longer = (stored.lengths / exact.lengths).mean()
    assert longer == pytest.approx(float(inflation(size * q, q)), abs=2e-3)
    found = precision(dataclasses.replace(stored, quantum=q))
    assert not found.below.any()
    assert found.bias.mean() == pytest.approx(predicted, rel=0.05)  # from measured lengths alone
    assert found.inflated.mean() == pytest.approx(longer, abs=5e-3)
    assert np.abs(stored.similarity - exact.similarity).max() < 3 * q**2  # cosines of checkpoints hardly notice


def test_updates_below_three_quanta_are_marked_and_told():
    q = 2.1e-4
    _, stored, _ = rounded(torch.float16, q, size=20_000)
    found = precision(dataclasses.replace(stored, quantum=q))
    assert found.below.all()
    assert found.share == 1
    assert found.mask.all()
    assert (found.bias >= -0.5).all()
    assert not precision(stored).below.any()  # unknown rounding marks nothing
    points = 1 + 1e-5 * np.arange(6)[:, None] * np.ones(30)
    table = trajectory_map(plain_grams({"w": points}, quantum=q)).table()
    assert any("5 of 5 updates are below" in note for note in table.notes)


def test_the_rounding_of_a_group_adds_up_over_its_tensors():
    big, small = np.full((3, 100), 2.0), np.full((3, 100), 1.0)
    grams = plain_grams({"a": big, "b": small})
    grams.quantum = np.array([1e-3, 0.0])
    found = trajectory_map(grams, groups="tensor")
    assert found.path().quantum == pytest.approx(1e-3 * np.sqrt(4 / 5))
    assert found.path("b").quantum == 0
