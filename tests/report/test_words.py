"""The paragraph claims what the data shows, and nothing else."""

import numpy as np
import pytest
from runs_to_draw import dataset, edge_run

from thalweg.report.series import MAX_POINTS, Series, thin
from thalweg.report.words import edge, headline, number, tiles


def text(data):
    return " ".join(headline(data))


def test_progressive_sharpening_and_the_edge():
    words = text(edge_run())
    assert "Sharpness rose from 5, 25% of the stability threshold" in words
    assert "reached it (20) at step 300: progressive sharpening" in words
    assert "the edge of stability" in words
    assert "within ±0.03 for 90 %" in words
    assert "still fell over that time" in words
    found = edge(edge_run())
    assert found.crossed == 300
    assert found.median == pytest.approx(1, abs=0.01)


def test_a_stable_run_claims_no_edge():
    words = text(dataset(100, np.linspace(2, 8, 101)))
    assert "40% of the stability threshold 20: no eigenvalue reached it" in words
    assert "edge of stability" not in words


def test_too_short_after_the_crossing():
    sharpness = np.r_[np.linspace(5, 19, 95), np.full(6, 20.5)]
    assert "Too few measurements follow" in text(dataset(100, sharpness))


def test_a_catapult_that_leaves_the_edge():
    sharpness = np.r_[np.full(10, 30.0), np.full(91, 6.0)]
    words = text(dataset(100, sharpness))
    assert "Sharpness began at 150%" in words
    assert "did not stay there: its median afterwards is 0.30" in words
    assert "progressive sharpening" not in words


def test_a_schedule_is_compared_step_by_step():
    t = np.arange(101)
    threshold = 2 / (0.1 * (1 - t / 200))
    found = edge(dataset(100, threshold * 0.5, threshold=threshold))
    assert found.crossed is None
    assert found.start_ratio == found.end_ratio == pytest.approx(0.5)


def test_without_curvature():
    data = edge_run().drop_vars(["sharpness", "eigenvalues", "eigen_residuals", "eigen_products"])
    assert "Curvature was not measured" in text(data)
    assert edge(data) is None


@pytest.mark.parametrize(("state", "words"), [("failed", "The run failed after 600"), ("interrupted", "unfinished")])
def test_unfinished_runs_say_so(state, words):
    data = edge_run()
    data.attrs.update(state=state, steps=900)
    assert words in text(data)
    assert "900" in text(data)


def test_no_nan_in_prose():
    data = edge_run()
    data["loss"][-3:] = np.nan
    data["sharpness"][:] = np.nan
    assert "nan" not in text(data).lower().replace("unstable", "")
    for row in tiles(data):
        assert "nan" not in " ".join(row).lower()


def test_one_step():
    words = text(dataset(0, [3.0]))
    assert words
    assert "fell" not in words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (12.345678, "12.35"), (1234.5, "1,234"), (1e-5, "1.00e-05"), (float("nan"), "not a number")],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_thinning_keeps_the_extremes_and_the_ends():
    values = np.zeros(50_000)
    values[12_345], values[40_001] = 7, -7
    thinned = thin(Series(np.arange(50_000), values))
    assert len(thinned) <= MAX_POINTS
    assert thinned.values.max() == 7
    assert thinned.values.min() == -7
    assert (thinned.steps[0], thinned.steps[-1]) == (0, 49_999)
    assert np.all(np.diff(thinned.steps) > 0)
