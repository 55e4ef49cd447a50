"""The page of a map: whole, escaped, with every number beside its nulls; and looked at in a real browser."""

import html
import re

import pytest
from browser import PATIENCE, READY, severe, until
from trajectories_to_draw import mapped, walk

from thalweg.report.trajectory_page import TITLES, render_map, trajectory_sections, write_map_page
from thalweg.trajectories.hallmarks import hallmarks


@pytest.fixture(scope="module")
def layered():
    return mapped({f"layers.{i}.w": walk(60, 400, 1 + i / 4, i) for i in range(5)}, groups="layer", quantum=2e-4)


def words(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)))


def test_the_page_has_every_figure_the_numbers_and_the_labels(layered):
    page = render_map(layered, "a <b> run", hallmarks(layered))
    told = words(page)
    assert "<b>" not in page.split("</header>")[0]
    for title in TITLES.values():
        assert title in told
    assert re.search(r"mean relative similarity\s+0\.\d\d\s+1\.00\s+0\.\d\d\s+0\.5\d", told)
    assert "diffusing" in told
    assert "random walk" in told
    assert " nan" not in told.lower()
    assert "://" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)


def test_the_sections_of_a_run_begin_with_the_paragraph(layered):
    first = words(trajectory_sections(layered)[0])
    assert "Over 60 checkpoints" in first
    assert "Over 60 checkpoints" not in words(trajectory_sections(layered, told=False)[0])
    alone = trajectory_sections(mapped(walk(count=3)))
    assert not any("Maps of the groups" in section for section in alone)


def test_it_is_written_whole(layered, tmp_path):
    path = write_map_page(layered, tmp_path / "map.html", "run")
    assert path.read_text().rstrip().endswith("</html>")


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_real_browser(layered, browser, tmp_path):
    from selenium.webdriver import ActionChains

    browser.set_window_size(1100, 900)
    browser.get(write_map_page(layered, tmp_path / "map.html", "run", hallmarks(layered)).as_uri())
    until(browser, READY, PATIENCE, "the plots did not finish")
    assert browser.execute_script("return document.querySelectorAll('.plot').length") == len(TITLES)
    place = browser.find_element("css selector", ".plot .nsewdrag")
    ActionChains(browser).move_to_element_with_offset(place, 60, -60).perform()
    hover = "return [...document.querySelectorAll('.plot .hoverlayer text')].map(x => x.textContent).join()"
    shown = until(browser, hover, PATIENCE, "no hover")
    assert re.search(r"steps [\d,]+ and [\d,]+cosine 0\.\d{4}random walk 0\.\d{3}", shown)
    choose = "const d = arguments[0], p = document.querySelector('.plot');"
    choose += "Plotly.restyle(p, p.layout.updatemenus[0].buttons[2].args[0]).then(() => d(p.data[2].visible))"
    assert browser.execute_async_script(choose) is True
    assert not severe(browser)
