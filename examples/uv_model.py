"""A model that can be solved: a catapult, its phase diagram, and the route to chaos, each as a figure.

python examples/uv_model.py [FOLDER]
"""

import sys
from pathlib import Path

from thalweg.phases.critical import critical_constants
from thalweg.phases.diagram import phase_diagram
from thalweg.phases.uv import UVModel, uv_path
from thalweg.phases.uv_chaos import chaos_begins, period_doublings, uv_orbits
from thalweg.phases.uv_critical import uv_constants
from thalweg.phases.uv_runs import UVRuns


def main(folder: str = "uv-model", seeds: int = 100) -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)

    model = UVModel(width=16)
    output, kernel = model.reduce(*model.weights(seed=0))
    path = uv_path(model, output, kernel, lr=[1.5 / kernel, 3 / kernel], steps=40)
    path.plot().write_html(out / "catapult.html", include_plotlyjs="directory")
    print(
        f"rate x trace 3: the loss rises to {path.loss[1].max() / path.loss[1, 0]:.1f} times its start and falls again"
    )

    widths = (2, 4, 8, 16, 64)
    runs = {(2, width): UVRuns(UVModel(width), tuple(range(seeds)), steps=30) for width in widths}
    diagram = phase_diagram({cell: critical_constants(one, barrier=False) for cell, one in runs.items()})
    diagram.plot().write_html(out / "phases.html", include_plotlyjs="directory")
    for width in widths:
        measured = diagram.summary("c_loss", 2, width)
        print(f"width {width:3d}: c_loss measured {measured.mean:.3f}, exact average {uv_constants(width).c_loss:.3f}")
    print(diagram.sentence)

    uv_orbits().plot().write_html(out / "orbits.html", include_plotlyjs="directory")
    print("periods double at", *(f"{value:.4f}" for value in period_doublings(5)), f"and end at {chaos_begins():.4f}")
    print(f"figures in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
