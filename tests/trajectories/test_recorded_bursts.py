"""Bursts of consecutive steps beside the checkpoints of a recorded run: what the map makes of them."""

import numpy as np
import pytest
import torch

from thalweg.report.trajectory_page import marks_of, render_map
from thalweg.runs import open_run
from thalweg.runs.recorder import Recorder
from thalweg.trajectories import open_map, save_map, trajectory_map
from thalweg.trajectories.recorded import bursts_of
from thalweg.trajectories.recorded_sketches import recorded_bursts


@pytest.fixture
def bouncing(tmp_path):
    """Descent with rate 0.5 on curvature 3.8: each update turns back, and is 0.9 times as long."""
    model = torch.nn.Linear(20, 4, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Recorder(tmp_path / "run", model, optimizer, every=10, bursts=(16, 40)) as recorder:
        for _ in range(60):
            loss = 1.9 * model.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss=loss)
    return open_run(tmp_path / "run")


def test_a_burst_tells_the_curvature_that_updates_feel(bouncing):
    found = bursts_of(bouncing)
    assert [(one.first, one.last) for one in found] == [(0, 16), (40, 56)]
    for one in found:
        assert one.mean_cosine == pytest.approx(-1, abs=1e-6)
        assert one.cosine == pytest.approx(-0.9, abs=1e-6)
        assert one.sharpness == pytest.approx(2 * 0.9 / 0.5, rel=1e-6)


def test_the_map_keeps_bursts_and_calls_them_oscillating(bouncing, tmp_path):
    from dataclasses import replace

    bare = trajectory_map(recorded_bursts(bouncing.path)[0].grams())
    found = replace(bare, bursts=bursts_of(bouncing))
    again = open_map(save_map(found, tmp_path / "map.nc"))
    assert len(again.bursts) == 2
    for one, other in zip(found.bursts, again.bursts, strict=True):
        for key, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, key), err_msg=key)
    marks = [mark for mark in marks_of(again).marks if mark.label == "oscillating"]
    assert (40, 56) in [(mark.first, mark.last) for mark in marks]
    page = render_map(again, marks=marks_of(again))
    assert "Consecutive steps" in page
    assert "40 to 56" in page


def test_a_run_without_bursts_has_none(tmp_path):
    model = torch.nn.Linear(3, 2)
    with Recorder(tmp_path / "run", model, every=2) as recorder:
        for _ in range(4):
            recorder.step()
    assert bursts_of(open_run(tmp_path / "run")) == ()
