"""``report.html``: one page that opens offline and tells how a run went."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import xarray as xr

from thalweg.report import figures, findings
from thalweg.report.flow_page import flow_sections, newest_flow
from thalweg.report.provenance import provenance
from thalweg.report.regimes_page import regimes_sections
from thalweg.report.setting import mapping, setting
from thalweg.report.shell import caveat_list, document, figure_section, verdict_list
from thalweg.report.shell import tiles as tile_list
from thalweg.report.spectrum_page import newest_analysis, spectrum_sections
from thalweg.report.stationarity_page import stationarity_sections
from thalweg.report.trajectory_page import newest_map, run_sections
from thalweg.report.words import caveats, headline, tiles, verdicts

if TYPE_CHECKING:
    from thalweg.flows.result import FlowResult
    from thalweg.runs import Run
    from thalweg.runs.metrics import Event
    from thalweg.trajectories.map import TrajectoryMap


@dataclass(frozen=True)
class Section:
    """One figure of the page.

    Attributes:
        title: Its heading.
        see: What to see in it, for any run.
        draw: Makes the figure.
        find: Says what this run shows in it.
    """

    title: str
    see: str
    draw: Callable[[xr.Dataset], go.Figure]
    find: Callable[[xr.Dataset, Mapping[str, Any]], str]


SECTIONS = (
    Section(
        "Curvature against the limit of stability",
        "Solid: the leading eigenvalues of the Hessian as the optimizer sees it. Dashed: the largest one at which its "
        "steps on a quadratic do not grow. Rising towards it is progressive sharpening; hovering at it, the edge of "
        "stability.",
        figures.spectrum_figure,
        findings.spectrum_finding,
    ),
    Section(
        "Loss",
        "Well below the limit of stability, full-batch descent lowers the loss at every step. At the edge the loss "
        "goes up and down from step to step, and falls only over longer times.",
        figures.loss_figure,
        findings.loss_finding,
    ),
    Section(
        "Oscillation",
        "Top: a cosine near 1 means that successive updates agree, near −1 that they bounce between two walls. Middle: "
        "how far each update moves along the leading eigenvectors; a band around zero is an oscillation. Bottom: the "
        "size of that, on a scale where what grows at a constant rate is a straight line.",
        figures.oscillation_figure,
        findings.oscillation_finding,
    ),
    Section(
        "Distance travelled",
        "The path is as long as all updates together; the distance is what is left of it as the crow flies. The wider "
        "the gap, the more of the motion cancelled.",
        figures.travel_figure,
        findings.travel_finding,
    ),
    Section(
        "Gradient and update",
        "How steep the loss is where the optimizer stands, and how far each update goes.",
        figures.gradient_figure,
        lambda data, manifest: "",
    ),
    Section(
        "Accuracy of the eigenvalues",
        "An eigenvalue lies within the residual of each value shown above, up to rounding; usually it is far closer.",
        figures.accuracy_figure,
        findings.accuracy_finding,
    ),
    Section(
        "Cost",
        "Above: products with the Hessian at each measurement. Below: the time spent on training and on measuring.",
        figures.cost_figure,
        findings.cost_finding,
    ),
)


def write_report(run: Run | str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Where ``thalweg spectrum``, ``thalweg flow`` or ``thalweg map`` has left an analysis in the folder, the one of the
    latest step is part of the page.
    The page is one file of about 5 MB: Plotly's script is inside, so that it opens without a network. It may be
    written while the run is going on. It appears whole or not at all.

    Args:
        run: A run, or the path of its folder.
        out: Where to write; default ``report.html`` in the run folder.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: The path is no run folder, or holds no step yet.
        StorageError: The page cannot be written; nothing is left behind.

    Example:
        >>> import torch, thalweg as tw
        >>> model = torch.nn.Linear(2, 1)
        >>> problem = tw.Problem(model, torch.nn.MSELoss(), (torch.randn(9, 2), torch.randn(9, 1)))
        >>> run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=3)
        >>> write_report(run).name
        'report.html'
    """
    from thalweg.errors import RunFolderError, explain
    from thalweg.runs import open_run
    from thalweg.runs.files import write_text

    opened = open_run(run) if isinstance(run, (str, Path)) else run
    data = opened.data
    if not data.sizes.get("step", 0):
        raise RunFolderError(
            explain(f"The run {opened.path} holds no step yet", "there is nothing to draw", "Wait, or resume the run")
        )
    target = Path(out) if out is not None else opened.path / "report.html"
    spectrum, flow = newest_analysis(opened.path), newest_flow(opened.path)
    path = newest_map(opened.path)
    write_text(target, render(data, asdict(opened.manifest), opened.events, spectrum, flow, path))
    return target


def render(
    data: xr.Dataset,
    manifest: Mapping[str, Any],
    events: Iterable[Event] = (),
    spectrum: xr.Dataset | None = None,
    flow: FlowResult | None = None,
    trajectory: TrajectoryMap | None = None,
) -> str:
    """Return the page as text.

    Args:
        data: A run's data of at least one step, with its attributes.
        manifest: Its manifest as a mapping.
        events: What happened on the way.
        spectrum: The curvature at one step, as ``thalweg spectrum`` measured it.
        flow: A forecast from one step, as ``thalweg flow`` made it.
        trajectory: The map of the checkpoints, as ``thalweg map`` made it.
    """
    name = str(manifest.get("name", "run"))
    state = str(data.attrs.get("state", manifest.get("state", "unknown")))
    error = manifest.get("error")
    body = [
        f'<header><p class="kind">Run report</p><h1>{html.escape(name)}</h1><p class="sub">{_subtitle(manifest)}</p>',
        f"{verdict_list(verdicts(data, manifest))}</header>",
        f'<p class="bad" role="alert">{html.escape(str(error))}</p>' if error else "",
        f'<p class="headline">{html.escape(" ".join(headline(data, manifest)))}</p>',
        caveat_list(caveats(data, manifest)),
        tile_list(tiles(data, manifest)),
        "<noscript><p>The figures need JavaScript; everything else is text.</p></noscript>",
        *(_section(position, section, data, manifest) for position, section in enumerate(SECTIONS)),
        *regimes_sections(data, manifest),
        *stationarity_sections(data, manifest),
        *(spectrum_sections(spectrum) if spectrum is not None else ()),
        *(flow_sections(flow) if flow is not None else ()),
        *(run_sections(trajectory) if trajectory is not None else ()),
        '<section class="provenance" aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>',
        "<p>Where these numbers come from, and what it takes to compute them again.</p>",
        provenance(manifest, state, int(data["step"].max()), events),
        "</section>",
    ]
    return document(f"{name} · run report", body, str(mapping(manifest.get("packages")).get("thalweg", "")))


def _subtitle(manifest: Mapping[str, Any]) -> str:
    config, problem = mapping(manifest.get("config")), mapping(manifest.get("problem"))
    data, model = mapping(config.get("data")).get("name"), mapping(config.get("model")).get("name")
    size, samples = problem.get("parameters"), problem.get("samples")
    words = [
        f"{model} on {data}" if model and data else str(problem.get("model", "")),
        f"{size:,} parameters" if isinstance(size, int) else "",
        f"{samples:,} samples" if isinstance(samples, int) else "",
        str(manifest.get("rule", "")),
    ]
    return html.escape(" · ".join(word for word in words if word))


def _section(position: int, section: Section, data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    if section.draw is figures.spectrum_figure:
        figure = figures.spectrum_figure(data, threshold=setting(manifest).comparable)
    else:
        figure = section.draw(data)
    return figure_section(str(position), section.title, section.see, section.find(data, manifest), figure)
