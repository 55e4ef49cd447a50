"""The paragraph claims what the data shows, and nothing else."""

import re

import numpy as np
import pytest
from runs_to_draw import cubic_run, dataset, edge_run, kinds, loop, manifest

from thalweg.report.facts import edge, loss_facts, oscillation
from thalweg.report.numbers import number, share
from thalweg.report.page import SECTIONS
from thalweg.report.series import MAX_POINTS, Series, broken, gaps, thin
from thalweg.report.words import caveats, headline, tiles, verdicts


def text(data, told=None):
    return " ".join(headline(data, told)).replace("\u00a0", " ").replace("\u2060", "")


def labels(data, told=None):
    return [words for words, _ in verdicts(data, told)]


def test_progressive_sharpening_and_the_edge():
    words = text(edge_run(), manifest())
    assert "Sharpness rose from 5 (25% of the threshold)" in words
    assert "reached the stability threshold 2/η = 20 at step 300: progressive sharpening" in words
    assert "It then stayed within 3% of it (90% of 301 measurements, median 1.00 times): the edge of stability" in words
    assert "From step 300 on, the loss rose at 50% of the steps and still fell over longer times" in words
    assert {"progressive sharpening", "edge of stability"} <= set(labels(edge_run(), manifest()))


def test_the_range_after_the_crossing_holds_ninety_per_cent():
    data = cubic_run()
    found = edge(data)
    ratio = (data.sharpness / data.stability_threshold).to_numpy()[found.crossed :]
    assert ((ratio >= found.low) & (ratio <= found.high)).mean() == pytest.approx(0.9, abs=0.01)
    assert found.median == np.median(ratio)
    assert ratio[0] >= 1
    assert data.sharpness.to_numpy()[found.crossed - 1] < 40


def test_the_model_of_the_edge_oscillates():
    data = cubic_run()
    words = text(data, manifest())
    assert "the edge of stability" in words
    seen = oscillation(data, edge(data).crossed)
    assert seen.flips > 0.9
    assert "successive updates mostly point back at each other" in words


def test_sharpness_that_only_rises_through_the_threshold_is_not_at_the_edge():
    data = dataset(400, np.linspace(3, 24, 401))
    words = text(data, manifest())
    assert "progressive sharpening" in words
    assert "it went on rising, to 1.20 times the threshold, and did not settle" in words
    assert "edge of stability" not in words
    assert "edge of stability" not in labels(data, manifest())


def test_a_loss_that_falls_at_every_step_is_not_at_the_edge():
    calm = edge_run()
    calm["loss"][:] = np.exp(-np.arange(601) / 300)
    assert "edge of stability" not in text(calm, manifest())


def test_wild_swings_are_not_the_edge():
    swings = np.r_[np.linspace(4, 19.8, 50), np.where(np.arange(151) % 10 < 4, 100.0, 20.0)]
    words = text(dataset(200, swings, loss=np.exp(-np.arange(201) / 50) * (1 + 0.3 * (-1.0) ** np.arange(201))))
    assert "It did not stay there" in words
    assert "edge of stability" not in words


def test_a_threshold_that_comes_down_is_no_sharpening():
    data = dataset(200, np.full(201, 50.0), threshold=np.linspace(80, 20, 201))
    words = text(data, manifest())
    assert "The stability threshold 2/η came down from 80 to 50 and met a sharpness of 50 at step 100" in words
    assert "Sharpness rose" not in words
    assert "progressive sharpening" not in words


def test_the_threshold_at_the_crossing_is_the_one_that_is_named():
    t = np.arange(201)
    threshold = np.where(t < 150, 20.0, 40.0)
    sharpness = np.where(t < 150, np.linspace(5, 5 + 20 * 2, 201), 30.0)
    assert "= 20 at step 75" in text(dataset(200, sharpness, threshold=threshold), manifest())


def test_a_stable_run_claims_no_edge():
    data = dataset(100, np.linspace(2, 8, 101))
    words = text(data, manifest())
    assert "was below the stability threshold 2/η = 20 at each of 101 measurements" in words
    assert "came closest at step 100, with 40% of it" in words
    assert "edge of stability" not in words
    assert "below the threshold" in labels(data)


def test_a_sparse_crossing_is_given_as_an_interval():
    assert "between steps 280 and 300" in text(dataset(600, np.linspace(1, 39, 601), every=20), manifest())


def test_too_short_after_the_crossing():
    sharpness = np.r_[np.linspace(5, 19, 95), np.full(6, 20.5)]
    words = text(dataset(100, sharpness))
    assert "Only 6 measurements from there on" in words
    assert "edge of stability" not in words


def test_a_catapult_that_leaves_the_edge():
    words = text(dataset(100, np.r_[np.full(10, 30.0), np.full(91, 6.0)]))
    assert "Sharpness began at 30, 1.50 times" in words
    assert "did not stay there: from then on its median is 0.30 times" in words
    assert "progressive sharpening" not in words


def test_a_schedule_is_compared_step_by_step():
    threshold = 2 / (0.1 * (1 - np.arange(101) / 200))
    found = edge(dataset(100, threshold * 0.5, threshold=threshold))
    assert found.crossed is None
    assert found.start_ratio == found.end_ratio == pytest.approx(0.5)


def test_a_diverged_run_says_so_and_not_that_the_loss_fell():
    loss = np.exp(-np.arange(101) / 50)
    loss[80:] = np.nan
    words = text(dataset(100, np.full(101, 5.0), loss=loss, state="failed", planned=500))
    assert (
        "The run diverged: its loss was 0.206 at step 79 and no longer finite at step 80 of 500 steps planned" in words
    )
    assert "fell" not in words
    blown = dataset(40, np.full(41, 5.0), loss=np.geomspace(1, 1e30, 41))
    assert "The run diverged: the loss rose from 1 to 1.00 × 10³⁰" in text(blown)
    assert "diverged" in labels(blown)
    wild = dataset(40, np.geomspace(1, 1e9, 41), loss=np.geomspace(1, 1e30, 41))
    assert "progressive sharpening" not in text(wild)
    assert "progressive sharpening" not in labels(wild)
    assert "5.00 × 10⁷ times the threshold" in text(wild)


def test_mini_batches_have_their_own_words():
    noisy = edge_run()
    told = manifest(loop=loop(batch_size=16))
    words = text(noisy, told)
    assert "median batch loss" in words
    assert "edge of stability" not in words
    assert "edge of stability" not in labels(noisy, told)
    assert "mini-batches of 16" in labels(noisy, told)
    assert "mini-batch of 16 samples" in caveats(noisy, told)[0]
    assert caveats(noisy, manifest(loop=loop(batch_size=99))) == [], "a batch of all samples is a full batch"


def test_a_plain_hessian_under_adam_is_not_compared():
    told = manifest(loop=loop(rule="Adam", preconditioned=False))
    words = text(edge_run(), told)
    assert "threshold" not in words
    assert "do not compare" in caveats(edge_run(), told)[0]
    assert all("threshold" not in " ".join(row).lower() for row in tiles(edge_run(), told))
    assert caveats(edge_run(), manifest(loop=loop(rule="HeavyBall", preconditioned=False))) == []


def test_curvature_of_a_part_of_the_data_and_missed_tolerances_are_told():
    (note,) = caveats(edge_run(), manifest(loop=loop(samples=50)))
    assert "first 50 samples only" in note
    data = edge_run()
    data["eigen_residuals"][7] = 0.05 * data.sharpness[7]
    (note,) = caveats(data, manifest())
    assert "At 1 of 601 measurements" in note
    assert "5% of the sharpness" in note


def test_without_curvature():
    data = edge_run().drop_vars(["sharpness", "eigenvalues", "eigen_residuals", "eigen_products"])
    assert "Curvature was not measured" in text(data)
    assert edge(data) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [("failed", "failed at step 600"), ("interrupted", "stopped early, at step 600"), ("running", "still going on")],
)
def test_unfinished_runs_say_so(state, words):
    data = edge_run()
    data.attrs.update(state=state, steps=900)
    assert words in text(data)
    assert "900" in text(data)


def test_convergence():
    assert "not converged" in text(edge_run())
    flat = dataset(300, np.full(301, 5.0), loss=0.5 + np.exp(-np.arange(301) / 10))
    assert "converged" not in text(flat)


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("told", [None, manifest(), manifest(loop=loop(batch_size=16))], ids=["bare", "full", "mini"])
def test_no_prose_holds_a_number_that_is_none(kind, told):
    data = kinds()[kind]
    prose = [*headline(data, told), *caveats(data, told), *labels(data, told)]
    prose += [" ".join(row) for row in tiles(data, told)] + [s.find(data, told or {}) for s in SECTIONS]
    for words in prose:
        assert not re.search(r"\b([Nn]a[Nn]|inf|None|not finite)\b", words), words
        assert "  " not in words
    assert all(sentence.endswith(".") for sentence in headline(data, told))


def test_one_step():
    words = text(dataset(0, [3.0]))
    assert "Sharpness was measured once: 3, 15% of the stability threshold" in words
    assert "With 0 steps, this is too short" in words
    assert "fell" not in words


@pytest.mark.parametrize("odd", [{}, {"loop": None}, {"loop": {"measures": [1, None]}}, {"problem": 3, "loop": []}])
def test_odd_manifests_do_no_harm(odd):
    assert text(edge_run(), odd)


def test_flips_are_not_counted_across_steps_that_were_left_out():
    t = np.arange(401)
    data = dataset(400, np.full(401, 5.0), every=2)
    assert oscillation(data, 0).flips is None
    assert "cannot be seen" in SECTIONS[2].find(data, manifest())
    every = dataset(400, np.full(401, 5.0))
    assert oscillation(every, 0).flips == 1.0
    every["eigen_tracks"] = (("step", "eigenvalue"), np.stack([t % 2, t], axis=1).astype(float))
    assert oscillation(every, 0).flips is None, "another eigenvector each time"


def test_facts_about_the_loss():
    found = loss_facts(edge_run())
    assert (found.first, found.last_step) == (1.0, 600)
    assert found.rises == pytest.approx(0.25, abs=0.01)
    assert found.falling == pytest.approx(1 - np.exp(-0.2), abs=0.01)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12.345678, "12.35"),
        (1234.5, "1,234"),
        (1e-5, "1.00 × 10⁻⁵"),
        (-2e9, "−2.00 × 10⁹"),
        (999999, "999,999"),
    ],
)
def test_numbers(value, shown):
    assert number(value).replace("\u00a0", " ") == shown


@pytest.mark.parametrize("value", [1e-5, 0.0004, 0.0996, 0.5, 0.994, 0.996, 0.99996, 1.0, 1.004, 1.2, 7481.0])
def test_percentages_never_reach_one_from_aside(value):
    shown = float(share(value).rstrip("%").replace(",", ""))
    assert shown == pytest.approx(100 * value, rel=0.06)
    assert (shown == 100) == (value == 1)
    assert shown > 0


@pytest.mark.parametrize("size", [3001, 50_000])
def test_thinning_keeps_the_extremes_and_the_ends(size):
    values = np.random.default_rng(size).normal(size=size)
    values[size // 3], values[-2] = 99, -99
    thinned = thin(Series(np.arange(size), values))
    assert len(thinned) <= MAX_POINTS
    assert thinned.values.max() == 99
    assert thinned.values.min() == -99
    assert (thinned.steps[0], thinned.steps[-1]) == (0, size - 1)
    assert np.all(np.diff(thinned.steps) > 0)


def test_thinning_keeps_the_envelope_everywhere():
    t = np.arange(40_000)
    wave = np.sin(t / 3000) + 0.3 * (-1.0) ** t
    thinned = thin(Series(t, wave))
    for start in range(0, 40_000, 1000):
        kept = (thinned.steps >= start) & (thinned.steps < start + 1000)
        assert thinned.values[kept].max() >= wave[start : start + 1000].max() - 0.02
        assert thinned.values[kept].min() <= wave[start : start + 1000].min() + 0.02


def test_lines_break_where_measuring_was_left_out():
    curve = Series(np.array([0, 5, 10, 40, 45, 46]), np.arange(6.0))
    assert gaps(curve, every=5).tolist() == [40]
    x, y = broken(curve, gaps(curve, every=5))
    assert np.flatnonzero(np.isnan(y)).tolist() == [3]
    assert x[3] == x[4] == 40
