"""The page of a spectrum: claims no more than its numbers support, and is whole, escaped and offline."""

import html
import json
import re

import numpy as np
import pytest
from browser import PATIENCE, READY, until, window
from runs_to_draw import edge_run, manifest
from spectra_to_draw import bulk_and_outliers, spectrum

from thalweg.errors import RunFolderError
from thalweg.report import render
from thalweg.report.spectrum_facts import shares
from thalweg.report.spectrum_figures import FLOOR, density_figure, layer_figure
from thalweg.report.spectrum_page import newest_analysis, render_spectrum, write_spectrum_page
from thalweg.report.spectrum_words import caveats, headline, layer_finding, tiles, verdicts
from thalweg.runs.analyses import write_analysis


def text(data):
    return " ".join(headline(data))


def layers(*rows):
    """Layers of equal size with traces and standard errors."""
    return [(str(i), 100, 1.0, trace, error) for i, (trace, error) in enumerate(rows)]


def test_the_headline_tells_the_numbers():
    told = text(spectrum())
    assert "At step 400 the largest eigenvalue of the Hessian is 14.2 and the smallest is −0.6" in told
    assert "99% of the stability threshold 2/⁠η = 14.3: below it" in told
    trace = bulk_and_outliers().sum()
    assert f"The trace is {trace:.1f} ± {0.02 * trace:.1f}; the 4 largest eigenvalues are" in told


def test_the_sharpness_is_not_called_below_where_its_residual_does_not_tell():
    near = spectrum(threshold=14.2005)
    assert "equals the stability threshold 2/⁠η = 14.2 within its residual" in text(near)
    assert ("at the stability threshold", "accent") in verdicts(near)
    assert "above it" in text(spectrum(threshold=10.0))
    assert ("above the stability threshold", "accent") in verdicts(spectrum(threshold=10.0))


def test_shares_propagate_the_errors_of_all_layers():
    data = spectrum(layers=layers((60.0, 3.0), (30.0, 2.0), (10.0, 1.0)))
    part, error = shares(data)
    draws = np.random.default_rng(0).normal([60, 30, 10], [3, 2, 1], (200_000, 3))
    drawn = draws / draws.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(part, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(error, drawn.std(axis=0), rtol=0.02)


def test_a_layer_is_named_first_only_where_the_errors_tell_it_apart():
    clear = text(spectrum(layers=layers((92.0, 1.0), (8.0, 0.5))))
    assert "92.0% ± 0.5% of the curvature's trace is in layer 0, which has 50% of the weights" in clear
    close = layer_finding(spectrum(layers=layers((52.0, 3.0), (48.0, 3.0))))
    assert "No layer stands out" in close
    assert "52% ± 2%" in close


def test_no_share_is_claimed_of_a_sum_that_may_be_nothing():
    for rows in (((5.0, 3.0), (-4.0, 3.0)), ((50.0, 1.0), (-10.0, 1.0)), ((np.nan, 1.0), (3.0, 1.0))):
        data = spectrum(layers=layers(*rows))
        assert shares(data) is None
        assert "of the curvature's trace is in" not in text(data)
        assert "share of the trace" in render_spectrum(data), "the table is there all the same"


def test_no_share_of_an_uncertain_trace():
    assert "of it" not in text(spectrum(error=0.5)).split("The trace")[1].split(".")[0]


def test_what_is_not_known_is_not_mentioned():
    data = spectrum(layers=(), threshold=None, rule=None, optimizer=None)
    told = text(data.drop_vars(["trace", "trace_standard_error", "density_trace", "density_trace_standard_error"]))
    for word in ("trace", "layer", "threshold"):
        assert word not in told
    assert not re.search(r"\bnan\b", render_spectrum(data).split("<script")[0].lower())


def test_estimates_that_contradict_each_other_are_told():
    data = spectrum()
    assert not caveats(data)
    data["density_trace"] = data["density_trace"] * 1.5
    assert "contradict each other" in caveats(data)[0]


def test_what_did_not_converge_or_is_missing_is_told():
    odd = spectrum(eigenvalues_converged="no", eigenvalues_stop="The budget ran out.", missing="layers", notes="Half.")
    told = caveats(odd)
    assert told[0] == "Half."
    assert "missing: layers" in told[1]
    assert "eigenvalues did not reach the accuracy asked for. The budget ran out." in told[2]
    assert ("stopped early", "warn") in verdicts(odd)


def test_what_has_not_converged_is_called_a_bound():
    """A Ritz value bounds the eigenvalue beyond it, and says nothing about its own side of a threshold above it."""
    data = spectrum(eigenvalues_converged="no", edge_converged="no", threshold=20.0)
    told = text(data)
    assert "largest eigenvalue of the Hessian is 14.2 and" in told, "its residual is small enough for these digits"
    assert "The sharpness, at least 14.2, is at least 71% of the stability threshold 2/⁠η = 20." in told
    assert "below" not in told
    assert not any("threshold" in words for words, _ in verdicts(data))
    data["eigen_residuals"] = data["eigen_residuals"] * 1000
    assert "largest eigenvalue of the Hessian is at least 14.2 and the smallest is at most −0.6" in text(data)
    assert "of it" not in text(data), "no share of the trace without the eigenvalues"
    above = spectrum(eigenvalues_converged="no", edge_converged="no", threshold=10.0)
    assert "142% of the stability threshold 2/⁠η = 10: above it" in text(above), "which a lower bound does show"


def test_what_was_left_out_is_told_and_does_not_look_complete():
    data = spectrum(trace_converged="no", trace_left_out="yes", trace_stop="Raise --budget.")
    assert "The trace was left out. Raise --budget." in caveats(data)
    assert ("parts left out", "warn") in verdicts(data)
    assert "<code>--budget</code>" in render_spectrum(data), "an option is not broken at its hyphens"


def test_without_its_own_stage_the_largest_eigenvalue_stands_for_the_sharpness():
    data = spectrum().drop_vars(["edge_sharpness", "edge_residual"])
    assert "The sharpness, 14.2, is 99% of the stability threshold" in text(data)
    assert not any("do not compare" in note for note in caveats(data))


def test_layers_without_curvature_are_told():
    data = spectrum(layers=[("0", 9, 0.0, 0.0, 0.0), ("2", 9, 0.0, 0.0, 0.0)])
    assert any("linear between kinks" in note for note in caveats(data))
    assert not any("linear between kinks" in note for note in caveats(spectrum()))


def test_a_threshold_of_another_curvature_is_not_compared():
    adam = spectrum(rule="Adam", comparable="no").drop_vars(["edge_sharpness", "edge_residual"])
    assert "the two do not compare" in caveats(adam)[0]
    assert "threshold" not in text(adam)
    assert not any("threshold" in label for label, _, _ in tiles(adam))
    assert "stability threshold" not in {trace.name for trace in density_figure(adam).data}


def test_the_density_stands_in_eigenvalues_per_unit_on_a_log_axis():
    data = spectrum()
    figure = density_figure(data)
    line = next(trace for trace in figure.data if trace.name == "eigenvalues per unit")
    area = np.trapezoid(line.y, line.x)
    assert area == pytest.approx(len(bulk_and_outliers()), rel=0.01), "it counts the eigenvalues"
    assert figure.layout.yaxis.type == "log"
    peak = 1 / (np.sqrt(2 * np.pi) * float(data["density_width"]))
    assert 10 ** figure.layout.yaxis.range[0] == pytest.approx(FLOOR * peak)
    marks = next(trace for trace in figure.data if trace.mode == "markers")
    at = np.interp(marks.x[:4], line.x, line.y)
    np.testing.assert_allclose(marks.y[:4], at, rtol=0.05, err_msg="a single eigenvalue stands on its hill")
    assert marks.error_x.array.tolist() == [1e-3] * 6


def test_the_band_is_one_standard_error():
    data = spectrum()
    band = next(trace for trace in density_figure(data).data if trace.name == "one standard error")
    half = len(band.x) // 2
    at = int(np.argmax(data["density"].values))
    size = len(bulk_and_outliers())
    mean, error = float(data["density"][at]), float(data["density_standard_error"][at])
    assert band.y[at] == pytest.approx(size * (mean + error))
    assert band.y[2 * half - 1 - at] == pytest.approx(size * (mean - error))


def test_a_far_threshold_is_told_and_not_drawn():
    far = spectrum(threshold=500.0)
    assert "stability threshold" not in {trace.name for trace in density_figure(far).data}
    assert "500, lies far to the right" in render_spectrum(far)


def test_parts_that_were_left_out_leave_no_hole():
    data = spectrum(layers=()).drop_dims(["value", "probe"])
    figure = density_figure(data)
    assert [trace.mode for trace in figure.data] == ["markers", "lines"]
    assert not layer_figure(data).data
    page = render_spectrum(data)
    assert page.count('class="plot"') == 1
    nothing = render_spectrum(data.drop_dims("eigenvalue").drop_vars("stability_threshold"))
    assert 'class="plot"' not in nothing


def test_the_page_is_valid_and_loads_nothing():
    page = render_spectrum(spectrum())
    for spec in re.findall(r'<script type="application/json" id="f\w+">(.*?)</script>', page, flags=re.DOTALL):
        assert json.loads(spec, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["data"]
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", body)
    assert "default-src 'none'" in page
    for heading in ("Spectrum", "Layers", "Eigenvalues", "Cost", "Provenance"):
        assert f">{heading}</h2>" in body


def test_hostile_names_stay_text():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    data = spectrum(name=evil, source=evil, optimizer=evil, rule=evil, notes=evil, model=evil, operator=evil)
    data = data.assign_coords(layer=[evil + str(i) for i in range(3)])
    for page in (render_spectrum(data), render(edge_run(), manifest(), (), data)):
        assert "<script>alert(1)" not in page
        assert "<img" not in page
        assert html.escape(evil) in page


def test_a_page_is_written_beside_its_file(tmp_path):
    file = write_analysis(tmp_path / "analyses" / "spectrum-400.nc", spectrum(), "spectrum")
    page = write_spectrum_page(file)
    assert page == tmp_path / "analyses" / "spectrum-400.html"
    assert "14.2" in page.read_text()
    file.write_bytes(b"broken")
    with pytest.raises(RunFolderError):
        write_spectrum_page(file)


def test_the_page_of_a_run_shows_the_latest_analysis(tmp_path):
    assert newest_analysis(tmp_path) is None
    for step in (40, 400):
        write_analysis(tmp_path / "analyses" / f"spectrum-{step}.nc", spectrum(step), "spectrum")
    newest = newest_analysis(tmp_path)
    assert newest.attrs["step"] == 400
    for name, step in (("preconditioned", 400), ("preconditioned", 200)):
        other = spectrum(step, preconditioned="yes")
        write_analysis(tmp_path / "analyses" / f"spectrum-{name}-{step}.nc", other, "spectrum")
    assert newest_analysis(tmp_path).attrs["preconditioned"] == "no"
    page = render(edge_run(), manifest(), (), newest)
    assert ">Spectrum at step 400</h2>" in page
    assert ">Layers at step 400</h2>" in page
    assert page.count('data-axis="step"') == page.count('class="plot"') - 3, "figures over other axes do not zoom along"
    (tmp_path / "analyses" / "spectrum-400.nc").write_bytes(b"broken")
    assert newest_analysis(tmp_path) is None, "a damaged analysis does not take the report away"


LONG = [(f"transformer.blocks.{i}.attention.projection", 10**6 + i, 1.0 + i, 50.0 - i, 2.0) for i in range(40)]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["usual", "many layers"])
def test_in_a_real_browser(browser, tmp_path, width, kind):
    path = tmp_path / "page.html"
    path.write_text(render_spectrum(spectrum() if kind == "usual" else spectrum(layers=LONG, name="<b>" + "long" * 60)))
    dark = width < 500
    window(browser, width, dark=dark)
    browser.get(path.as_uri())
    until(browser, READY, PATIENCE, "the plots did not finish")
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner, "no sideways scrolling"
    assert browser.execute_script("return document.querySelectorAll('.barlayer .trace').length") == 2
    colours = browser.execute_script("return [...document.querySelectorAll('.plot')][1].data.map(t => t.marker.color)")
    from thalweg.report.figures import DARK, LIGHT

    assert colours == list((DARK if dark else LIGHT)[:2])
    assert browser.get_log("browser") == [], "no message in the console"
