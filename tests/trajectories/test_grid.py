"""A grid of maps against runs made by hand, effects against arithmetic, and a cell that diverges."""

import math

import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.errors import InvalidInput, NonFinite
from thalweg.runs.sources import Trajectory
from thalweg.trajectories.grid import map_grid
from thalweg.trajectories.map import trajectory_map


def noisy(learning_rate, weight_decay, momentum, seed):
    """SGD driven by noise alone, whose decay null is exact but for sampling."""
    rng = np.random.default_rng(seed)
    w, v, points = rng.standard_normal(3000), 0.0, []
    for step in range(601):
        if step % 30 == 0:
            points.append({"w": torch.tensor(w.copy())})
        v = momentum * v + 0.05 * rng.standard_normal(3000) + weight_decay * w
        w = w - learning_rate * v
    steps = np.arange(0, 601, 30)
    return Trajectory.from_arrays(points, steps, schedule={"loss": 1.0 / (1 + steps)})


@pytest.fixture(scope="module")
def found():
    grid = {"learning_rate": [0.05, 0.2], "momentum": [0.0, 0.8], "weight_decay": [0.0, 0.01]}
    return map_grid(noisy, grid, seeds=(0, 1))


def test_each_cell_is_the_map_of_its_run(found):
    assert len(found.cells) == 16
    assert found.data.omega_off.shape == (2, 2, 2, 2)
    cell = found.cell(seed=1, learning_rate=0.2, momentum=0.8, weight_decay=0.01)
    alone = trajectory_map(noisy(0.2, 0.01, 0.8, 1))
    np.testing.assert_array_equal(cell.map.similarity, alone.similarity)
    there = found.data.sel(learning_rate=0.2, momentum=0.8, weight_decay=0.01, seed=1)
    assert float(there.omega_off) == alone.mds["uniform"].omega_off
    assert float(there.loss) == pytest.approx(1 / 601)


def test_the_decay_null_goes_along_with_momentum_and_rate(found):
    gap = np.abs(found.data.persistence)
    # noise of a walk of 3000 weights: cosines err by 1 / sqrt(3000) = 0.018 at most
    assert float(gap.max()) < 0.04
    assert float(found.data.omega_decay.min()) < 0.6
    decoupled = map_grid(noisy, {"learning_rate": [0.2], "momentum": [0.8], "weight_decay": [0.01]}, coupled=False)
    assert abs(float(decoupled.data.persistence.squeeze())) > 0.1


def test_effects_are_paired_differences(found):
    values = found.data.omega_off.values
    effect = found.effect("momentum")
    per_seed = (values[:, 1] - values[:, 0]).mean(axis=(0, 1))
    np.testing.assert_allclose(effect.seeds, per_seed)
    assert effect.value == pytest.approx(per_seed.mean())
    assert effect.standard_error == pytest.approx(abs(per_seed[0] - per_seed[1]) / 2)
    both = found.interaction("momentum", "weight_decay")
    by_hand = (values[:, 1, 1] - values[:, 1, 0] - values[:, 0, 1] + values[:, 0, 0]).mean(axis=0)
    np.testing.assert_allclose(both.seeds, by_hand)
    assert both.value < 0
    with pytest.raises(InvalidInput, match="axes are"):
        found.effect("batch_size")
    with pytest.raises(InvalidInput, match="each axis once"):
        found.interaction("momentum", "momentum")


def test_it_prints_and_draws_every_cell(found):
    text = repr(found)
    assert "2 learning_rate x 2 momentum x 2 weight_decay, 2 seeds" in text
    assert len(text.splitlines()) == 10
    figure = found.plot()
    assert len(figure.data) == 8
    assert len({trace.zmin for trace in figure.data}) == 1


def test_a_cell_that_diverges_is_left_out_and_named():
    def run(learning_rate, seed):
        if learning_rate > 1:
            raise NonFinite("the loss became infinite at step 7")
        return noisy(learning_rate, 0.0, 0.0, seed)

    found = map_grid(run, {"learning_rate": [0.1, 2.0]})
    assert found.cell(learning_rate=2.0).map is None
    assert np.isnan(found.data.omega.values).tolist() == [[False], [True]]
    assert "step 7" in repr(found)
    assert len(found.plot().data) == 1
    assert math.isnan(found.effect("learning_rate").value)
    assert math.isnan(found.effect("learning_rate").standard_error)
    with pytest.raises(InvalidInput, match="No cell"):
        found.cell(learning_rate=3.0)
    for grid in ({}, {"seed": [1]}, {"lr": []}):
        with pytest.raises(InvalidInput, match="axis"):
            map_grid(run, grid)


def test_plain_runs_and_their_folders_are_mapped(tmp_path):
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))

    def run(learning_rate, seed):
        torch.manual_seed(seed)
        problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x.sum(1, keepdim=True)))
        folder = tmp_path / f"{learning_rate}" if seed else None
        done = tw.train(problem, tw.rules.GradientDescent(lr=learning_rate), 12, checkpoint_every=3, folder=folder)
        return done.path if seed else done

    seen = []
    found = map_grid(run, {"learning_rate": [0.05, 0.1]}, seeds=(0, 1), done=seen.append)
    assert [cell.map.steps.tolist() for cell in seen] == [[0, 3, 6, 9, 12]] * 4
    assert (found.data.omega_off < 1).all()
