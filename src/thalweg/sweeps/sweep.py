"""A sweep: the cells of a plan on an engine, each result in the ledger as soon as it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thalweg.engines import LocalEngine, as_engine
from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs.folder import Lock
from thalweg.runs.meter import Meter, Silent
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.ledger import NAME, Ledger, Record, keeping
from thalweg.sweeps.plan import Plan
from thalweg.sweeps.run_driver import Driver, Pace
from thalweg.sweeps.run_function import called, check_sendable
from thalweg.sweeps.run_result import Sweep, open_sweep


def sweep(
    function: Callable[[Cell], Any],
    plan: Plan,
    folder: str | Path,
    *,
    engine: str | Executor = "local",
    workers: int | None = None,
    retries: int = 2,
    retry_failed: bool = False,
    cost: Callable[[Cell], float] | None = None,
    share: tuple[int, int] = (0, 1),
    extend: bool = False,
    ahead: int | None = None,
    timeout: float | None = None,
    meter: Meter | None = None,
    strict: bool = False,
) -> Sweep:
    """Compute the cells of a plan that are not in the folder's ledger yet.

    What a cell gives may depend on ``cell.values`` and ``cell.seed`` only; then it is the same on every engine, in
    every order, and after any number of interruptions. A cell that raises is recorded with its error, and the others
    go on. Killed at any moment, the driver loses the cells that were being computed and nothing else: call it again. A
    worker that is killed costs its cell an attempt.

    Args:
        function: Takes a `Cell`; returns a mapping from names to scalars, arrays, or pairs ``(dims, array)``.
        plan: Its cells, from `plan`.
        folder: Of the ledger; made where there is none.
        engine: ``"local"``, ``"ray"``, or an executor, as for `as_engine`.
        workers: Processes of an engine that is started here.
        retries: How often a cell is handed out again after an executor lost it; both engines of thalweg see to that
            themselves.
        retry_failed: Whether cells that failed are computed again.
        cost: How long a cell takes, in any unit. The largest go first, and the remaining time is weighted with it.
        share: ``(i, n)`` computes the i-th of n shares of the plan, i from 0, as on one of n machines; see `merge`.
        extend: Whether the ledger may be of another plan, to which this one is added.
        ahead: Cells that are handed out at a time; twice the workers where these are known, 100 otherwise.
        timeout: Seconds that a cell may take. With ``"local"`` they begin when a worker is given the cell; with
            ``"ray"`` when the cell is handed out, which then is when a core is free, the start of a process included;
            with an executor when it is handed out, waiting there included. A cell that takes longer is lost: both
            engines end its worker, and it is tried again as after a crash, ``retries`` times with Ray and executors. An
            executor that cannot end what has begun keeps that worker busy; a warning says so.
        meter: Is told the progress: ``step`` (cells finished), ``failed``, ``seconds_left`` and ``seconds``.
        strict: Whether the first failure ends the sweep; it is recorded all the same.

    Returns:
        The sweep as it is in the folder.

    Raises:
        InvalidInput: An argument is wrong, the function cannot be sent to workers, or the folder has the ledger of
            another plan, function or version.
        RunFolderError: The ledger is damaged, or another driver is at work in the folder.
        StorageError: The ledger cannot be written. What was entered stays.
        DistributedError: The engine is gone, or, with ``strict``, a cell failed.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from thalweg.sweeps.plan import plan
        >>> def area(cell):
        ...     return {"area": cell["depth"] * cell["width"]}
        >>> with ThreadPoolExecutor(1) as pool:
        ...     found = sweep(area, plan(depth=[4, 8], width=[64, 128]), "areas", engine=pool)
        >>> found.status().done, int(found.table().area.sel(depth=8, width=64))
        (4, 512)
    """
    _check(function, plan, retries, share, ahead, timeout)
    order = _order(plan, cost)
    mine = [cell for cell, _ in order[share[0] :: share[1]]]
    if engine == "local" or isinstance(engine, LocalEngine):
        check_sendable(function)
    where = Path(folder)
    with keeping(where):
        where.mkdir(parents=True, exist_ok=True)
    with _alone(where), Ledger(where / NAME, create=True, write=True) as ledger:
        records = _entered(ledger, plan, called(function), extend)
        wanted = ("pending", "failed") if retry_failed else ("pending",)
        todo = [cell for cell in mine if records[cell.key].status in wanted]
        if todo:
            pace = Pace({cell.key: weight for cell, weight in order}, mine, todo, meter or Silent())
            try:
                with as_engine(engine, workers=workers) as executor:
                    Driver(executor, function, ledger, pace, retries, ahead, timeout, strict).run(todo)
            except KeyboardInterrupt as stop:
                stop.add_note(
                    f"Stopped: {pace.finished} of {len(mine)} cells are in {where}. Call sweep() again to go on there."
                )
                raise
            finally:
                pace.close()
    return open_sweep(where)


def _check(
    function: Any,
    plan: Any,
    retries: int,
    share: Sequence[int],
    ahead: int | None,
    timeout: float | None,
) -> None:
    wrong = [
        (not callable(function), f"The function is {function!r}", "Pass what takes a cell and returns a mapping"),
        (not isinstance(plan, Plan), f"The plan is {type(plan).__name__}", "Make one with plan(width=[64, 128])"),
        (retries < 0, f"retries is {retries}", "Pass retries >= 0"),
        (len(share) != 2 or not 0 <= share[0] < share[1], f"share is {share}", "Pass (i, n) with 0 <= i < n"),
        (ahead is not None and ahead < 1, f"ahead is {ahead}", "Pass ahead >= 1"),
        (timeout is not None and not timeout > 0, f"timeout is {timeout}", "Pass timeout > 0"),
    ]
    for bad, found, remedy in wrong:
        if bad:
            raise InvalidInput(explain(found, "a sweep cannot be run with that", remedy))


def _order(plan: Plan, cost: Callable[[Cell], float] | None) -> list[tuple[Cell, float]]:
    """Return all cells with their costs, largest first, and in the order of the plan where these are equal."""
    if cost is None:
        return [(cell, 1.0) for cell in plan.cells]
    weights = []
    for cell in plan.cells:
        try:
            weight = float(cost(cell))
        except Exception as error:
            raise InvalidInput(
                explain(f"cost() failed for {cell}: {error}", "it orders the cells", "Give each cell a number")
            ) from error
        if not math.isfinite(weight) or weight < 0:
            raise InvalidInput(
                explain(f"cost() is {weight} for {cell}", "it orders the cells", "Give each cell a number >= 0")
            )
        weights.append((cell, weight))
    return sorted(weights, key=lambda pair: -pair[1])


def _entered(ledger: Ledger, plan: Plan, function: str, extend: bool) -> dict[str, Record]:
    """Enter the plan, and return what is known of each cell by its key."""
    ledger.check(plan.version, function)
    known = {record.cell.key for record in ledger.records()}
    asked = {cell.key for cell in plan.cells}
    if known and known != asked and not extend:
        raise InvalidInput(
            explain(
                f"The ledger {ledger.path} is of another plan: {len(asked - known)} of the {len(asked)} cells are not "
                f"in it, and {len(known - asked)} of its {len(known)} are not asked for",
                "a folder holds one plan",
                "Take another folder, or add this plan to the one that is there with extend=True",
            )
        )
    ledger.begin(plan, function)
    return {record.cell.key: record for record in ledger.records()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when this process ends, however it ends."""
    lock = Lock(folder / "lock")
    try:
        lock.__enter__()
    except RunFolderError as error:
        raise RunFolderError(
            explain(
                f"Another driver is at work in {folder}",
                "two would compute the same cells",
                "Wait for it, or give each a folder and a share=(i, n) of its own, and merge them",
            )
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
