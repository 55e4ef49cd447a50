"""Phase diagrams for tests: of the solvable model, and of made-up constants."""

import numpy as np

from thalweg.phases.critical import critical_constants
from thalweg.phases.critical_result import NAMES
from thalweg.phases.diagram import assemble, phase_diagram
from thalweg.phases.uv import UVModel
from thalweg.phases.uv_runs import UVRuns


def solvable(widths=(4, 16), seeds=range(5)):
    return phase_diagram(
        {
            (2, width): critical_constants(UVRuns(UVModel(width), tuple(seeds), steps=30), barrier=False)
            for width in widths
        }
    )


def made_up(cells, seeds=5):
    """A diagram of c_loss, c_sharp and c_max per cell, with a spread of a few percent over seeds."""
    spread = np.linspace(0.96, 1.04, seeds)
    rows = []
    for (depth, width), values in cells.items():
        for seed in range(seeds):
            c = np.array([spread[seed] * value for value in values] + [np.nan])
            found = np.where(np.isfinite(c), 1.0, 0.0)
            found[NAMES.index("c_barrier")] = np.nan
            rows.append(
                (
                    (depth, width, seed),
                    {"c": c, "c_low": c / 1.03, "c_high": c * 1.03, "found": found, "loss0": 0.4, "sharpness0": 12.0},
                )
            )
    return assemble(rows, {"data": "digits"})
