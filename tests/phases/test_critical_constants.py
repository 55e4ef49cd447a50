"""Critical constants where the truth is known: written curves and the exactly solvable model."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.early import Scripted, by_definition, ladder
from thalweg.errors import InvalidInput, NonFinite
from thalweg.phases.critical import critical_constants
from thalweg.phases.critical_result import Status
from thalweg.phases.labels import Phase
from thalweg.phases.uv import UVModel
from thalweg.phases.uv_runs import UVRuns

thresholds = st.tuples(st.floats(1.1, 300), st.floats(1.1, 300), st.floats(1.1, 300)).map(sorted)


@settings(deadline=None, max_examples=60)
@given(st.lists(thresholds, min_size=1, max_size=3), st.sampled_from(["bisect", "grid"]), st.floats(0.08, 0.6))
def test_brackets_hold_the_thresholds_and_are_one_step_wide(levels, mode, step):
    runs = Scripted(ladder(*zip(*levels)), seeds=len(levels))
    found = critical_constants(runs, mode=mode, grid_step=step, barrier=False)
    for place, name in enumerate(("c_loss", "c_sharp", "c_max")):
        one = found[name]
        for i, level in enumerate(levels):
            assert one.low[i] < level[place] <= one.high[i] * (1 + 1e-12)
            assert one.status[i] is Status.FOUND
        assert np.allclose(np.log2(one.high / one.low), step)
        assert np.all((one.low < one.value) & (one.value < one.high))
        assert np.allclose(one.value, np.sqrt(one.low * one.high))
        assert not one.fallback.any()
    assert np.all(found["c_loss"].high <= found["c_sharp"].high)


@settings(deadline=None, max_examples=15)
@given(st.lists(thresholds, min_size=1, max_size=3))
def test_both_modes_agree_with_the_definitions(levels):
    runs = Scripted(ladder(*zip(*levels)), seeds=len(levels), barrier=lambda i, c: 1.5 if c > 3 else 0.5)
    wanted = by_definition(runs, 0.1)
    both = [critical_constants(runs, mode=mode) for mode in ("bisect", "grid")]
    for found in both:
        for place, name in enumerate(("c_loss", "c_sharp", "c_max")):
            assert np.array_equal(found[name].defined, wanted[:, place])
    assert np.array_equal(both[0]["c_barrier"].high, both[1]["c_barrier"].high)


def test_bisection_is_far_cheaper():
    levels = [(9.2, 14.0, 20.0)]
    quick, whole = (Scripted(ladder(*zip(*levels))) for _ in range(2))
    critical_constants(quick, barrier=False)
    critical_constants(whole, mode="grid", barrier=False)
    assert whole.cost.solves > 10 * quick.cost.solves
    assert whole.cost.runs > 2 * quick.cost.runs


def test_without_a_barrier_it_is_c_max():
    runs = Scripted(ladder((3.0,), (4.0,), (9.0,)), barrier=lambda i, c: np.inf if c >= 9 else 0.9)
    for mode in ("bisect", "grid"):
        found = critical_constants(runs, mode=mode)
        assert found["c_barrier"].high == found["c_max"].high


def late_growth(i, c):
    """From c = 5 on the loss rises at the last step only; at the first step from 20 on."""
    loss, sharpness = np.linspace(1, 0.5, 11), np.linspace(10, 5, 11)
    if c >= 5:
        loss[10] = 1.5
    if c >= 20:
        loss[1] = 2.0
    if c >= 8:
        sharpness[9] = 12.0
    if c >= 40:
        loss[10] = np.nan
    return loss, sharpness


def test_late_growth_of_loss_and_sharpness_is_seen():
    for mode in ("bisect", "grid"):
        found = critical_constants(Scripted(late_growth), mode=mode, barrier=False)
        for name, level in (("c_loss", 5), ("c_sharp", 8), ("c_max", 40)):
            assert found[name].low[0] < level <= found[name].high[0]
    windowed = critical_constants(Scripted(late_growth), window="catapult", barrier=False)
    assert windowed["c_loss"].low[0] < 20 <= windowed["c_loss"].high[0]
    assert windowed["c_sharp"].low[0] >= 8


def test_a_contradiction_sends_the_search_over_the_grid():
    def islands(i, c):
        loss, sharpness = ladder((9.0,), (12.0,), (40.0,))(i, c)
        if 10.5 < c < 12.5:  # quiet again above c_loss
            loss[1] = 0.9
        if 4.0 <= c < 9.0 and c < 8.1:  # and risen late, below
            loss[7] = 1.1
        return loss, sharpness

    quick = critical_constants(Scripted(islands), barrier=False, probes=3)
    whole = critical_constants(Scripted(islands), mode="grid", barrier=False)
    assert quick["c_loss"].fallback[0]
    assert not quick["c_loss"].monotone[0]
    assert np.array_equal(quick["c_loss"].high, whole["c_loss"].high)
    assert quick["c_loss"].low[0] < 4.0 <= quick["c_loss"].high[0]
    assert not whole["c_loss"].monotone[0]
    assert not whole["c_loss"].fallback[0]
    assert "by the whole grid" in repr(quick["c_loss"])
    assert "whole grid" in repr(quick)


def test_a_run_that_diverges_below_c_max_is_found():
    """Islands of divergence, one within an octave of c_max, one within an octave of c_loss, and one of each sort."""
    for islands in ([26.0], [13.0], [26.0, 13.0]):

        def chaotic(i, c, islands=islands):
            loss, sharpness = ladder((8.0,), (9.0,), (45.0,))(i, c)
            if any(abs(np.log2(c / island)) < 0.06 for island in islands):
                loss[6:] = np.inf
            return loss, sharpness

        quick, whole = (critical_constants(Scripted(chaotic), mode=m, barrier=False) for m in ("bisect", "grid"))
        assert quick["c_max"].high[0] == whole["c_max"].high[0] < 30
        assert quick["c_max"].fallback[0]
        assert not quick["c_loss"].fallback[0]


def test_a_network_that_dies_far_above_is_not_taken_for_one_that_trains():
    def dies(i, c):
        loss, sharpness = ladder((9.0,), (12.0,), (14.0,))(i, c)
        return (np.linspace(1, 0.1, 11), np.linspace(10, 0, 11)) if c > 30 else (loss, sharpness)

    def dies_late(i, c):
        loss, sharpness = dies(i, c)
        loss[1], loss[4] = 0.9, loss[1]  # no first step ever raises the loss
        return loss, sharpness

    for curves in (dies, dies_late):
        quick, whole = (critical_constants(Scripted(curves), mode=m, barrier=False) for m in ("bisect", "grid"))
        for name in ("c_loss", "c_sharp", "c_max"):
            assert quick[name].high[0] == whole[name].high[0] < 15, name


def test_constants_beyond_the_grid_are_said_to_be():
    never = Scripted(lambda i, c: (np.linspace(1, 0.5, 11), np.linspace(10, 5, 11)))
    always = Scripted(lambda i, c: (np.linspace(1, 2, 11), np.linspace(10, 20, 11)))
    for mode in ("bisect", "grid"):
        up = critical_constants(never, mode=mode, stop=3, barrier=False)
        assert up["c_loss"].status == up["c_max"].status == (Status.ABOVE,)
        assert np.isinf(up["c_max"].high[0])
        assert np.isclose(up["c_max"].low[0], 8)
        down = critical_constants(always, mode=mode, stop=3, barrier=False)
        assert down["c_loss"].status == down["c_sharp"].status == (Status.BELOW,)
        assert down["c_loss"].low[0] == 0
        assert np.isnan(down["c_loss"].value[0])
        assert down.aggregate()["c_loss"].missing == 1
        assert "below the grid" in repr(down["c_loss"])


def test_divergence_at_the_last_step_is_divergence():
    def curves(i, c):
        loss = np.linspace(1, 0.5, 11)
        loss[10] = np.nan if c > 6 else 0.5
        return loss, np.linspace(10, 5, 11)

    for mode in ("bisect", "grid"):
        found = critical_constants(Scripted(curves), mode=mode, barrier=False)
        assert found["c_max"].low[0] <= 6 < found["c_max"].high[0]
        assert found["c_loss"].high[0] == found["c_sharp"].high[0] == found["c_max"].high[0]


def test_phases_of_the_grid_follow_the_constants():
    runs = Scripted(ladder((4.1,), (8.3,), (20.0,)))
    found = critical_constants(runs, mode="grid", barrier=False)
    for (_, c), phase in zip(found.curves.rows, found.phases):
        wanted = (Phase.REDUCTION, Phase.LOSS_CATAPULT, Phase.CATAPULT, Phase.DIVERGENCE)
        assert phase is wanted[sum(c >= level for level in (4.1, 8.3, 20.0))]
    assert found.curves.rows[-1][1] == found["c_max"].high[0]  # the grid ends there
    quick = critical_constants(runs, barrier=False)
    known = dict(zip(found.curves.rows, found.phases))
    for row, phase in zip(quick.curves.rows, quick.phases):
        assert phase is None or phase is known.get(row, Phase.DIVERGENCE)


def test_sharpness_nan_without_divergence_is_refused():
    def broken(i, c):
        loss, sharpness = ladder((4.0,), (6.0,), (9.0,))(i, c)
        sharpness[4] = np.nan
        return loss, sharpness

    for mode in ("bisect", "grid"):
        with pytest.raises(NonFinite, match=r"seed 0 at c = .* is NaN after step 4"):
            critical_constants(Scripted(broken), mode=mode, barrier=False)


def test_bad_input_is_refused():
    runs = Scripted(ladder((4.0,), (6.0,), (9.0,)))
    for wrong in (
        {"mode": "fast"}, {"grid_step": 0}, {"start": 11}, {"window": "late"}, {"eps_sharp": -1}, {"points": 1},
        {"probes": -1}, {"near": -0.5}, {"grid_step": float("nan")},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            critical_constants(runs, **wrong)
    with pytest.raises(InvalidInput, match="There are c_loss"):
        critical_constants(runs, barrier=False)["c_barrier"]
    runs.sharpness0 = np.array([np.nan])
    with pytest.raises(NonFinite, match="starts at a loss"):
        critical_constants(runs)
    runs.seeds = ()
    with pytest.raises(InvalidInput, match="0 seeds"):
        critical_constants(runs)


@pytest.mark.parametrize("mode", ["bisect", "grid"])
@pytest.mark.parametrize("width", [2, 8, 64])
def test_the_solvable_model_has_its_exact_constants(width, mode):
    runs = UVRuns(UVModel(width), seeds=tuple(range(12)))
    found = critical_constants(runs, mode=mode, grid_step=0.05)
    exact = np.where(np.isfinite(runs.c_loss), runs.c_loss, np.inf)
    below = exact < 3.7  # one step decides, unless divergence does
    assert np.all(found["c_loss"].low[below] <= exact[below] * (1 + 1e-9))
    assert np.all(found["c_loss"].high[below] >= exact[below] * (1 - 1e-9))
    assert below.sum() >= 5
    assert np.allclose(found["c_sharp"].value, 4, rtol=0.04)  # by the trace: exactly 4, as far as a step of the grid
    assert np.all(found["c_max"].high >= 4 * (1 - 1e-9))
    assert np.all(found["c_loss"].high <= found["c_sharp"].high)


def test_modes_agree_on_the_solvable_model_by_its_eigenvalue():
    runs = UVRuns(UVModel(6), seeds=tuple(range(8)), units="lambda")
    quick, whole = (critical_constants(runs, mode=mode) for mode in ("bisect", "grid"))
    for name in ("c_loss", "c_sharp", "c_max", "c_barrier"):
        apart = np.abs(np.log2(quick[name].high / whole[name].high))
        assert apart.max() < 0.1 + 1e-9, name


def test_the_result_is_a_dataset_a_figure_and_a_summary(tmp_path):
    found = critical_constants(UVRuns(UVModel(8), seeds=(3, 4, 5)))
    data = found.data
    assert data.c.dims == ("seed", "constant")
    assert list(data.seed) == [3, 4, 5]
    assert set(data.status.values.ravel()) == {"found"}
    assert float(data.c.sel(seed=4, constant="c_max")) == found["c_max"].value[1]
    assert data.attrs["search"] == "bisect"
    data.drop_vars("fallback").to_netcdf(tmp_path / "c.nc", engine="scipy")  # which takes no attribute "mode"
    with xr.open_dataset(tmp_path / "c.nc", engine="scipy") as again:
        assert bool((again.c == data.c).all())
    summary = found.aggregate()["c_loss"]
    assert summary.count == 3
    assert summary.interval[0] <= summary.mean <= summary.interval[1]
    assert summary.quantiles == tuple(np.quantile(found["c_loss"].value, [0.25, 0.75]))
    assert len(found.plot().data) == 4
    assert "c_loss" in repr(found)
