"""The page: self-contained, escaped, whole; and looked at in a real browser."""

import base64
import html
import html.parser
import json
import re

import pytest
import torch
from browser import PATIENCE, READY, scheme, until, window
from runs_to_draw import cubic_run, edge_run, kinds, loop, manifest

import thalweg as tw
from thalweg.errors import RunFolderError, StorageError
from thalweg.report import figures, render, write_report
from thalweg.runs.metrics import Event


@pytest.fixture(scope="module")
def page():
    return render(cubic_run(), manifest())


def strip_scripts(page):
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_nothing_is_loaded_from_elsewhere(page):
    outside = strip_scripts(page)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", outside)
    assert "@import" not in page[: page.index("</style>")]


def test_every_tag_is_closed(page):
    open_tags = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "link", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(strip_scripts(page))
    assert not open_tags


def test_hostile_names_stay_text():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    data = edge_run()
    data.attrs["optimizer"] = evil
    page = render(data, manifest(name=evil, rule=evil, error=evil, config={"a": {evil: evil}}))
    assert "<script>alert(1)" not in page
    assert "<img" not in page


def test_hostile_manifests_and_events_stay_text():
    evil = "<script>alert(1)</script>"
    told = manifest(packages={evil: evil}, machine=evil, resumed=[{evil: evil}, evil], problem={"model": evil})
    told["config"] = {evil: [evil, {evil: evil}], "none": None}
    page = render(edge_run(), told, [Event(3, "odd", evil)] * 30)
    assert evil not in page
    assert page.count(html.escape(evil)) > 8
    assert "10 further events" in page


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_run_has_a_page(kind):
    page = render(kinds()[kind], manifest(loop=loop(batch_size=16)))
    specs = re.findall(r'<script type="application/json" id="f[^"]+">(.*?)</script>', page, flags=re.DOTALL)
    assert len(specs) == page.count('class="plot"')
    for spec in specs:
        assert json.loads(spec, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["data"]
    assert len(page) < 7_000_000


def test_the_policy_forbids_loading(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    run = small_run(tmp_path / "run")
    target = tmp_path / "missing" / "page.html"
    with pytest.raises(StorageError):
        write_report(run, target)
    good = write_report(run)
    before = good.read_text()
    write_report(run)
    assert good.read_text() == before
    assert not [path for path in (tmp_path / "run").iterdir() if "tmp" in path.name]


def test_a_failed_run_shows_its_error():
    page = render(edge_run(), manifest(error="The loss is NaN at step 7."))
    assert '<p class="bad" role="alert">The loss is NaN at step 7.</p>' in page


def test_headings_and_provenance(page):
    body = strip_scripts(page)
    assert body.count("<h1>") == 1
    assert body.count("<h2") == 9
    assert "Fingerprints</th>" in body
    assert "ab" * 16 in body
    assert "2.13.0" in body


def small_run(path):
    torch.manual_seed(0)
    problem = tw.Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (torch.randn(20, 3), torch.randn(20, 1)))
    from thalweg.runs import Spectrum

    return tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=12, folder=path, measures=[Spectrum(k=1)])


def test_from_a_real_run(tmp_path):
    run = small_run(tmp_path / "run")
    target = write_report(run)
    assert target == tmp_path / "run" / "report.html"
    elsewhere = write_report(tmp_path / "run", tmp_path / "page.html")
    assert elsewhere.read_text() == target.read_text()
    assert "Sharpness" in target.read_text()


def test_not_a_run(tmp_path):
    with pytest.raises(RunFolderError):
        write_report(tmp_path)


@pytest.fixture(scope="module")
def browser(browser):
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    return browser


def show(browser, path, width, dark):
    window(browser, width, dark=dark)
    browser.get(path.as_uri())
    until(browser, READY, PATIENCE, "the plots did not finish")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_real_browser(browser, page, tmp_path, width, dark):
    path = tmp_path / "page.html"
    path.write_text(page)
    show(browser, path, width, dark)
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner, "no sideways scrolling"
    curves = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.scatterlayer .trace').length)"
    )
    assert len(curves) == 8
    assert min(curves) >= 1
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('.plot')]"
        ".filter(p => p.querySelector('svg').getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert beyond == 0, "no plot reaches beyond the window"
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    ink = browser.execute_script("return document.querySelector('.plot').layout.font.color")
    assert (sum(int(n) for n in re.findall(r"\d+", paper)[:3]) < 200) == dark
    assert (int(ink[1:3], 16) > 128) == dark, "figures follow the scheme"
    assert "edge of stability" in browser.find_element("css selector", ".headline").text
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => [...p.querySelectorAll('.infolayer text')].some("
        "t => t.getBoundingClientRect().bottom > p.closest('.frame').getBoundingClientRect().bottom)).length"
    )
    assert cut == 0, "titles are whole"
    overlap = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => p.querySelector('.legend').getBoundingClientRect()"
        ".bottom > p.querySelector('.nsewdrag').getBoundingClientRect().top + 4).length"
    )
    assert overlap == 0, "legends stand above the curves"
    names = browser.execute_script("return [...document.querySelectorAll('.plot')].map(p => p.ariaLabel)")
    assert all("against the step" in name for name in names)
    assert browser.get_log("browser") == [], "no message in the console"


def trace_colour(browser):
    return browser.execute_script("return document.querySelector('.plot').data[0].line.color")


@pytest.mark.browser
def test_follows_a_change_of_scheme_while_open(browser, page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page)
    show(browser, path, 1280, dark=False)
    assert trace_colour(browser) == figures.LIGHT[0]
    scheme(browser, dark=True)
    dark = f"return document.querySelector('.plot').data[0].line.color === {figures.DARK[0]!r}"
    until(browser, dark, PATIENCE, "the figures stayed light")


@pytest.mark.browser
def test_zooming_in_one_figure_zooms_in_all(browser, page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page)
    show(browser, path, 1280, dark=False)
    browser.execute_script("Plotly.relayout(document.querySelector('.plot'), {'xaxis.range': [10, 20]})")
    linked = "document.querySelectorAll('.plot[data-axis=step]')"
    assert browser.execute_script(f"return {linked}.length") == 7, "all but the regimes, on a logarithmic axis"
    zoomed = f"return [...{linked}].every(p => p.layout.xaxis.range.map(Math.round).join() === '10,20')"
    until(browser, zoomed, PATIENCE, "the other figures did not follow")


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["one step", "diverged", "gaps", "all missing", "long"])
def test_odd_runs_in_a_real_browser(browser, tmp_path, kind):
    path = tmp_path / "page.html"
    path.write_text(render(kinds()[kind], manifest(name="<b>" + "long" * 60)))
    show(browser, path, 390, dark=True)
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    assert browser.execute_script("return document.querySelectorAll('.plot').length") >= 2
    assert browser.execute_script(
        "return [...document.querySelectorAll('.tile')].every(tile => tile.scrollWidth <= tile.clientWidth)"
    ), "the key numbers fit"
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_prints_on_white_without_cutting(browser, page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page)
    show(browser, path, 1280, dark=True)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
    # What the page looks like while it is printed: on white, in dark ink, as wide as the paper.
    seen = browser.execute_script(
        "window.dispatchEvent(new Event('beforeprint'));"
        "const p = document.querySelector('.plot');"
        "const seen = [p.layout.font.color, p.data[0].line.color, p.layout.width];"
        "window.dispatchEvent(new Event('afterprint'));"
        "return [...seen, p.layout.font.color, p.data[0].line.color];"
    )
    assert seen[:2] == ["#1c2430", figures.LIGHT[0]]
    assert seen[2] <= 700
    assert seen[3:] == ["#e6eaf0", figures.DARK[0]], "dark again afterwards"
