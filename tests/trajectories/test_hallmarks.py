"""Each label on a path made to have it, and not on the others; evidence always beside it."""

import numpy as np
import pytest
from path_cases import plain_grams, points_of_line, points_of_walk

from thalweg.errors import InvalidInput
from thalweg.trajectories.hallmarks import Thresholds, hallmarks, saturation
from thalweg.trajectories.map import trajectory_map
from thalweg.trajectories.nulls import Decay


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def labels(points, *, steps=None, schedule=None, quantum=0.0, decay=None, **options):
    found = trajectory_map(plain_grams({"w": points}, steps, schedule, quantum), decay=decay)
    marks = hallmarks(found, windows=1, **options)
    assert all(mark.evidence for mark in marks.marks)
    return {mark.label for mark in marks.marks} - {"saturated"}  # the tail of any slow path is


def test_a_line_is_ballistic(rng):
    assert labels(5 * points_of_line(rng, 40, 3000)) == {"ballistic"}


def test_a_walk_is_diffusing(rng):
    assert labels(points_of_walk(rng, 80, 20_000, 3.0)) == {"diffusing"}


def test_independent_draws_are_mixing(rng):
    steps = np.arange(40) * 100
    assert labels(rng.standard_normal((40, 20_000)), steps=steps) == {"mixing"}


def test_weights_that_do_not_move_or_move_below_their_rounding_are_frozen(rng):
    start = rng.standard_normal(2000)
    still = start + 1e-9 * rng.standard_normal((20, 2000))
    assert "frozen" in labels(still)
    slight = start + 2e-4 * rng.standard_normal((20, 2000))
    assert "frozen" in labels(slight, quantum=2.1e-4)
    assert "frozen" not in labels(slight)


def test_steps_across_a_valley_are_oscillating_and_tell_its_curvature(rng):
    points = np.outer((-0.97) ** np.arange(30), rng.standard_normal(50)) + 3
    found = trajectory_map(plain_grams({"w": points}, schedule={"learning_rate": np.full(30, 0.1)}))
    mark = hallmarks(found).of("oscillating")[0]
    assert mark.evidence[0].value == pytest.approx(-0.97)
    assert mark.evidence[1].value == pytest.approx(19.4)  # 2 (0 - cosine) / eta
    assert "oscillating" not in labels(points, steps=np.arange(30) * 7)  # that needs consecutive steps


def test_noise_under_decay_with_a_falling_loss_is_exploring(rng):
    w, kept, rate, decay = rng.standard_normal(5000), [], 0.1, 0.02
    for step in range(1200):
        if step % 40 == 0:
            kept.append(w.copy())
        w = w - rate * (0.8 * rng.standard_normal(5000) + decay * w)
    schedule = {"loss": np.linspace(1, 0, 30), "learning_rate": np.full(30, rate)}
    steps, known = np.arange(30) * 40, Decay(decay)
    limits = Thresholds(persistence=0.06)
    assert "exploring" in labels(np.stack(kept), steps=steps, schedule=schedule, decay=known, thresholds=limits)
    rising = {**schedule, "loss": np.linspace(0, 1, 30)}
    assert "exploring" not in labels(np.stack(kept), steps=steps, schedule=rising, decay=known, thresholds=limits)
    found = hallmarks(trajectory_map(plain_grams({"w": np.stack(kept)}, steps)))
    assert any("Exploring needs weight decay" in note for note in found.notes)


def test_little_motion_with_a_loss_above_the_reference_is_lazy(rng):
    points = points_of_walk(rng, 20, 3000, 0.05)
    schedule = {"loss": np.full(20, 1.0)}
    assert "lazy" in labels(points, schedule=schedule, reference_loss=0.5)
    assert "lazy" not in labels(points, schedule=schedule, reference_loss=2.0)
    assert "lazy" not in labels(points, schedule=schedule)


def test_saturation_is_where_all_that_follows_looks_alike(rng):
    way = np.concatenate([points_of_walk(rng, 10, 4000, 6.0), np.zeros((15, 4000))])
    way[10:] = way[9] + 0.05 * np.linalg.norm(way[9]) / np.sqrt(4000) * rng.standard_normal((15, 4000))
    found = trajectory_map(plain_grams({"w": way}, np.arange(25) * 10))
    at = hallmarks(found).saturated
    index = at // 10
    assert found.similarity[index:, index:].min() > 0.95
    assert found.similarity[index - 1 :, index - 1 :].min() <= 0.95
    assert saturation(np.eye(5)) is None
    mark = hallmarks(found).of("saturated")[0]
    assert (mark.first, mark.last) == (at, 240)
    assert any("random walk" in evidence.wanted for evidence in mark.evidence)


def test_windows_cover_the_path_and_wrong_ones_are_named(rng):
    found = trajectory_map(plain_grams({"w": points_of_walk(rng, 40, 500, 2.0)}))
    marks = hallmarks(found, windows=4)
    assert [a for a, _ in marks.windows[1:]] == [b for _, b in marks.windows[:-1]]
    assert marks.windows[0][0] == 0
    assert marks.windows[-1][1] == 39
    with pytest.raises(InvalidInput, match="Window"):
        hallmarks(found, windows=[(3, 5)])
