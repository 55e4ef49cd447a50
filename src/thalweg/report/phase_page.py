"""The page of a phase diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thalweg.phases.diagram import PhaseDiagram
from thalweg.phases.diagram_stored import open_diagram
from thalweg.phases.diagram_words import opening, told
from thalweg.report.frame import beside, framed, provenance_section, write_page
from thalweg.report.numbers import number
from thalweg.report.shell import figure_section, table

FACTS = (
    ("model", "model"),
    ("init", "initialisation"),
    ("data", "data"),
    ("samples", "samples"),
    ("loss", "loss"),
    ("batch_size", "samples of a step"),
    ("steps", "steps of a run"),
    ("dtype", "dtype"),
    ("search", "search"),
    ("grid_step", "grid step in log2 c"),
    ("window", "window"),
    ("eps_sharp", "rise of sharpness that does not count"),
    ("tol", "tolerance of the sharpness"),
    ("cell_seconds", "seconds of work"),
    ("engine", "engine"),
    ("created", "created"),
    ("thalweg", "thalweg"),
    ("schema", "schema of the file"),
)
"""What the table of provenance shows, and under which name."""

DIAGRAM = (
    "Each network is trained for a few steps at the learning rate c / (sharpness at its start), for many c. Read a "
    "row from left to right: at first loss and sharpness both fall; from the squares on the loss rises before it falls "
    "(a catapult), from the triangles on the sharpness rises too, and from the diamonds on training diverges. Crosses "
    "mark where the loss first rises on the straight line to where training went. The dashed line at 2 is where a "
    "quadratic loss would turn from falling to rising. Markers are means over seeds, bars the quartiles; narrower "
    "networks stand higher. Hover over a marker for the numbers of its cell."
)
RATIO = "All cells together, against depth / width, with monotone fits through the means."
RUNS = (
    "Every short run of one cell, each a dot: its largest loss after the start over that at the start, and its "
    "sharpness likewise as far as it was measured: at every step by --mode grid, else mostly after the first alone, "
    "and not where it was seen to rise. Above the line at 1 it rose. Choose the cell above the figure. Runs that "
    "diverged are left out; a search by bisection has few runs far from the constants."
)
SATURATION = (
    "The sharpness after the transient, at equal gradient-flow time, over that at the start. Stars mark c_crit, where "
    "the mean over seeds bends down most; where it depends on the draw of seeds it is not marked."
)
SHORT = {
    "opens": ("sharpness reduction opens", "accent"),
    "closed": ("sharpness reduction closed", "plain"),
    "open": ("sharpness reduction open", "accent"),
    "unclear": ("no clear trend", "warn"),
    "unknown": ("the loss rises nowhere", "warn"),
}


def write_phase_page(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a phase diagram.

    Args:
        path: The netCDF file that ``thalweg phase`` or `PhaseDiagram.save` wrote.
        out: Where to write; default beside it, ending in ``.html``.

    Returns:
        The path of the page, one file that opens without a network.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
        StorageError: The page cannot be written; nothing is left behind.
    """
    return write_page(beside(path, out), render_phase(open_diagram(path)))


def render_phase(diagram: PhaseDiagram) -> str:
    """Return the page as text."""
    facts = diagram.data.attrs
    sections = [
        figure_section("diagram", "Phase diagram", DIAGRAM, "", diagram.plot(), against="c", more=_constants(diagram)),
        *(
            [figure_section("ratio", "Against depth / width", RATIO, "", diagram.plot("ratio"), against="c")]
            if len(diagram.cells) > 1
            else []
        ),
        figure_section("runs", "The runs of one cell", RUNS, "", diagram.plot_runs(), against="c"),
        figure_section("saturation", "After the transient", SATURATION, "", diagram.plot_saturation(), against="c"),
        provenance_section(facts, FACTS, _plain),
    ]
    return framed(
        "Phase diagram",
        str(facts.get("name", "phase diagram")),
        _under(diagram),
        sections,
        headline=diagram.sentence,
        verdicts=_verdicts(diagram),
        caveats=caveats(diagram),
        numbers=_tiles(diagram),
        version=str(facts.get("thalweg", "")),
    )


def caveats(diagram: PhaseDiagram) -> list[str]:
    """Sentences to keep in mind about a diagram."""
    notes = []
    data, facts = diagram.data, diagram.data.attrs
    if diagram.missing:
        some = ", ".join(f"depth {d} width {w} seed {s}" for d, w, s in diagram.missing[:3])
        more = f" and {len(diagram.missing) - 3} more" if len(diagram.missing) > 3 else ""
        notes.append(f"Not measured: {some}{more}.")
    if data.sizes["seed"] < 3:
        notes.append(f"With {data.sizes['seed']} seed{'s' * (data.sizes['seed'] > 1)}, the bars say little.")
    beyond = [
        f"{name} of {diagram.beyond(name, d, w)} seeds at depth {d}, width {w}"
        for name in diagram.constants
        for d, w in diagram.cells
        if diagram.beyond(name, d, w)
    ]
    if beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        notes.append(f"Beyond the grid, and left out of means: {', '.join(beyond[:3])}{more}.")
    if "fallback" in data and (doubts := int(np.nansum(data["fallback"].values))):
        notes.append(
            f"{doubts} of {int(np.isfinite(data['fallback'].values).sum())} constants do not turn once: the first turn "
            "was found by trying every learning rate."
        )
    if facts.get("loss") == "cross_entropy" and facts.get("window") == "paper":
        notes.append(
            "With cross-entropy the sharpness rises within the first steps for reasons that have nothing to do with a "
            "catapult: --window catapult counts only the steps of one."
        )
    return notes


def _under(diagram: PhaseDiagram) -> list[str]:
    facts = diagram.data.attrs
    return [
        f"depth {', '.join(map(str, diagram.depths))}",
        f"width {', '.join(map(str, diagram.widths))}",
        f"{diagram.data.sizes['seed']} seeds",
        f"{facts['init']} initialisation" if "init" in facts else "",
        str(facts.get("loss", "")).replace("_", " "),
        f"{facts['steps']} steps" if "steps" in facts else "",
    ]


def _verdicts(diagram: PhaseDiagram) -> list[tuple[str, str]]:
    words = [SHORT[opening(diagram)]]
    words.append(("cells are missing", "warn") if diagram.missing else ("complete", "good"))
    return words


def _tiles(diagram: PhaseDiagram) -> list[tuple[str, str, str]]:
    labels = {
        "c_loss": "The loss first rises at c",
        "c_sharp": "The sharpness rises at c",
        "c_max": "Training diverges at c",
    }
    found = []
    for name, label in labels.items():
        if name not in diagram.constants:
            continue
        means = [diagram.summary(name, *cell).mean for cell in diagram.cells]
        means = [mean for mean in means if np.isfinite(mean)]
        if means:
            found.append((label, _range(means), "means of cells"))
    start = [float(np.nanmean(diagram.data["sharpness0"].sel(depth=d, width=w).values)) for d, w in diagram.cells]
    found.append(("Sharpness at the start", _range(start), "so rate = c / sharpness"))
    return found


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} – {high}"


def _constants(diagram: PhaseDiagram) -> str:
    rows = []
    for depth, width in diagram.cells:
        start = float(np.nanmean(diagram.data["sharpness0"].sel(depth=depth, width=width).values))
        cells = [told(diagram, name, depth, width) for name in diagram.constants]
        first = diagram.summary("c_loss", depth, width).mean if "c_loss" in diagram.constants else np.nan
        rate = number(first / start) if np.isfinite(first) else "–"
        rows.append((f"depth {depth}, width {width}", number(start), *cells, rate))
    head = ("network", "first sharpness", *diagram.constants, "rate at c_loss")
    return table(head, rows)


def _plain(value: object) -> str:
    return f"{float(value):.6g}" if isinstance(value, (float, np.floating)) else str(value)
