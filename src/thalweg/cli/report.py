"""``thalweg report``: write the page of a run, again or elsewhere."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from thalweg.cli.console import complain, say

DESCRIPTION = """Write the one-page report of a run. It opens offline, and may be made while the run goes on.

examples:
  thalweg report runs/quickstart
  thalweg report runs/quickstart --out page.html --open
"""


@dataclass(frozen=True)
class Report:
    """What ``thalweg report`` is told.

    Attributes:
        run: The run folder.
        out: Where to write the page (default: report.html in the run folder).
        open: Show it in the browser.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    open: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def main(arguments: Sequence[str]) -> int:
    """Write the report and say where it is."""
    told = tyro.cli(Report, args=arguments, prog="thalweg report", description=DESCRIPTION)
    from thalweg.cli.map_run import refresh
    from thalweg.report import write_report

    if note := refresh(told.run):
        complain(note, "note")
    page = write_report(told.run, told.out)
    say(f"Report: {page}")
    if told.open and not webbrowser.open(page.resolve().as_uri()):
        complain("No browser was found here. Open the file by hand.", "note")
    return 0
