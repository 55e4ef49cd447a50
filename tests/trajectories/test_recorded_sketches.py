"""Projections that a recorder kept, against the exact inner products of the same steps."""

import json

import numpy as np
import pytest
import torch

from thalweg.errors import InvalidInput, RunFolderError
from thalweg.runs.recorder import Recorder
from thalweg.runs.sources import trajectory
from thalweg.trajectories.gram import grams
from thalweg.trajectories.recorded_sketches import recorded_bursts, recorded_sketches


def record(folder, steps=45, every=1, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.Tanh(), torch.nn.Linear(60, 1)).double()
    x, y = torch.randn(64, 40).double(), torch.randn(64, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with Recorder(folder, model, optimizer, every=every, sketch=256, **settings) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            recorder.step(loss=loss)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(tmp_path_factory.mktemp("run"), bursts=(6, 20))


def test_bursts_are_as_the_exact_steps_say(folder):
    exact = grams(trajectory(folder)).increments()
    bursts = recorded_bursts(folder)
    assert [burst.steps for burst in bursts] == [list(range(a, min(a + 7, 46))) for a in (0, 20, 40)]
    for burst in bursts:
        found = burst.grams()
        place = slice(burst.steps[0], burst.steps[-1])
        error = np.abs(found.increments() - exact[place, place])
        assert (error < 4 * found.standard_error + 1e-15).all()
        assert error.max() > 0, "these are estimates"
    cosines = [
        np.diag(g, 1) / np.sqrt(np.diag(g)[1:] * np.diag(g)[:-1])
        for g in (exact[:6, :6], bursts[0].grams().increments())
    ]
    np.testing.assert_allclose(cosines[0], cosines[1], atol=4 / 16)


def test_all_of_them_are_one_sequence(tmp_path):
    record(tmp_path, keep=3, every=5)
    found = recorded_sketches(tmp_path).grams()
    assert found.steps.tolist() == list(range(0, 46, 5))
    whole = trajectory(tmp_path)
    assert whole.steps == (0, 15, 30, 45)
    weights = torch.cat([whole.read(0, info.name, 0, info.numel) for info in whole.tensors])
    assert found.m.sum() == pytest.approx(float(weights @ weights), rel=1e-12)


def test_without_projections(tmp_path):
    record(tmp_path / "run", steps=2)
    with pytest.raises(InvalidInput, match="has no projections"):
        recorded_sketches(tmp_path / "run")
    assert recorded_bursts(tmp_path / "run") == []


def test_a_manifest_of_another_run(tmp_path):
    record(tmp_path, steps=3, bursts=(2, 3))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["loop"]["tensors"].pop()
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="cannot be read"):
        recorded_sketches(tmp_path)
