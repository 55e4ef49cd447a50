"""A sweep whose truth is known: the solvable model over widths and draws, against its closed forms."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from thalweg.phases.critical import critical_constants
from thalweg.phases.uv import UVModel
from thalweg.phases.uv_runs import UVRuns
from thalweg.sweeps.plan import plan
from thalweg.sweeps.sweep import open_sweep, sweep

STEP = 0.05
DRAWS = 5


def measured(cell):
    """Brackets of one width and block of draws, and the values they are to hold."""
    runs = UVRuns(UVModel(cell["width"]), seeds=range(DRAWS * cell["block"], DRAWS * (cell["block"] + 1)))
    found = critical_constants(runs, mode=cell["mode"], grid_step=STEP, barrier=False)
    return {
        "low": found["c_loss"].low, "high": found["c_loss"].high, "exact": runs.c_loss,
        "c_sharp": found["c_sharp"].value, "c_max": found["c_max"].high, "solves": found.cost.solves,
    }  # fmt: skip


def test_brackets_hold_the_closed_forms_of_every_cell(tmp_path):
    cells = plan(width=[2, 8, 64], block=[0, 1], mode=["bisect", "grid"])
    with ThreadPoolExecutor(2) as engine:
        done = sweep(measured, cells, tmp_path / "uv", engine=engine)
    assert not done.failed
    table = open_sweep(tmp_path / "uv").table()
    low, high, exact = (table[name].values.reshape(-1) for name in ("low", "high", "exact"))
    decided = exact < 3.7  # by one step; beyond, divergence may be what shows
    assert decided.sum() > 30
    assert np.all(low[decided] <= exact[decided] * (1 + 1e-9))
    assert np.all(high[decided] >= exact[decided] * (1 - 1e-9))
    assert np.allclose(np.log2(high / low), STEP)
    assert np.allclose(table.c_sharp, 4, rtol=0.04)
    assert np.all(table.c_max >= 4 * (1 - 1e-9))
    quick, whole = (table.sel(mode=mode) for mode in ("bisect", "grid"))
    for name in ("low", "high", "c_sharp"):
        assert np.array_equal(quick[name], whole[name])
    assert int(whole.solves.sum()) > 5 * int(quick.solves.sum())
    wide = exact.reshape(table.exact.shape)[list(table.width.values).index(64)]
    assert wide.max() < 2.6  # a wide net's is near 2
