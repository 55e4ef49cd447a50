"""Ledgers of one plan, computed in several folders, become one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.ledger import NAME, Ledger, Record, keeping
from thalweg.sweeps.run_cell import Answer, Item
from thalweg.sweeps.run_result import Sweep, open_sweep

SHOWN = 5
"""Conflicts that are named."""


def merge(folders: Sequence[str | Path], out: str | Path) -> Sweep:
    """Join the ledgers of several folders, as of machines that had a share of the plan each.

    A cell that is done in one folder is done; one that failed everywhere where it was tried has failed, with the last
    error. A cell that is done in several must have the same results in all of them, bit for bit.

    Args:
        folders: Of the ledgers; they are only read, and may be in use.
        out: Folder of the new one.

    Returns:
        The joined sweep, which `sweep` can go on with.

    Raises:
        InvalidInput: Plans, functions or versions differ, results of a cell contradict each other, or ``out`` has a
            ledger.
        RunFolderError: A folder has no ledger, or a damaged one.
        StorageError: ``out`` cannot be written.
    """
    target = Path(out)
    if not folders or (target / NAME).exists():
        raise InvalidInput(
            explain(
                f"Asked to merge {len(folders)} folders into {out}",
                f"{out} has a ledger" if folders else "there is nothing to merge",
                "Name one folder or more, and a new one for the result",
            )
        )
    ledgers = []
    try:
        for folder in folders:
            ledgers.append(Ledger(Path(folder) / NAME))
        known = [ledger.records() for ledger in ledgers]
        _agree(ledgers, known)
        plan, function = ledgers[0].plan(), ledgers[0].meta()["function"]
        answers = _joined(ledgers, known)
    finally:
        for ledger in ledgers:
            ledger.close()
    with keeping(target):
        target.mkdir(parents=True, exist_ok=True)
        half = target / f".tmp-{os.getpid()}-{NAME}"
        try:
            with Ledger(half, create=True, write=True) as ledger:
                ledger.begin(plan, function)
                ledger.write(answers)
            os.replace(half, target / NAME)
        finally:
            half.unlink(missing_ok=True)
    return open_sweep(target)


def _agree(ledgers: Sequence[Ledger], known: Sequence[Sequence[Record]]) -> None:
    first, cells = ledgers[0], {record.cell.key for record in known[0]}
    for ledger, records in zip(ledgers, known):
        here = {record.cell.key for record in records}
        found, wanted = ledger.meta(), first.meta()
        differing = [name for name in ("version", "function") if found.get(name) != wanted.get(name)]
        what = [f"the {name} is {found.get(name)!r}, not {wanted.get(name)!r}" for name in differing]
        if not what and here != cells:
            what = [f"{len(here - cells)} of its cells are not in the first, and {len(cells - here)} of it are missing"]
        if what or not here:
            raise InvalidInput(
                explain(
                    f"{ledger.path} and {first.path} do not belong together",
                    "; ".join(what) or "there is no cell",
                    "Merge ledgers of one plan, one function and one version",
                )
            )


def _joined(ledgers: Sequence[Ledger], known: Sequence[Sequence[Record]]) -> list[tuple[Cell, Answer, int]]:
    by_key = [{record.cell.key: record for record in records} for records in known]
    answers, conflicts = [], []
    for first in known[0]:
        cell = first.cell
        rows = [(ledger, records[cell.key]) for ledger, records in zip(ledgers, by_key)]
        done = [(ledger, record) for ledger, record in rows if record.status == "done"]
        failed = [record for _, record in rows if record.status == "failed"]
        attempts = sum(record.attempts for _, record in rows)
        if done:
            items = [ledger.items(cell.key) for ledger, _ in done]
            for (ledger, _), other in zip(done[1:], items[1:]):
                names = _differ(items[0], other)
                if names:
                    conflicts.append(
                        f"{', '.join(names)} of {cell} in {done[0][0].path.parent} and {ledger.path.parent}"
                    )
            record = done[0][1]
            answers.append((cell, Answer(items[0], record.seconds, record.host), attempts))
        elif failed:
            last = failed[-1]
            answers.append((cell, Answer((), last.seconds, last.host, last.error, last.trace), attempts))
    if conflicts:
        more = f"; and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        raise InvalidInput(
            explain(
                f"{len(conflicts)} results differ: {'; '.join(conflicts[:SHOWN])}{more}",
                "a cell has one result, which depends on its values and its seed alone",
                "See what differs between the machines, and leave out the folder that is wrong",
            )
        )
    return answers


def _differ(one: Sequence[Item], other: Sequence[Item]) -> list[str]:
    left, right = {item.name: item for item in one}, {item.name: item for item in other}
    return [name for name in {**left, **right} if left.get(name) != right.get(name)]
