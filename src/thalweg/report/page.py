"""``report.html``: one page that opens offline and tells how a run went."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import xarray as xr

from thalweg.report import figures, findings
from thalweg.report.provenance import provenance
from thalweg.report.setting import mapping, setting
from thalweg.report.words import caveats, headline, tiles, verdicts

if TYPE_CHECKING:
    from thalweg.runs import Run
    from thalweg.runs.metrics import Event

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser itself keeps the page from loading anything from elsewhere."""


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
    write_text(target, render(data, asdict(opened.manifest), opened.events))
    return target


def render(data: xr.Dataset, manifest: Mapping[str, Any], events: Iterable[Event] = ()) -> str:
    """Return the page as text.

    Args:
        data: A run's data of at least one step, with its attributes.
        manifest: Its manifest as a mapping.
        events: What happened on the way.
    """
    from plotly.offline import get_plotlyjs

    folder = files("thalweg.report")
    name = html.escape(str(manifest.get("name", "run")))
    version = html.escape(str(mapping(manifest.get("packages")).get("thalweg", "")))
    state = str(data.attrs.get("state", manifest.get("state", "unknown")))
    error = manifest.get("error")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="generator" content="thalweg">',
        '<link rel="icon" href="data:,">',
        f"<title>{name} · run report</title>",
        f"<style>{(folder / 'page.css').read_text(encoding='utf-8')}</style>",
        "</head><body><main>",
        f'<header><p class="kind">Run report</p><h1>{name}</h1><p class="sub">{_subtitle(manifest)}</p>',
        f"{_verdicts(data, manifest)}</header>",
        f'<p class="bad" role="alert">{html.escape(str(error))}</p>' if error else "",
        f'<p class="headline">{html.escape(" ".join(headline(data, manifest)))}</p>',
        _caveats(data, manifest),
        _tiles(data, manifest),
        "<noscript><p>The figures need JavaScript; everything else is text.</p></noscript>",
        *(_section(position, section, data, manifest) for position, section in enumerate(SECTIONS)),
        '<section aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>',
        "<p>Where these numbers come from, and what it takes to compute them again.</p>",
        provenance(manifest, state, int(data["step"].max()), events),
        "</section>",
        f"<footer>Written by thalweg {version}. This page loads nothing from elsewhere.</footer></main>",
        f'<script type="application/json" id="colours">{_json([figures.LIGHT, figures.DARK])}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{(folder / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part)


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


def _verdicts(data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    items = "".join(f'<li class="{kind}">{html.escape(words)}</li>' for words, kind in verdicts(data, manifest))
    return f'<ul class="verdicts" aria-label="In short">{items}</ul>'


def _caveats(data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in caveats(data, manifest))
    return f'<ul class="caveats" aria-label="To keep in mind">{notes}</ul>' if notes else ""


def _tiles(data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    cells = [
        f'<div class="tile"><dt>{html.escape(label)}</dt>'
        f"<dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
        for label, value, remark in tiles(data, manifest)
    ]
    return f'<dl class="tiles" aria-label="Key numbers">{"".join(cells)}</dl>'


def _section(position: int, section: Section, data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    if section.draw is figures.spectrum_figure:
        figure = figures.spectrum_figure(data, threshold=setting(manifest).comparable)
    else:
        figure = section.draw(data)
    if not figure.data:
        return ""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    finding = html.escape(section.find(data, manifest))
    names = html.escape(", ".join(str(trace.name) for trace in figure.data))
    return (
        f'<section aria-labelledby="h{position}"><h2 id="h{position}">{section.title}</h2>'
        f'<figure aria-labelledby="h{position}"><figcaption>{section.see}'
        f"{f' <strong>{finding}</strong>' if finding else ''}</figcaption>"
        f'<div class="frame"><div class="plot" role="img" aria-label="{section.title}: {names}, against the step" '
        f'data-spec="f{position}" style="height:{int(figure.layout.height)}px"></div></div></figure>'
        f'<script type="application/json" id="f{position}">{_json(spec)}</script></section>'
    )


def _json(value: Any) -> str:
    """Return JSON that may stand inside a script element."""
    from plotly.utils import PlotlyJSONEncoder

    return json.dumps(value, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
