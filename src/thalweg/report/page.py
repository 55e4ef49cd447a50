"""``report.html``: one page that opens offline and tells how a run went."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import xarray as xr

from thalweg.report import figures
from thalweg.report.words import headline, tiles

if TYPE_CHECKING:
    from thalweg.runs import Run


@dataclass(frozen=True)
class _Section:
    title: str
    see: str
    draw: Callable[[xr.Dataset], go.Figure]


SECTIONS = (
    _Section(
        "Curvature against the limit of stability",
        "The solid lines are the leading eigenvalues of the Hessian as the optimizer sees it. Above the dashed line a "
        "quadratic would make this optimizer diverge. Rising towards it is progressive sharpening; hovering at it, "
        "the edge of stability.",
        figures.spectrum_figure,
    ),
    _Section(
        "Loss",
        "Below the limit of stability full-batch descent lowers the loss at every step. At the edge it goes up and "
        "down from step to step, and falls only over longer times.",
        figures.loss_figure,
    ),
    _Section(
        "Oscillation",
        "A cosine near 1 means that successive updates agree, near -1 that they bounce between two walls. Below, the "
        "share of the update along the leading eigenvectors: at the edge it changes sign at every step.",
        figures.oscillation_figure,
    ),
    _Section(
        "Distance travelled",
        "The path is as long as all steps together; the distance is what remains of it as the crow flies. The wider "
        "the gap, the more of the motion cancelled.",
        figures.travel_figure,
    ),
    _Section(
        "Accuracy of the eigenvalues",
        "An eigenvalue of the Hessian lies within the residual of each value shown above; usually it is far closer.",
        figures.accuracy_figure,
    ),
    _Section(
        "Cost",
        "Products with the Hessian per measurement, and the seconds spent on training and on measuring so far.",
        figures.cost_figure,
    ),
)


def write_report(run: Run | str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    The page is one file of about 5 MB: Plotly's script is inside, so that it opens without a network. It may be
    written while the run is going on.

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
        >>> run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=3, folder="runs/doc")
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
    write_text(target, render(data, asdict(opened.manifest)))
    return target


def render(data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    """Return the page as text.

    Args:
        data: A run's data, with its attributes.
        manifest: Its manifest as a mapping.
    """
    from plotly.offline import get_plotlyjs

    folder = files("thalweg.report")
    name = html.escape(str(manifest.get("name", "run")))
    plots = [_section(number, section, data) for number, section in enumerate(SECTIONS)]
    error = manifest.get("error")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="generator" content="thalweg">',
        '<link rel="icon" href="data:,">',
        f"<title>{name} - thalweg</title>",
        f"<style>{(folder / 'page.css').read_text(encoding='utf-8')}</style>",
        f"<script>{get_plotlyjs()}</script>",
        "</head><body><main>",
        f'<header><p class="kind">Run report</p><h1>{name}</h1><p class="sub">{_subtitle(manifest)}</p></header>',
        f'<p class="bad" role="alert">{html.escape(str(error))}</p>' if error else "",
        f'<p class="headline">{html.escape(" ".join(headline(data)))}</p>',
        _tiles(data),
        *plots,
        _provenance(data, manifest),
        f"<footer>Written by thalweg {html.escape(str(manifest.get('packages', {}).get('thalweg', '')))}.</footer>",
        f"</main><script>{(folder / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _subtitle(manifest: Mapping[str, Any]) -> str:
    config, problem = manifest.get("config", {}), manifest.get("problem", {})
    data, model = config.get("data", {}).get("name"), config.get("model", {}).get("name")
    size = problem.get("dimension") or problem.get("parameters")
    words = [
        f"{model} on {data}" if model and data else "",
        f"{size:,} parameters" if isinstance(size, int) else "",
        f"{problem['samples']:,} samples" if isinstance(problem.get("samples"), int) else "",
        str(manifest.get("rule", "")),
    ]
    return html.escape(" · ".join(word for word in words if word))


def _tiles(data: xr.Dataset) -> str:
    cells = [
        f'<div class="tile"><dt>{html.escape(label)}</dt>'
        f"<dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
        for label, value, remark in tiles(data)
    ]
    return f'<dl class="tiles" aria-label="Key numbers">{"".join(cells)}</dl>'


def _section(number: int, section: _Section, data: xr.Dataset) -> str:
    figure = section.draw(data)
    if not figure.data:
        return ""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    text = json.dumps(spec, cls=_encoder()).replace("<", "\\u003c")
    height = int(figure.layout.height)
    return (
        f'<section aria-labelledby="h{number}"><h2 id="h{number}">{section.title}</h2><p>{section.see}</p>'
        f'<figure role="img" aria-label="{section.title}">'
        f'<div class="plot" data-spec="f{number}" style="height:{height}px"></div></figure>'
        f'<script type="application/json" id="f{number}">{text}</script></section>'
    )


def _encoder() -> type[json.JSONEncoder]:
    from _plotly_utils.utils import PlotlyJSONEncoder

    encoder: type[json.JSONEncoder] = PlotlyJSONEncoder
    return encoder


def _provenance(data: xr.Dataset, manifest: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = [
        ("State", f"{data.attrs.get('state', manifest.get('state'))}, step {int(data['step'].max()):,}"),
        ("Created", manifest.get("created", "")),
    ]
    for title, key in (
        ("Problem", "problem"),
        ("Setting", "config"),
        ("Seed", "seeds"),
        ("Fingerprint", "fingerprints"),
        ("Version", "packages"),
        ("Machine", "machine"),
    ):
        rows += [(f"{title}: {name}", value) for name, value in _leaves(manifest.get(key, {}))]
    for event in manifest.get("resumed", []):
        rows.append(("Resumed", f"at step {event.get('step')}, {event.get('moment', event.get('at', ''))}"))
    cells = "".join(
        f'<tr><th scope="row">{html.escape(str(label))}</th><td>{html.escape(str(value))}</td></tr>'
        for label, value in rows
    )
    return (
        '<section aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>'
        "<p>What it takes to make this run again.</p>"
        f"<table>{cells}</table></section>"
    )


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [
            row for key, child in value.items() for row in _leaves(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if value is None else [(prefix, value)]
