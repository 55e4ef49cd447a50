"""A map of many checkpoints and layers, drawn by a real browser: its size is bounded, its times are told."""

import time

import numpy as np
import pytest
from browser import PATIENCE, READY, severe, until
from trajectories_to_draw import mapped, walk

from thalweg.report.trajectory_page import TITLES, marks_of, write_map_page

CHECKPOINTS, LAYERS = 154, 40
CHOOSE = (
    "const d = arguments[0], p = document.querySelector('.plot'), t = performance.now();"
    "Plotly.restyle(p, p.layout.updatemenus[0].buttons.at(-1).args[0]).then(() => d(performance.now() - t))"
)


@pytest.mark.slow
@pytest.mark.browser
def test_many_checkpoints_and_layers_stay_small(browser, tmp_path):
    steps = np.array([0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)])
    assert len(steps) == CHECKPOINTS
    points = {f"layers.{i}.w": walk(CHECKPOINTS, 300, 1 + i / 40, i) for i in range(LAYERS)}
    found = mapped(points, groups="layer", steps=steps, quantum=2e-4)
    page = write_map_page(found, tmp_path / "map.html", "many", marks_of(found))
    assert page.stat().st_size < 9_000_000  # of which 4.8 MB are Plotly
    browser.set_window_size(1100, 900)
    began = time.monotonic()
    browser.get(page.as_uri())
    until(browser, READY, PATIENCE, "the plots did not finish")
    drawn = time.monotonic() - began
    print(f"{page.stat().st_size / 1e6:.2f} MB, all figures after {drawn:.2f} s")
    assert browser.execute_script("return document.querySelectorAll('.plot').length") == len(TITLES)
    changed = browser.execute_async_script(CHOOSE)
    print(f"another layer after {changed:.0f} ms")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert not severe(browser)
