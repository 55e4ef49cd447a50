"""Every figure draws every kind of run, with axes, units and the data itself."""

import numpy as np
import pytest
from runs_to_draw import dataset, edge_run

from thalweg.report import figures
from thalweg.report.page import SECTIONS

KINDS = {
    "edge": edge_run(),
    "one step": dataset(1, [3.0, 3.1]),
    "sparse": dataset(50, np.linspace(1, 5, 51), every=7),
    "diverged": dataset(40, np.geomspace(1, 1e9, 41), loss=np.geomspace(1, 1e30, 41)),
    "bare": edge_run()[["loss", "weight_norm", "distance", "path_length"]],
    "long": dataset(20_000, np.full(20_001, 5.0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.title)
def test_draws(kind, section):
    figure = section.draw(KINDS[kind])
    for trace in figure.data:
        assert 0 < len(trace.x) <= 3000
        assert np.isfinite(np.asarray(trace.y, dtype=float)).all()
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert all(titles), "each vertical axis is named"
    assert any(axis.title.text == "step" for axis in figure.select_xaxes())


def test_spectrum_shows_the_threshold_and_the_values():
    data = edge_run()
    figure = figures.spectrum_figure(data)
    drawn = {trace.name: trace for trace in figure.data}
    assert set(drawn) == {"sharpness", "eigenvalue 2", "stability threshold"}
    np.testing.assert_allclose(drawn["sharpness"].y, data.sharpness)
    np.testing.assert_allclose(drawn["stability threshold"].y, 20.0)


def test_accuracy_is_relative_to_the_sharpness():
    figure = figures.accuracy_figure(edge_run())
    np.testing.assert_allclose(figure.data[0].y, 1e-4)
    assert figure.layout.yaxis.type == "log"


def test_negative_losses_are_not_put_on_a_log_axis():
    figure = figures.loss_figure(dataset(10, np.ones(11), loss=np.linspace(1, -1, 11)))
    assert figure.layout.yaxis.type == "linear"
