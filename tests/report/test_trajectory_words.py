"""The paragraph on a trajectory says what its numbers support, each beside its null, and nothing else."""

import numpy as np
import pytest
from trajectories_to_draw import draws, line, mapped, walk

from thalweg.report.trajectory_words import caveats, figure_words, headline, tiles, verdicts
from thalweg.trajectories.hallmarks import hallmarks
from thalweg.trajectories.nulls import Decay


def text(found, marks=None):
    return " ".join(headline(found, marks))


def test_a_walk_is_no_evidence_of_a_direction():
    told = text(mapped(walk()))
    assert "Over 60 checkpoints from step 0 to 5,900 the weights moved by 202% of the norm they began with" in told
    assert "0.13 of the length of the path between the checkpoints (random walk of the same updates: 0.13)" in told
    assert "no evidence of a direction" in told
    assert "Neighbouring updates turn by 90°, as unrelated ones do" in told


def test_a_line_is_told_as_a_line_and_draws_as_mixing():
    told = text(mapped(line()))
    assert "mean similarity of 1.00 (line 1.00, random walk 0.6" in told
    assert "as straight as a line" in told
    assert "less than the 90° of unrelated ones" in told
    told = text(mapped(draws()))
    assert "as if checkpoints were drawn around a centre" in told
    assert "turn by 120°: they partly undo each other" in told


def test_a_path_between_a_walk_and_a_line_is_said_to_be_between():
    rng = np.random.default_rng(1)
    points = line(spread=3.0, size=8000) + np.cumsum(0.2 * rng.standard_normal((60, 8000)), axis=0)
    assert "more directed than a random walk, less than a line" in text(mapped(points))


def test_high_similarity_with_little_motion_says_nothing():
    told = text(mapped(walk(spread=0.1)))
    assert "which with so little motion says nothing of direction" in told
    assert "says nothing" not in text(mapped(walk(spread=2.0)))


def test_what_decay_alone_explains_is_told_apart_from_what_persists():
    rng = np.random.default_rng(2)
    rate, decay, w, kept = 0.1, 0.02, rng.standard_normal(8000), []
    for step in range(1600):
        if step % 40 == 0:
            kept.append(w.copy())
        w = w - rate * (0.6 * rng.standard_normal(8000) + decay * w)
    points, steps = np.stack(kept), np.arange(40) * 40
    told = text(mapped(points, steps=steps, decay=Decay(decay, learning_rate=rate)))
    assert "decay and norms alone explain it" in told
    told = text(mapped(points, steps=steps, decay=Decay(10 * decay, learning_rate=rate)))
    assert "updates keep pointing along the old weights" in told
    assert "decay" not in text(mapped(points, steps=steps))


def test_groups_and_saturation_are_told():
    tensors = {"a.weight": walk(spread=1.0), "b.weight": walk(spread=5.0, seed=1)}
    found = mapped(tensors, groups="tensor")
    marks = hallmarks(found)
    told = text(found, marks)
    assert "least in b.weight" in told
    assert "greatest in a.weight" in told
    lowest = marks.of("saturated")[0].evidence[0].value
    assert f"From step {marks.saturated:,} on all checkpoints have a similarity of at least {lowest:.2f}" in told
    assert "(a random walk: from 5,300)" in told
    assert ("diffusing", "accent") in verdicts(found, marks)


def test_weights_that_never_move_are_told_in_one_sentence():
    still = np.ones((5, 30))
    assert headline(mapped(still)) == ["Over 5 checkpoints the weights did not change at all."]


def test_what_limits_the_numbers_is_among_the_caveats():
    found = mapped(walk(spread=1e-3, count=20), quantum=1e-3)
    told = " ".join(caveats(found))
    assert "100% of the updates are shorter than three times the rounding" in told
    assert ("below the precision floor in part", "warn") in verdicts(found)
    assert "With 20 checkpoints" in told
    log = [0, *(2**i for i in range(10)), *range(1000, 50_000, 1000)]
    told = " ".join(caveats(mapped(walk(count=len(log)), steps=log)))
    assert "unevenly spaced" in told
    assert "weighted by time it is" in told
    assert "unevenly" not in " ".join(caveats(mapped(walk())))
    assert "estimates from 4,096 random projections" in " ".join(caveats(mapped(walk(), sketch=4096)))


def test_each_tile_has_the_walk_beside_it_and_nothing_is_nan():
    for points in (walk(), line(), draws(), np.ones((5, 30)), walk(count=3), walk(count=2)):
        found = mapped(points)
        marks = hallmarks(found)
        everything = [*headline(found, marks), *caveats(found, marks), *figure_words(found).values()]
        everything += [part for row in tiles(found) for part in row] + [words for words, _ in verdicts(found, marks)]
        assert not any("nan" in part.split() or "not finite" in part for part in everything)
    assert all("random walk" in remark for _, _, remark in tiles(mapped(walk())))


def test_the_figures_are_told_with_their_nulls():
    said = figure_words(mapped(walk()))
    assert "(the same updates in a line 1.00, in a random walk 0.50)" in said["length"]
    assert "a random walk would put 7" in said["path"]
    assert pytest.approx(0.5, abs=0.03) == float(said["length"].split("power ")[1].split()[0])
