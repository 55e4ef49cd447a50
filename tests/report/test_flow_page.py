"""The page of a forecast: it says what its numbers support and nothing else, and a file gives the same page again."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from browser import PATIENCE, READY, until, window
from flows_to_draw import forecast
from runs_to_draw import edge_run, manifest

from thalweg.errors import RunFolderError
from thalweg.flows.stored import open_flow, save_flow
from thalweg.report import render
from thalweg.report.flow_facts import BOUNCE, bounce, directions, onset, progress, slope, smoothed
from thalweg.report.flow_figures import distance_figure, eigenvalue_figure, loss_figure, variance_figure
from thalweg.report.flow_page import DRAW, newest_flow, render_flow, write_flow_page
from thalweg.report.flow_words import caveats, headline, tiles, verdicts


def text(result):
    return " ".join(headline(result))


def strip(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_the_headline_tells_the_numbers():
    flow = forecast()
    told, found = text(flow), flow.compare(20.0)
    assert "The flow becomes critical at step 100" in told
    assert "at most 2 directions at once" in told
    assert "Against the run smoothed over 20 steps" in told
    assert (
        "It ends 2% of the distance travelled away from the run, the stable flow, which knows no oscillation, 30%"
        in told
    )
    assert f"The oscillation measured is {found.variance_ratio:.2f} times the predicted one" in told
    assert found.variance_ratio == pytest.approx(1.1)
    assert "The loss at the flow falls all the way" in told
    assert "though the loss of the run rises at 50% of its steps" in told
    assert "The oscillation itself makes up 2.4% of the average loss" in told, "0.025 / 1.025"


def test_steps_are_counted_from_where_the_forecast_starts():
    assert "critical at step 2,100" in text(forecast(first_step=2000))
    assert loss_figure(forecast(first_step=2000)).data[0].x[0] == 2000


@pytest.mark.parametrize("lost", [0.05, 0.3, 0.8])
def test_the_share_of_the_slope_is_found(lost):
    found = slope(forecast(lost=lost))
    assert found.share == pytest.approx(lost, abs=2e-3)
    assert found.closing < 2e-3
    assert f"takes {found.share:.0%} of the slope" in text(forecast(lost=lost)) or lost < 0.1


def test_no_share_of_the_slope_where_the_account_does_not_hold():
    assert slope(forecast(rule="RMSProp")) is None, "its step differs from weight to weight"
    assert slope(forecast(weight_decay=0.1)) is None
    assert slope(forecast(onset=390)) is None, "too short"
    assert slope(forecast(bounce=0.3)) is None
    leak = forecast(lost=0.05)
    before = leak.data["time"].to_numpy() < 100
    leak.data["squared_gradient_central"][before] *= 1.2
    assert slope(leak) is None, "it misses more before the onset than it finds after"
    assert "slope" not in text(leak)


def test_a_flow_that_bounces_is_told():
    assert bounce(forecast()) < BOUNCE
    flow = forecast(bounce=0.3)
    assert bounce(flow) == pytest.approx(0.3, rel=0.05)
    assert any("The flow itself bounces" in note for note in caveats(flow))
    drawn = np.array(variance_figure(flow).data[0].y)
    calm = np.array(variance_figure(forecast()).data[0].y)
    np.testing.assert_allclose(drawn[1:-1], calm[1:-1], rtol=0.01)


def test_below_the_limit_nothing_is_said_of_oscillations():
    flow = forecast(onset=None)
    told = text(flow)
    assert onset(flow) is None
    assert "stays below the limit of stability" in told
    assert "the map is the optimizer itself" in told
    for word in ("off by", "penalty", "ups and downs"):
        assert word not in told
    assert not variance_figure(flow).data
    assert ("never critical", "plain") in verdicts(flow)
    most = float(flow.data["effective_eigenvalues"].max())
    assert f"only rates above {0.2 * 2 / most:.4g} would meet their limit" in told
    assert render_flow(flow)


def test_another_learning_rate():
    told = text(forecast())
    # The largest eigenvalue rises linearly from 0.5 to 2 in 100 steps, and is 1 at a third of that.
    assert "At learning rate 0.2 sharpness is limited to 2/η = 10" in told
    assert "At twice the rate the limit would be 5, which this path passes at about step 34" in told
    assert "at half the rate it would be 20, which this flow does not reach" in told
    rare = forecast()
    top = rare.data["effective_eigenvalues"][:, 0].to_numpy().copy()
    rare.data["effective_eigenvalues"][:100, 0] = top[:100][np.arange(100) // 16 * 16]
    assert "passes at about step 34" in text(rare), "also where it was looked at every 16 steps"
    assert "learning rate" not in text(forecast(rule="RMSProp"))
    assert "would not move the limit" in text(forecast(rule="ScalarRMSProp"))
    flow = forecast()
    del flow.data.attrs["learning_rate"]
    assert "learning rate" not in text(flow), "a schedule has more than one"


def test_the_largest_rate_that_keeps_the_start_stable():
    told = text(forecast())
    assert "the largest rate that keeps it stable is 0.8: a larger one is above" in told, "it starts at 0.5 of 2"
    assert "0.8, with the averages that the rule has there" in text(forecast(rule="RMSProp"))
    assert "any larger rate is unstable there at once" in text(forecast(onset=0))
    assert "larger rate" not in text(forecast(rule="AdamW"))
    flow = forecast()
    flow.data["effective_eigenvalues"][0] = np.nan
    assert "larger one" not in text(flow)


def test_a_rule_that_is_not_that_of_the_run_is_said_to_be():
    asked = {
        "asked": "rule.lr 0.2 instead of 0.1",
        "run_optimizer": "gradient descent, learning rate 0.1",
        "run": "first",
    }
    told = text(forecast(**asked))
    assert "the rule is not that of the run: rule.lr 0.2 instead of 0.1." in told
    assert "not first as recorded" in told
    assert "gradient descent, learning rate 0.1" in render_flow(forecast(**asked))
    assert "not that of the run" not in text(forecast())


def test_predictions_that_are_no_better_are_said_to_be():
    flow = forecast()
    flow.data["predicted_loss"][:] = 2 * flow.data["loss_discrete"]
    assert "no better than the loss at the flow without the oscillation" in text(flow)
    assert any(kind == "bad" for _, kind in verdicts(flow))


def test_a_loss_that_does_not_fall_is_not_called_progress():
    flow = forecast()
    flow.data["loss_central"][:] = 1 + 0.001 * np.arange(400)
    told = text(flow)
    assert "does not fall after that" in told
    assert "progress" not in told


def test_what_limits_a_forecast_is_told():
    assert not caveats(forecast())
    alone = forecast(without=("loss_discrete", "squared_gradient_discrete", "travelled", "measured_variance"))
    assert any("nothing says how well" in note for note in caveats(alone))
    assert not distance_figure(alone).data
    assert "off by" not in text(alone)
    assert render_flow(alone)
    assert any("single bursts" in note for note in caveats(forecast(times=130)))
    assert any("reference mode" in note for note in caveats(forecast(mode="reference")))
    assert "memory" in caveats(forecast(notes=("It has a long memory.",)))[0]
    short = forecast(time=500)
    assert caveats(short) == [short.stop]
    high = forecast()
    high.data["effective_eigenvalues"][200, 0] = 2.3
    assert any("reaches 2.3, above its limit 2" in note for note in caveats(high))


def test_facts():
    flow = forecast(onset=150)
    assert onset(flow) == 150
    assert directions(flow).tolist() == [0] * 150 + [2] * 250
    found = progress(flow)
    assert (found.falls, found.rises) == (1.0, pytest.approx(0.5, abs=0.01))
    assert progress(forecast(onset=395)) is None
    values = np.array([np.nan, 1.0, 1.0, np.nan, 1.0])
    np.testing.assert_array_equal(smoothed(values, 2.0), values)


def test_figures_hold_the_curves():
    flow = forecast()
    names = [trace.name for trace in loss_figure(flow).data]
    assert names == ["loss of the run", "smoothed over 20 steps", "predicted average", "at the central flow",
                     "at the stable flow"]  # fmt: skip
    limit = eigenvalue_figure(flow).data[-1]
    assert (limit.name, list(limit.y)) == ("limit 2", [2.0, 2.0])
    names = [trace.name for trace in variance_figure(flow).data]
    assert names == [f"{what}, direction {i}" for i in (1, 2) for what in ("predicted", "measured")]
    central, stable = (np.array(trace.y) for trace in distance_figure(flow).data[:2])
    np.testing.assert_allclose(central, 0.02, rtol=1e-9)
    np.testing.assert_allclose(stable, 0.3, rtol=1e-9)
    assert all(label and value and remark for label, value, remark in tiles(flow))


def test_a_file_gives_the_same_page_and_numbers_again(tmp_path):
    flow = forecast(notes=("One.", "Two."))
    kept = open_flow(save_flow(flow, tmp_path / "f.nc", sigma=10.0, facts={"name": "mine", **flow.data.attrs}))
    assert kept.compare(10.0) == flow.compare(10.0)
    assert (kept.mode, kept.cost, kept.stop, kept.notes) == (flow.mode, flow.cost, flow.stop, flow.notes)
    assert all(torch.equal(kept.points[name], w) for name, w in flow.points.items())
    assert kept.data.attrs["smoothing"] == 10.0
    assert kept.data.attrs["comparison_loss_error"] == flow.compare(10.0).loss_error
    flow.data.attrs["smoothing"] = 10.0
    for draw in DRAW.values():
        assert draw(kept).to_json() == draw(flow).to_json()
    page = write_flow_page(tmp_path / "f.nc")
    assert page == tmp_path / "f.html"
    assert page.read_text() == render_flow(kept)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.nc").write_bytes(b"CDF\x02nonsense")
    with pytest.raises(RunFolderError):
        open_flow(tmp_path / "x.nc")
    with pytest.raises(RunFolderError):
        write_flow_page(tmp_path / "none.nc")


def test_the_page_is_whole_escaped_and_offline():
    flow = forecast(name="<b>mine</b>", source="a & b", seconds=12.0, optimizer="gradient descent")
    page = render_flow(flow)
    body = strip(page)
    assert "<b>mine" not in body
    assert html.escape("a & b") in body
    assert body.count("<h2") == 7
    assert "All processes together took 12 s." in body
    assert not re.search(r"(?:src|href)=[\"']https?:", body)
    specs = re.findall(r'<script type="application/json" id="f[^"]*">(.*?)</script>', page, flags=re.S)
    assert len(specs) == 4
    assert all(json.loads(spec)["data"] for spec in specs)
    assert not re.search(r"\bnan\b", body.split("</style>")[1].lower())


def test_the_newest_forecast_is_part_of_the_run(tmp_path):
    assert newest_flow(tmp_path) is None
    (tmp_path / "analyses").mkdir()
    for step in (0, 200):
        save_flow(forecast(first_step=step), tmp_path / "analyses" / f"flow-{step}.nc", facts={"first_step": step})
    found = newest_flow(tmp_path)
    assert found.data.attrs["first_step"] == 200
    page = render(edge_run(), manifest(), (), None, found)
    assert "Predicted loss, forecast from step 200</h2>" in page
    assert "The flow becomes critical at step 300" in page
    assert "Cost of the forecast</h2>" in page
    (tmp_path / "analyses" / "flow-300.nc").write_bytes(b"damaged")
    assert newest_flow(tmp_path) is None
    shutil.rmtree(tmp_path / "analyses")


def test_a_run_that_does_not_oscillate_yet_is_not_compared_by_variance():
    told = text(forecast(measured=1e-4))
    assert "The run hardly oscillates yet: the variance measured is 0.01% of the predicted one" in told
    assert "times the predicted one" not in told


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_real_browser(browser, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(render_flow(forecast(name="<b>" + "long" * 60, first_step=2000)))
    window(browser, width)
    browser.get(path.as_uri())
    until(browser, READY, PATIENCE, "the plots did not finish")
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner, "no sideways scrolling"
    curves = browser.execute_script("return [...document.querySelectorAll('.plot')].map(p => p.data.length)")
    assert curves == [5, 3, 4, 3]
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#comparison ~ table td')].map(c => c.getBoundingClientRect().right)"
    )
    assert cells
    assert max(cells) <= inner, "every number of the comparison is in sight"
    assert browser.get_log("browser") == [], "no message in the console"
