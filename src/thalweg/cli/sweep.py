"""``thalweg sweep``: how far a sweep is, and several of them made one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from thalweg.cli.console import complain, say, talk
from thalweg.cli.meter import duration

DESCRIPTION = """See how far a sweep is, also while it runs, or make one sweep of several folders.

examples:
  thalweg sweep status sweeps/first
  thalweg sweep status sweeps/first --traces      with the place where each failed cell raised
  thalweg sweep merge node1 node2 --out all       shares of one plan, computed on two machines
"""

SHOWN = 10
"""Failed cells that are listed without ``--traces``."""


@dataclass(frozen=True)
class Status:
    """Count the cells of a sweep, and list those that failed.

    Attributes:
        folder: Of the sweep.
        traces: Show every failed cell, and where it raised.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    traces: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(frozen=True)
class Merge:
    """Join the ledgers of folders that had shares of one plan.

    Attributes:
        folders: Of the sweeps; they are only read.
        out: Folder of the joined one.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path


Told = (
    Annotated[Status, tyro.conf.subcommand("status", prefix_name=False)]
    | Annotated[Merge, tyro.conf.subcommand("merge", prefix_name=False)]
)


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for, and say how far the sweep is."""
    told: Any = tyro.cli(Told, args=arguments, prog="thalweg sweep", description=DESCRIPTION)
    from thalweg.sweeps.merge import merge
    from thalweg.sweeps.run_result import open_sweep

    found = merge(told.folders, told.out) if isinstance(told, Merge) else open_sweep(told.folder)
    status = found.status()
    state = "a driver is at work" if status.running else "no driver is at work"
    say(f"{found.folder}: {found.function} over {found.plan!r}, {found.plan.version}")
    say(f"{status.done} done, {status.failed} failed, {status.pending} pending; {state}")
    if status.done:
        each = status.seconds / (status.done + status.failed)
        left = f", about {duration(each * status.pending)} of work left" if status.pending else ""
        say(f"{duration(status.seconds)} of work so far, {each:.3g} s a cell{left}")
    traces = isinstance(told, Status) and told.traces
    for record in found.failed if traces else found.failed[:SHOWN]:
        say(f"failed: {record.cell}: {record.error}")
        if traces:
            say(record.trace, talk(stderr=True))
    if len(found.failed) > SHOWN and not traces:
        complain(f"{len(found.failed) - SHOWN} more failed. --traces shows all of them.", "note")
    if not status.running:
        if status.pending:
            complain("sweep() with the same plan and folder computes what is pending.", "note")
        if status.failed:
            complain("sweep(..., retry_failed=True) computes again what failed.", "note")
    return 0
