"""Phase diagrams: what they hold, say, draw and keep; on the solvable model and on made-up numbers."""

import numpy as np
import pytest
import xarray as xr
from diagrams_to_draw import made_up, solvable

from thalweg.errors import InvalidInput, RunFolderError
from thalweg.phases.critical import critical_constants
from thalweg.phases.diagram import PhaseDiagram, phase_diagram
from thalweg.phases.diagram_cells import MeasureCell, cell_work, diagram_of, phase_plan
from thalweg.phases.diagram_stored import open_diagram
from thalweg.phases.diagram_words import opening
from thalweg.phases.early_network import EarlySpec
from thalweg.phases.uv import UVModel
from thalweg.phases.uv_critical import uv_constants
from thalweg.phases.uv_runs import UVRuns


def test_the_solvable_model_has_the_averages_that_are_known():
    found = solvable(widths=(2, 8, 64), seeds=range(120))
    for width in found.widths:
        exact = uv_constants(width)
        one = found.summary("c_loss", 2, width)
        low, high = one.interval
        # a grid of 0.1 rounds each value by up to 3.5 %
        assert low / 1.04 <= exact.c_loss <= high * 1.04
        assert found.summary("c_max", 2, width).mean == pytest.approx(4, rel=0.04)
    assert opening(found) == "opens"  # as 1 / width grows
    assert "opens" in found.sentence
    assert not found.missing


@pytest.mark.parametrize(
    ("c_loss", "kind"),
    [
        ({16: 20.0, 64: 9.0, 256: 3.0}, "opens"),
        ({16: 2.05, 64: 2.0, 256: 2.02}, "closed"),
        ({16: 5.0, 64: 5.2, 256: 5.0}, "open"),
        ({16: 2.5, 64: 1.5, 256: 2.0}, "unclear"),
        ({16: 2.0, 64: 6.0, 256: 20.0}, "unclear"),  # the wrong way round
        ({16: np.nan, 64: np.nan, 256: np.nan}, "unknown"),
    ],
)
def test_what_it_says(c_loss, kind):
    found = made_up({(4, width): (value, 1.3 * value, 2 * value) for width, value in c_loss.items()})
    assert opening(found) == kind
    assert found.sentence.endswith(".")


def test_closing_catapults_are_said():
    found = made_up({(4, 256): (2.5, 4.0, 12.0), (8, 64): (35.0, 35.0, 40.0)})
    assert "catapults" in found.sentence
    assert "4.8" in found.sentence
    assert "1.1" in found.sentence
    between = made_up({(4, 256): (2.5, 4.0, 12.0), (4, 64): (10.0, 12.0, 200.0), (8, 64): (35.0, 35.0, 40.0)})
    assert "catapults" not in between.sentence
    assert "diverges from c = 12 to 200 on" in between.sentence


@pytest.mark.parametrize("against", ["width", "ratio"])
def test_the_figure_has_regions_lines_and_markers(against):
    found = made_up({(d, w): (2 + 20 * d / w, 3 + 30 * d / w, 14.0) for d in (4, 8) for w in (64, 128, 256)})
    figure = found.plot(against)
    panels = 2 if against == "width" else 1
    fills = [trace for trace in figure.data if trace.fill == "toself"]
    markers = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(markers) == 3 * panels
    assert {trace.marker.symbol for trace in markers} == {"square", "triangle-up", "diamond"}
    assert {"loss catapult", "divergence"} <= {trace.name for trace in fills}
    assert len(figure.layout.shapes) == panels
    assert all(shape.x0 == 2 for shape in figure.layout.shapes)
    loss = markers[0]
    at = list(loss.y).index((4 if against == "ratio" else 1) / 64)
    assert loss.x[at] == pytest.approx(2 + 20 / 16, rel=0.05)
    assert "width 64" in loss.customdata[at]
    assert "c_sharp" in loss.customdata[at]
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(named) == len(set(named))


def test_regions_do_not_overlap_and_cover_the_panel():
    from thalweg.phases.diagram_figure import _line, _regions, _span

    found = made_up({(8, 64): (30.0, 27.0, 40.0), (8, 512): (3.0, 4.5, 14.0)})  # the lines cross
    cells, span = found.cells, _span(found)
    lines = {name: _line(found, name, cells, "width") for name in found.constants}
    regions = _regions(lines, cells, "width", span)
    assert len(regions) == 6
    height = regions[0][2][0]
    rng = np.random.default_rng(0)
    for at in rng.integers(len(height), size=40):
        c = np.exp2(rng.uniform(*np.log2(span)))
        inside = sum(left[at] <= c < right[at] for _, _, (_, left, right) in regions)
        assert inside == 1


def test_a_single_cell_and_missing_values_are_drawn():
    found = made_up({(4, 64): (6.0, 8.0, np.nan)})
    assert found.plot().data
    assert found.beyond("c_max", 4, 64) == 5
    assert "beyond the grid (5)" in found.table()
    assert found.plot_runs().data == ()
    assert found.plot_saturation().data == ()


def test_runs_of_each_cell_are_drawn():
    found = solvable(widths=(4, 16), seeds=range(3))
    figure = found.plot_runs()
    assert [bool(trace.visible) for trace in figure.data] == [True, True, False, False]
    assert len(figure.data[1].x) < len(figure.data[0].x)  # a bisection measures the sharpness of some runs only
    whole = phase_diagram({(2, w): critical_constants(UVRuns(UVModel(w)), mode="grid") for w in (4, 16)})
    assert [bool(trace.visible) for trace in whole.plot_runs().data] == [True, True, False, False]
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == [
        "depth 2, width 4",
        "depth 2, width 16",
    ]
    assert min(figure.data[0].x) >= 1


def test_it_is_kept(tmp_path):
    found = solvable(widths=(4, 16), seeds=range(3))
    again = open_diagram(found.save(tmp_path / "phases.nc", {"data": "none", "mode": "grid"}))
    assert again.table() == found.table()
    assert again.sentence == found.sentence
    assert again.data.attrs["data"] == "none"
    assert again.data.attrs["search"] == "grid"
    for name in found.data:
        xr.testing.assert_equal(again.data[name], found.data[name])
    (tmp_path / "broken.nc").write_bytes(b"CDF\x02nothing")
    with pytest.raises(RunFolderError):
        open_diagram(tmp_path / "broken.nc")


def test_cells_of_a_sweep_become_a_diagram(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from thalweg.sweeps.sweep import sweep

    measure = MeasureCell(EarlySpec(samples=40, steps=3), grid_step=0.5, barrier=False)
    plan = phase_plan([2], [8, 16], 2)
    with ThreadPoolExecutor(1) as pool:
        swept = sweep(measure, plan, tmp_path / "sweep", engine=pool, cost=cell_work)
    found = diagram_of(swept.table(), {"data": "digits"})
    assert (found.depths, found.widths, found.constants) == ([2], [8, 16], ["c_loss", "c_sharp", "c_max"])
    assert not found.missing
    direct = measure(plan.cells[1])
    cell = plan.cells[1]
    kept = found.data.c.sel(depth=cell["depth"], width=cell["width"], seed=cell["seed"]).values
    assert np.array_equal(kept, direct["c"][1][:3], equal_nan=True)
    assert found.plot_runs().data


def test_failed_cells_are_missing():
    found = made_up({(4, 64): (6.0, 8.0, 12.0), (4, 128): (4.0, 6.0, 12.0)})
    data = found.data.copy(deep=True)
    for name in ("c", "c_low", "c_high", "found"):
        data[name][0, 1, 2] = np.nan
    lost = PhaseDiagram(data)
    assert lost.missing == [(4, 128, 2)]
    assert "1 missing" in repr(lost)
    assert lost.summary("c_loss", 4, 128).count == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda: phase_diagram({}),
        lambda: PhaseDiagram(xr.Dataset()),
        lambda: diagram_of(xr.Dataset({"c": ("width", [1.0])})),
        lambda: phase_plan([4], [0]),
        lambda: phase_plan([], [64]),
        lambda: phase_plan([4], [64], 0),
        lambda: made_up({(4, 64): (6.0, 8.0, 12.0)}).plot("depth"),
        lambda: made_up({(4, 64): (6.0, 8.0, 12.0)}).values("c_loss", 4, 65),
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(InvalidInput):
        call()


def test_saturation_is_drawn_with_its_bend():
    from thalweg.phases.diagram_saturation import with_c_crit

    runs = UVRuns(UVModel(16), seeds=tuple(range(60)))
    c = 2.0 ** np.arange(-1, 1.91, 0.1)
    rows = [(s, float(one)) for s in range(60) for one in c]
    ratio = runs.sharpness_at(rows, [max(1, round(200 / one)) for _, one in rows]).reshape(60, -1)
    ratio = ratio / runs.sharpness0[:, None]
    base = phase_diagram({(2, 16): critical_constants(runs, barrier=False)})
    data = base.data.assign_coords(tau_c=c)
    data["saturation"] = (("depth", "width", "seed", "tau_c"), ratio[None, None])
    found = PhaseDiagram(with_c_crit(data))
    assert found.data.c_crit.values.item() == pytest.approx(2.0, rel=1e-9)
    curve, star = found.plot_saturation().data
    assert star.x[0] == pytest.approx(2.0)
    assert curve.y[0] > 0.9
    one = PhaseDiagram(with_c_crit(data.isel(seed=[0])))  # one seed has no spread
    assert np.isnan(one.data.c_crit).all()
    assert len(one.plot_saturation().data) == 1
