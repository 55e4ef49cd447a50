"""The page of a verdict, and the sections of a run's own page; looked at in a real browser."""

import numpy as np
import pytest
import xarray as xr
from browser import PATIENCE, READY, severe, until

from thalweg.report.stationarity_page import render_stationarity, stationarity_sections, write_stationarity_page
from thalweg.stationarity.assess import assess


def data(n=3000, every=20, nan=False):
    rng = np.random.default_rng(0)
    level = np.full(n, np.nan)
    level[::every] = 1 + 0.1 * rng.standard_normal(len(level[::every]))
    loss = 2 + 0.1 * rng.standard_normal(n)
    if nan:
        loss[-1] = np.nan
    variables = {
        "loss": loss,
        "gradient_unbiased": level,
        "gradient_biased": level + 0.5,
        "learning_rate": np.full(n, 0.1),
    }
    return xr.Dataset({name: ("step", x) for name, x in variables.items()}, coords={"step": np.arange(n)})


def test_the_page_says_what_was_found():
    page = render_stationarity(assess(data()), "a <run>")
    assert "a &lt;run&gt;" in page
    for words in ("Invariant regime: The loss has settled", "Lower the learning rate", "U, unbiased", "split R-hat"):
        assert words in page
    assert page.count('class="plot"') == 4


def test_the_page_of_no_verdict_says_why():
    page = render_stationarity(assess(data().drop_vars("gradient_unbiased")))
    assert "The log holds no gradient level" in page
    assert page.count('class="plot"') == 3


def test_a_run_has_the_sections_where_there_is_enough():
    assert len(stationarity_sections(data(), {})) == 4
    assert stationarity_sections(data(every=200), {}) == []
    assert stationarity_sections(data().drop_vars("gradient_unbiased"), {}) == []
    assert stationarity_sections(data().drop_vars("loss"), {}) == []
    moving = data()
    moving["learning_rate"] = ("step", np.cos(np.arange(3000) / 3000))
    assert stationarity_sections(moving, {}) == []


@pytest.mark.parametrize("manifest", [{}, {"loop": None}, {"loop": {"rule": {"type": "Mine"}}}, {"state": "failed"}])
def test_odd_manifests_are_survived(manifest):
    assert len(stationarity_sections(data(nan=True), manifest)) >= 2


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_real_browser(browser, tmp_path):
    browser.set_window_size(1000, 1100)
    browser.get(write_stationarity_page(assess(data()), tmp_path / "page.html").as_uri())
    until(browser, READY, PATIENCE, "a figure did not finish", "window.scrollBy(0, 800)")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert not severe(browser)
