"""Every figure draws every kind of run, with axes, units and the data itself."""

import numpy as np
import plotly.graph_objects as go
import pytest
from runs_to_draw import dataset, edge_run, kinds

from thalweg.report import figures
from thalweg.report.page import SECTIONS
from thalweg.report.series import MAX_POINTS

KINDS = kinds()


def finite(values):
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.title)
def test_draws(kind, section):
    figure = section.draw(KINDS[kind])
    assert isinstance(figure, go.Figure)
    for trace in figure.data:
        assert 0 < len(finite(trace.y)) <= MAX_POINTS
        assert np.isfinite(np.asarray(trace.x, dtype=float)).all()
        assert "%{y" in trace.hovertemplate
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert all(titles), "each vertical axis is named"
    assert any(axis.title.text == "step" for axis in figure.select_xaxes())
    for number in ("", "2", "3"):
        if f"yaxis{number}" in figure.layout and figure.layout[f"yaxis{number}"].type == "log":
            drawn = [t.y for t in figure.data if (t.yaxis or "y") == f"y{number}"]
            assert all((finite(y) > 0).all() for y in drawn), "a logarithm hides nothing"


def test_spectrum_shows_the_threshold_and_the_values():
    data = edge_run()
    figure = figures.spectrum_figure(data)
    drawn = {trace.name: trace for trace in figure.data}
    assert set(drawn) == {"sharpness", "eigenvalue 2", "stability threshold"}
    np.testing.assert_allclose(drawn["sharpness"].y, data.sharpness)
    np.testing.assert_allclose(drawn["stability threshold"].y, 20.0)
    assert [shape.x0 for shape in figure.layout.shapes] == [300]
    assert "stability threshold" not in {t.name for t in figures.spectrum_figure(data, threshold=False).data}


def test_the_threshold_follows_the_learning_rate():
    threshold = np.linspace(20, 60, 101)
    figure = figures.spectrum_figure(dataset(100, np.full(101, 15.0), threshold=threshold))
    np.testing.assert_allclose(figure.data[-1].y, threshold)
    rate = figures.gradient_figure(dataset(100, np.full(101, 15.0), threshold=threshold)).data[-1]
    assert rate.name == "learning rate"
    np.testing.assert_allclose(rate.y, 2 / threshold)


def test_a_warm_up_does_not_squeeze_the_eigenvalues():
    axis = figures.spectrum_figure(KINDS["warm-up"]).layout.yaxis
    assert axis.type == "linear"
    assert axis.range[1] == pytest.approx(1.15 * 20)


def test_a_threshold_far_above_is_still_shown():
    axis = figures.spectrum_figure(dataset(50, np.full(51, 0.1), threshold=200.0)).layout.yaxis
    assert axis.type == "log"
    assert axis.range is None


def test_gaps_stay_gaps():
    trace = figures.spectrum_figure(KINDS["gaps"]).data[0]
    assert np.isnan(trace.y).sum() == 2
    sparse = figures.spectrum_figure(KINDS["sparse"]).data[0]
    assert not np.isnan(sparse.y).any(), "a regular interval is no gap"


def test_an_eigenvalue_that_is_followed_at_times_is_not_joined_across():
    data = edge_run()
    data["eigenvalues"][100:200, 1] = np.nan
    data["eigenvalues"][:50, 1] = np.nan
    second = figures.spectrum_figure(data).data[1]
    assert np.isnan(second.y).sum() == 1
    assert second.x[0] == 50


def test_oscillation_shows_sign_and_size():
    data = edge_run()
    top, *others = figures.oscillation_figure(data).data
    assert top.name == "cosine of successive updates"
    signed = next(t for t in others if t.yaxis == "y2")
    size = next(t for t in others if t.yaxis == "y3")
    np.testing.assert_allclose(signed.y, data.update_projection[:, 0])
    np.testing.assert_allclose(size.y, np.abs(data.update_projection[:, 0]))
    assert size.showlegend is False


def test_cost_adds_up():
    data = edge_run()
    drawn = {trace.name: trace for trace in figures.cost_figure(data).data}
    assert drawn["training so far"].y[-1] == pytest.approx(float(data.seconds_step.sum()))
    assert drawn["measuring so far"].y[-1] == pytest.approx(float(data.seconds_measure.sum()))


def test_accuracy_is_relative_to_the_sharpness():
    figure = figures.accuracy_figure(edge_run())
    np.testing.assert_allclose(figure.data[0].y, 1e-4)
    assert figure.layout.yaxis.type == "log"


def test_negative_losses_are_not_put_on_a_log_axis():
    figure = figures.loss_figure(dataset(10, np.ones(11), loss=np.linspace(1, -1, 11)))
    assert figure.layout.yaxis.type == "linear"


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("palette", "paper"), [(figures.LIGHT, "#ffffff"), (figures.DARK, "#12161c")])
def test_curves_stand_out_from_the_paper(palette, paper):
    assert min(contrast(colour, paper) for colour in (*palette, figures.LIMIT)) >= 3


@pytest.mark.parametrize("palette", [figures.LIGHT, figures.DARK])
def test_the_first_colours_differ_without_red_green_vision(palette):
    # Deuteranopia after Viénot, Brettel and Mollon (1999): linear RGB to LMS, M from L and S, and back.
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    seen = []
    for colour in palette[:3]:
        rgb = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2
        seen.append(np.clip(np.linalg.inv(to_lms) @ blind @ to_lms @ rgb, 0, 1) ** (1 / 2.2))
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in pairs) > 0.12
