"""What every page has: one file that opens offline, loads nothing, and draws its figures for light, dark and print."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from thalweg.report.figures import DARK, LIGHT

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser itself keeps the page from loading anything from elsewhere."""

OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
"""An option in a sentence, which should not be broken at its hyphens."""
WORDY = ' style="white-space:normal;text-align:left"'
"""Cells of words, where tables elsewhere hold numbers."""


def document(title: str, body: Iterable[str], version: str) -> str:
    """Return a whole page.

    Args:
        title: Its title, as plain text.
        body: What stands on it, as HTML; empty parts are left out.
        version: The thalweg that wrote it, as plain text.
    """
    from plotly.offline import get_plotlyjs

    folder = files("thalweg.report")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="generator" content="thalweg">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{(folder / 'page.css').read_text(encoding='utf-8')}</style>",
        "</head><body><main>",
        *body,
        f"<footer>Written by thalweg {html.escape(version)}. This page loads nothing from elsewhere.</footer></main>",
        f'<script type="application/json" id="colours">{to_json([LIGHT, DARK])}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{(folder / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part)


def figure_section(
    key: str, title: str, see: str, finding: str, figure: go.Figure, *, against: str = "the step", more: str = ""
) -> str:
    """Return a section with one figure; nothing where the figure is empty.

    Args:
        key: Short name of its own on the page.
        title: Its heading.
        see: What to see in it, whatever was measured.
        finding: What is to be seen this time; plain text, may be empty.
        figure: The figure.
        against: What its horizontal axis shows. Figures against the step are zoomed together.
        more: HTML that follows the figure, such as a table.
    """
    if not figure.data:
        return ""
    spec = figure.to_plotly_json()
    spec["layout"].pop("template", None)
    names = html.escape(", ".join(str(trace.name) for trace in figure.data if trace.showlegend is not False))
    told = f" <strong>{html.escape(finding)}</strong>" if finding else ""
    linked = ' data-axis="step"' if against == "the step" else ""
    return (
        f'<section aria-labelledby="h{key}"><h2 id="h{key}">{title}</h2>'
        f'<figure aria-labelledby="h{key}"><figcaption>{see}{told}</figcaption>'
        f'<div class="frame"><div class="plot" role="img" aria-label="{title}: {names}, against {against}" '
        f'data-spec="f{key}"{linked} style="height:{int(figure.layout.height)}px"></div></div></figure>'
        f'<script type="application/json" id="f{key}">{to_json(spec)}</script>{more}</section>'
    )


def section(key: str, title: str, text: str, more: str = "") -> str:
    """Return a section without a figure.

    Args:
        key: Its id on the page.
        title: Its heading.
        text: Its first paragraph, as HTML.
        more: HTML that follows, such as a table.
    """
    return f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2><p>{text}</p>{more}</section>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", wordy: bool = False) -> str:
    """Return a table; its first column holds names, the others numbers.

    Args:
        head: The names of the columns.
        rows: The cells of each row.
        caption: What is said above it; may be empty.
        wordy: Whether the cells hold words instead.
    """
    style = WORDY if wordy else ""
    top = "".join(f'<th scope="col"{style}>{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        f"{''.join(f'<td{style}>{html.escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="numbers"><table>{above}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """Return key numbers given as ``(label, value, remark)``."""
    inside = "".join(
        f'<div class="tile"><dt>{html.escape(label)}</dt>'
        f"<dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
        for label, value, remark in cells
    )
    return f'<dl class="tiles" aria-label="Key numbers">{inside}</dl>'


def caveat_list(notes: Iterable[str]) -> str:
    """Return sentences to keep in mind; nothing where there are none."""
    whole = r"<code>\g<0></code>"
    items = "".join(f"<li>{OPTION.sub(whole, html.escape(note))}</li>" for note in notes)
    return f'<ul class="caveats" aria-label="To keep in mind">{items}</ul>' if items else ""


def verdict_list(words: Iterable[tuple[str, str]]) -> str:
    """Return a few words each with its kind: good, warn, bad, accent or plain."""
    items = "".join(f'<li class="{kind}">{html.escape(text)}</li>' for text, kind in words)
    return f'<ul class="verdicts" aria-label="In short">{items}</ul>'


def to_json(value: Any) -> str:
    """Return JSON that may stand inside a script element."""
    from plotly.utils import PlotlyJSONEncoder

    return json.dumps(value, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
