"""The page of a look at glass."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from thalweg import Problem
from thalweg.errors import RunFolderError
from thalweg.glass.look import look
from thalweg.glass.stored import glass_dataset
from thalweg.report.glass_figures import (
    change_figure,
    density_figure,
    exponent_figure,
    glassy_layers,
    history_figure,
)
from thalweg.report.glass_page import render_glass, write_glass_page
from thalweg.runs.analyses import read_analysis, write_analysis


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1))
    x = torch.randn(300, 6)
    return Problem(model, nn.MSELoss(), (x, torch.randn(300, 1)))


@pytest.fixture(scope="module")
def data():
    subject = problem()
    found = look(subject, update=torch.optim.Adam(subject.model.parameters(), lr=1e-3), batches=4)
    return glass_dataset(found, {"name": "a <look>", "step": 40, "seconds": 1.0, "dimension": 581, "samples": 300})


def test_the_page_says_what_was_found(data):
    page = render_glass(data)
    assert "a &lt;look&gt;" in page
    assert str(data.attrs["text"])[:60] in page
    for word in ("Loss change along the update", "Powers of gradient variation", "Glass density by layer"):
        assert word in page
    assert "over training" not in page  # one step
    assert "Only 4 mini-batches" in page
    assert not re.search(r"\bnan\b", page.split("<script>")[0].split("<noscript>")[1], re.IGNORECASE)
    assert page.count("<tr>") > 3 * len(data["layer"])


def test_a_look_without_update_and_errors_still_has_a_page():
    found = glass_dataset(look(problem(), batches=1), {"name": "bare"})
    page = render_glass(found)
    assert "Loss change along the update" not in page
    assert "Glass density by layer" in page


def test_it_is_written_beside_its_data_with_the_other_steps(data, tmp_path):
    for step in (0, 40):
        one = data.copy()
        one.attrs = {**data.attrs, "step": step}
        write_analysis(tmp_path / f"glass-{step}.nc", one, "glass")
    (tmp_path / "glass-7.nc").write_text("damaged")
    page = write_glass_page(tmp_path / "glass-40.nc")
    assert page == tmp_path / "glass-40.html"
    assert "Glass density over training" in page.read_text()
    back = read_analysis(tmp_path / "glass-40.nc", "glass")
    assert list(back["label"].to_numpy()) == list(data["label"].to_numpy())
    np.testing.assert_array_equal(back["rho"], data["rho"])
    with pytest.raises(RunFolderError):
        write_glass_page(tmp_path / "glass-7.nc")


def test_what_a_continuous_gradient_leaves_is_no_density(data):
    told = data.copy(deep=True)
    told["label"] = ("layer", ["glass", "unsure", "unsure"])
    told["second_power"] = ("layer", [1.0, 1.4, 3.6])
    told["second_power_error"] = ("layer", [0.1, 0.2, 0.2])
    assert [bool(jump) for jump in glassy_layers(told)] == [True, True, False]  # a kink or smooth, but no jump
    assert list(density_figure(told).data[0].marker.symbol) == ["circle", "circle", "circle-open"]
    other = told.copy()
    other.attrs = {**data.attrs, "step": 0}
    traces = history_figure([other, told]).data
    assert np.isnan(traces[2].y).all()
    assert traces[2].name.endswith("(none)")
    assert "none</td>" in render_glass(told)
    told["label"] = ("layer", ["kink", "smooth", "smooth"])
    assert not glassy_layers(told).any()
    assert "no gradient jumps" in render_glass(told)


def test_the_page_tells_glass_along_the_update_as_the_text_does(data):
    assert data.attrs["glassy"] == "yes"
    assert "Share of what kinks predict" in render_glass(data)
    smooth = data.copy()
    smooth.attrs = {**data.attrs, "glassy": "no"}
    page = render_glass(smooth)
    assert "Share of what kinks predict" not in page
    assert "is a remainder and no prediction" in page
    old = data.copy()  # of a file that does not say
    old.attrs = {key: value for key, value in data.attrs.items() if key != "glassy"}
    assert ("Share of what kinks predict" in render_glass(old)) == (float(data["path_power"]) <= 2.5)


def test_figures_show_the_numbers(data):
    exponents = exponent_figure(data)
    np.testing.assert_allclose(exponents.data[0].x, data["second_power"])
    np.testing.assert_allclose(exponents.data[0].error_x.array, 2 * data["second_power_error"])
    density = density_figure(data)
    np.testing.assert_allclose(density.data[0].x, data["rho"])
    change = change_figure(data)
    np.testing.assert_allclose(change.data[0].y, data["deviation"])
    assert [trace.name for trace in change.data][1] == "glass predicts"
    assert change_figure(data.drop_vars("deviation")).data == ()
    assert history_figure([data]).data == ()
    other = data.copy()
    other.attrs = {**data.attrs, "step": 0}
    history = history_figure([other, data])
    assert [list(trace.x) for trace in history.data] == [[0, 40]] * 3
