"""The map of a run's own checkpoints, made for its page where that takes no time to speak of."""

from __future__ import annotations

from pathlib import Path

from thalweg.cli.map_options import Told
from thalweg.cli.map_work import LEAST, Opened, compute, facts, mapped, target
from thalweg.errors import ThalwegError
from thalweg.runs import Run, open_run
from thalweg.runs.analyses import analyses, read_analysis

BYTES = 256 << 20
"""Bytes of checkpoints up to which a page has the map made for it."""
CHECKPOINTS = 1000
"""Checkpoints up to which it does."""


def refresh(run: Run | str | Path) -> str | None:
    """Make the map of a run's checkpoints if there is none of these, and they are few and small.

    Args:
        run: A run, or the path of its folder.

    Returns:
        A sentence where checkpoints are there and no map of them is: that it would take long, or why it failed; None
        otherwise. A run's page does not depend on it.
    """
    from thalweg.runs.sources import trajectory
    from thalweg.trajectories.stored import KIND

    opened = run if isinstance(run, Run) else open_run(run)
    if len(opened.checkpoints) < LEAST:
        return None
    try:
        path = trajectory(opened.path)
        subject = Opened(path, opened, opened.manifest.name)
        if path.nbytes * len(path) > BYTES or len(path) > CHECKPOINTS:
            return f"The checkpoints are many. For their map: thalweg map {opened.path}"
        found = analyses(opened.path, KIND)
        before = read_analysis(found[-1][1], KIND).attrs if found else {}
        if before.get("fingerprint") == subject.fingerprint:
            return None
        made = _make(subject, opened)
        if before.get("automatic") == "yes" and found[-1][1] != made:
            found[-1][1].unlink(missing_ok=True)  # a run that goes on would gather one for each page
    except ThalwegError as error:
        return f"There is no map of the checkpoints: {error}"
    return None


def _make(subject: Opened, run: Run) -> Path:
    from thalweg.runs.files import storing
    from thalweg.trajectories.stored import save_map

    told = Told(source=(str(run.path),))
    where = target(told, subject)
    grams = compute(told, subject, where, keep=False)
    made = mapped(told, subject, grams)
    with storing(where.data.parent):
        where.data.parent.mkdir(exist_ok=True)
    return save_map(made, where.data, {**facts(told, subject, grams), "automatic": True})
