"""The page of a segmentation, and the section of a run's own page; looked at in a real browser."""

import sys
from pathlib import Path

import numpy as np
import pytest
from browser import PATIENCE, READY, severe, until
from runs_to_draw import dataset, edge_run

from thalweg.phases.regimes import segment
from thalweg.phases.regimes_run import regimes_of_data
from thalweg.report.regimes_page import event_table, regimes_sections, render_regimes, write_regimes_page

sys.path.append(str(Path(__file__).parent.parent / "phases"))
from regime_cases import case

GD = {"loop": {"rule": {"type": "GradientDescent", "lr": 0.1}, "batch_size": None}, "problem": {"samples": 100}}


@pytest.fixture(scope="module")
def found():
    return segment(**case("random_c8", 2))


def test_the_page_says_what_was_found(found):
    page = render_regimes(found, "a <run>")
    assert "a &lt;run&gt;" in page
    for segment_found in found.segments:
        assert f"{segment_found.start:,}-{segment_found.end:,}" in page
    assert "agreement" in page
    assert page.count("<table>") == 1 + bool(found.catapults)


def test_a_run_has_the_section():
    data = edge_run()
    (section,) = regimes_sections(data, GD)
    assert "edge of stability" in section
    assert "<table>" in section


def test_too_little_data_has_no_section():
    assert regimes_sections(edge_run().drop_vars("sharpness"), GD) == []
    assert regimes_sections(dataset(200, np.linspace(5, 10, 201), every=40), GD) == []
    assert regimes_sections(edge_run().drop_vars("loss"), GD) == []


def test_odd_manifests_are_survived():
    for manifest in ({}, {"loop": None}, {"loop": {"rule": {"type": "Mine"}}}, {"problem": {"samples": "many"}}):
        assert len(regimes_sections(edge_run(), manifest)) == 1


def test_small_batches_of_a_run_are_told_apart():
    manifest = {"loop": GD["loop"] | {"batch_size": 10}, "problem": {"samples": 100}}
    assert "edge of stability" in regimes_of_data(edge_run(), GD).order
    assert "mini-batch" in regimes_of_data(edge_run(), manifest).flags


def test_a_plain_hessian_is_not_held_against_adam():
    loop = {"rule": {"type": "Adam", "lr": 1e-3}, "measures": [{"type": "Spectrum", "preconditioned": False}]}
    found = regimes_of_data(edge_run(), {"loop": loop})
    assert "edge of stability" not in found.order
    assert any("plain Hessian" in note for note in found.notes)


def test_a_run_that_failed_has_diverged():
    loss = np.exp(-np.arange(301) / 100)
    loss[290:] = np.nan
    data = dataset(300, np.linspace(5, 10, 301), loss=loss, state="failed")
    data["loss"][290:300] = [3e3, 1e5, 1e7, 1e9, 1e11, 1e13, 1e15, 1e17, 1e19, 1e21]
    assert regimes_of_data(data, GD | {"state": "failed"}).order[-1] == "diverged"


def test_many_events_are_cut_short():
    loss = np.ones(4001) * np.exp(-np.arange(4001) / 2000)
    loss[100:4000:100] *= 2
    found = segment(loss)
    assert len(found.catapults) > 12
    assert f"the 12 highest of {len(found.catapults)}" in event_table(found.catapults)
    assert event_table(()) == ""


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_real_browser(found, browser, tmp_path):
    browser.set_window_size(1000, 1100)
    browser.get(write_regimes_page(found, tmp_path / "page.html").as_uri())
    until(browser, READY, PATIENCE, "the figure did not finish")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert len(browser.find_elements("css selector", ".annotation")) >= 3
    assert not severe(browser)
