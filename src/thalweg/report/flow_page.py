"""The page of a forecast, and its sections in the page of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from thalweg.errors import ThalwegError
from thalweg.flows.result import FlowResult
from thalweg.flows.stored import KIND, open_flow
from thalweg.report import flow_figures, flow_words
from thalweg.report.flow_facts import comparison, first_step, sigma_of
from thalweg.report.frame import beside, framed, provenance_section, write_page
from thalweg.report.numbers import fixed, number, seconds, share
from thalweg.report.shell import figure_section, section, table

SEE = {
    "loss": "Thin: the loss of the run, which goes up and down across the valley. The flow predicts its average over "
    "time, which is to be compared with the smoothed loss, and lies lower itself: the difference is the oscillation. "
    "The dotted line is where the flow becomes critical.",
    "eigenvalues": "The curvature along the central flow as the optimizer sees it. The oscillation holds each "
    "eigenvalue at the limit that it has reached; without it they would go on rising. "
    "Below the limit the flow looks at them now and then, more often the nearer they come, and draws a line between.",
    "variance": "Along each critical direction, strongest first: the variance that the flow predicts, and the squared "
    "displacement of the run from the flow. Both are in the metric of the optimizer; the prediction is averaged over "
    "neighbouring steps, the measurement over the width of the smoothing.",
    "distance": "How far each flow is from the run, over how far the run has come. The stable flow is what the "
    "optimizer would follow if its steps were small.",
}
TITLES = {
    "loss": "Predicted loss",
    "eigenvalues": "Effective eigenvalues",
    "variance": "Oscillation",
    "distance": "Distance from the run",
}
DRAW = {
    "loss": flow_figures.loss_figure,
    "eigenvalues": flow_figures.eigenvalue_figure,
    "variance": flow_figures.variance_figure,
    "distance": flow_figures.distance_figure,
}

FACTS = (
    ("source", "source"),
    ("optimizer", "update rule"),
    ("run_optimizer", "update rule of the run"),
    ("flow_mode", "mode"),
    ("processes", "processes"),
    ("warm_start", "steps of the rule before time 0"),
    ("smoothing", "width of the smoothing"),
    ("model", "model"),
    ("dimension", "parameters"),
    ("samples", "samples"),
    ("dtype", "dtype"),
    ("device", "device"),
    ("seed", "seed"),
    ("fingerprint_model", "fingerprint of the model"),
    ("fingerprint_data", "fingerprint of the data"),
    ("stop", "ended because"),
    ("created", "created"),
    ("thalweg", "thalweg"),
    ("torch", "torch"),
    ("schema", "schema of the file"),
)
"""What the table of provenance shows, and under which name."""

NUMBERS = {
    "onset": ("critical from time", number),
    "loss_error": ("predicted average loss, mean relative error", share),
    "loss_error_max": ("the same, largest", share),
    "loss_error_without": ("loss at the flow without its oscillation, mean relative error", share),
    "squared_gradient_error": ("predicted average squared gradient, mean relative error", share),
    "distance": ("central flow, distance from the run at the end over distance travelled", share),
    "stable_distance": ("stable flow, the same", share),
    "midpoint_distance": ("central flow, distance from the midpoints of the run over distance travelled", share),
    "midpoint_loss_error": ("loss at the flow against loss at the midpoints, mean relative error", share),
    "variance_ratio": ("variance, measured over predicted", fixed),
    "variance_correlation": ("correlation of measured and predicted variance, smoothed", fixed),
    "largest_eigenvalue": ("largest effective eigenvalue after the onset", number),
}
"""How the numbers of a comparison are called and written."""


def write_flow_page(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a forecast.

    Args:
        path: The netCDF file that ``thalweg flow`` wrote.
        out: Where to write; default beside it, ending in ``.html``.

    Returns:
        The path of the page, one file that opens without a network.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
        StorageError: The page cannot be written; nothing is left behind.
    """
    return write_page(beside(path, out), render_flow(open_flow(path)))


def newest_flow(run: Path) -> FlowResult | None:
    """Return the forecast from the latest step in a run folder.

    None where there is none that can be read: the run's own page does not depend on it.
    """
    from thalweg.runs.analyses import analyses

    try:
        found = analyses(run, KIND)
        return open_flow(found[-1][1]) if found else None
    except ThalwegError:
        return None


def render_flow(result: FlowResult) -> str:
    """Return the page as text.

    Args:
        result: A forecast.
    """
    facts = result.data.attrs
    return framed(
        "Forecast",
        str(facts.get("name", "central flow")),
        _under(result),
        [*_sections(result, ""), _comparison(result), _cost(result), provenance_section(facts, FACTS, _plain)],
        headline=" ".join(flow_words.headline(result)),
        verdicts=flow_words.verdicts(result),
        caveats=flow_words.caveats(result),
        numbers=flow_words.tiles(result),
        version=str(facts.get("thalweg", "")),
    )


def flow_sections(result: FlowResult) -> list[str]:
    """Return the sections that a run's page shows of a forecast."""
    told = [*flow_words.headline(result), *flow_words.caveats(result)]
    return [
        *_sections(result, f", forecast from step {first_step(result):,}", " ".join(told)),
        _comparison(result),
        _cost(result),
    ]


def _sections(result: FlowResult, where: str, told: str = "") -> list[str]:
    found = flow_words.figure_words(result)
    return [
        figure_section(
            f"flow-{key}",
            f"{TITLES[key]}{where}",
            SEE[key],
            f"{told} {found[key]}".strip() if key == "loss" else found[key],
            draw(result),
        )
        for key, draw in DRAW.items()
    ]


def _under(result: FlowResult) -> list[str]:
    facts = result.data.attrs
    return [
        str(facts.get("source", "")),
        str(facts.get("optimizer", "")),
        f"{result.data.sizes['time']:,} units of time",
        f"{result.mode} mode",
    ]


def _comparison(result: FlowResult) -> str:
    found = comparison(result)
    if found is None:
        return ""
    values = dataclasses.asdict(found)
    rows = [
        (words, write(values[name]))
        for name, (words, write) in NUMBERS.items()
        if name in values and math.isfinite(values[name])
    ]
    lines = "".join(f'<tr><th scope="row" style="width:72%">{words}</th><td>{value}</td></tr>' for words, value in rows)
    told = (
        "From the onset on, or over all times where there is none. Losses and squared gradients are smoothed by a "
        f"Gaussian of width {number(sigma_of(result))} steps before they are compared."
    )
    return section("comparison", "Comparison with the run", told, f"<table>{lines}</table>")


def _cost(result: FlowResult) -> str:
    time, spent = result.data.sizes["time"], result.data.attrs.get("seconds")
    rows = [(name, f"{cost:.2f}", f"{cost * time:,.0f}") for name, cost in result.cost.items()]
    told = (
        "In gradients over all data, which every other product is counted in by what it costs. The run itself takes "
        "one a step." + (f" All processes together took {seconds(float(spent))}." if spent is not None else "")
    )
    return section("flow-cost", "Cost of the forecast", told, table(("process", "a unit of time", "in all"), rows))


def _plain(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)[:2000]
