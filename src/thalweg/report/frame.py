"""What the pages of single results share: the head, the short answer above the sections, provenance, the file."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.report.shell import caveat_list, document, tiles, verdict_list


def framed(
    kind: str,
    name: str,
    under: Iterable[str],
    sections: Iterable[str],
    *,
    verdicts: Iterable[tuple[str, str]],
    caveats: Iterable[str],
    numbers: Iterable[tuple[str, str, str]],
    version: str,
    headline: str | None = None,
    drawn: str = "The figures need",
) -> str:
    """Return a whole page: what it is of, the short answer, and then the sections that it rests on.

    Args:
        kind: What kind of page it is, such as ``"Spectrum"``.
        name: Its heading, as plain text.
        under: Facts below the heading, as plain text; empty ones are left out.
        sections: The sections, as HTML; empty ones are left out.
        verdicts: A few words each with its kind, as `verdict_list` takes them.
        caveats: Sentences to keep in mind.
        numbers: Key numbers, as `tiles` takes them.
        version: The thalweg whose numbers these are.
        headline: The answer in sentences, as plain text; None where the first section gives it.
        drawn: Begins the sentence for a browser without JavaScript.
    """
    told = html.escape(" · ".join(word for word in under if word))
    body = [
        f'<header><p class="kind">{kind}</p><h1>{html.escape(name)}</h1><p class="sub">{told}</p>',
        f"{verdict_list(verdicts)}</header>",
        "" if headline is None else f'<p class="headline">{html.escape(headline)}</p>',
        caveat_list(caveats),
        tiles(numbers),
        f"<noscript><p>{drawn} JavaScript; everything else is text.</p></noscript>",
        *sections,
    ]
    return document(f"{name} · {kind.lower()}", body, version)


def plain(value: object) -> str:
    """Return a fact as text: whole numbers with separators, long texts cut."""
    return f"{int(value):,}" if isinstance(value, (int, np.integer)) else str(value)[:2000]


def provenance_section(
    facts: Mapping[Any, Any], names: Iterable[tuple[str, str]], write: Callable[[object], str] = plain
) -> str:
    """Return the table of where numbers come from, as a section; facts that are not set are left out.

    Args:
        facts: Facts by key, such as the attributes of a data set.
        names: Which of them to show, and under which name, in order.
        write: Writes one.
    """
    rows = "".join(
        f'<tr><th scope="row">{html.escape(words)}</th><td>{html.escape(write(facts[key]))}</td></tr>'
        for key, words in names
        if facts.get(key) not in (None, "")
    )
    return (
        '<section class="provenance" aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>\n'
        "<p>Where these numbers come from, and what it takes to compute them again.</p>\n"
        f"<table>{rows}</table></section>"
    )


def beside(path: str | Path, out: str | Path | None) -> Path:
    """Return where the page of a file goes: to ``out``, by default beside the file, ending in ``.html``."""
    return Path(out) if out is not None else Path(path).with_suffix(".html")


def write_page(out: str | Path, page: str) -> Path:
    """Write a page whole or not at all, and return its path."""
    from thalweg.runs.files import write_text

    write_text(Path(out), page)
    return Path(out)
