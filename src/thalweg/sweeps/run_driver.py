"""The loop of a sweep: hand out cells, wait, enter what came; and its pace."""

from __future__ import annotations

import pickle
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from thalweg.engines import LocalEngine, WorkerLost
from thalweg.engines.choice import Lent
from thalweg.errors import DistributedError, InvalidInput, ThalwegWarning, explain
from thalweg.runs.meter import Meter
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.ledger import Ledger
from thalweg.sweeps.run_cell import Answer, perform

AHEAD = 100
"""Cells that are handed out at a time to an executor whose size is not known."""

POLL = 0.5
"""Seconds between two looks for cells that were lost; one that is done is seen at once."""

_UNFIT = (AttributeError, ImportError, InvalidInput, TypeError, pickle.PicklingError)
"""What an executor gives where the function cannot be sent, or loaded on the worker: no cell is to blame."""


class Pace:
    """Tells a meter how far a sweep is, and how long it will take.

    Args:
        weights: Cost of each cell by its key.
        cells: All cells of the share.
        todo: Those that are still to be computed.
        meter: Is told.
    """

    def __init__(self, weights: Mapping[str, float], cells: Sequence[Cell], todo: Sequence[Cell], meter: Meter) -> None:
        self._weights, self._meter = weights, meter
        self._left, self._spent = sum(weights[cell.key] for cell in todo), 0.0
        self._cells, self.failed = len(todo), 0
        self.finished = len(cells) - len(todo)
        self._begun = time.monotonic()
        meter.init(len(cells), self.finished)

    def step(self, cell: Cell, answer: Answer) -> None:
        """One cell is in the ledger."""
        self.finished += 1
        self._cells -= 1
        self.failed += bool(answer.error)
        self._spent += self._weights[cell.key]
        self._left -= self._weights[cell.key]
        elapsed = time.monotonic() - self._begun
        left = elapsed * max(self._left, 0.0) / self._spent if self._spent > 0 else float("nan")
        told = {"step": self.finished, "failed": self.failed, "seconds_left": left if self._cells else 0.0}
        self._meter.step({**told, "seconds": answer.seconds})

    def close(self) -> None:
        """The sweep ended, for whatever reason."""
        self._meter.close()


class Driver:
    """Hands out cells and enters their results; only it writes to the ledger.

    Args:
        executor: Where cells are computed.
        function: What computes one.
        ledger: Open for writing.
        pace: Is told of each cell.
        retries: How often a cell that the executor lost is handed out again.
        ahead: Cells that are handed out at a time, or None.
        timeout: Seconds that one may take, or None: counted by the workers of a `LocalEngine`; from when it is handed
            out to another executor, after which it is lost.
        strict: Whether the first failure ends it.
    """

    def __init__(
        self,
        executor: Executor,
        function: Callable[[Cell], Any],
        ledger: Ledger,
        pace: Pace,
        retries: int,
        ahead: int | None,
        timeout: float | None,
        strict: bool,
    ) -> None:
        owned = executor.executor if isinstance(executor, Lent) else executor
        if timeout is not None and isinstance(owned, LocalEngine):
            executor, self._timeout = owned.limited(timeout), None
        else:
            self._timeout = timeout
        self._owner = type(owned)
        self._executor, self._function, self._ledger, self._pace = executor, function, ledger, pace
        self._retries, self._strict, self._warned = retries, strict, False
        workers = getattr(executor, "workers", None)
        slots = getattr(executor, "slots", None) if self._timeout is not None else None  # so that none has to wait
        self._ahead = ahead or slots or (2 * workers if isinstance(workers, int) and workers > 0 else AHEAD)
        self._queue: deque[Cell] = deque()
        self._flight: dict[Future[Any], tuple[Cell, float]] = {}
        self._lost: Counter[str] = Counter()

    def run(self, cells: Iterable[Cell]) -> None:
        """Compute the cells, in their order.

        Raises:
            InvalidInput: The function cannot be sent to a worker, or loaded there.
            DistributedError: The executor takes no more cells, or a cell failed and that is to end it.
            StorageError: The ledger cannot be written.
        """
        self._queue.extend(cells)
        try:
            while self._queue or self._flight:
                self._hand_out()
                self._enter(self._wait())
        except BaseException:  # Ctrl-C among them: what has come is kept, nothing else is waited for
            self._keep()
            raise

    def _hand_out(self) -> None:
        while self._queue and len(self._flight) < self._ahead:
            try:
                future = self._executor.submit(perform, self._function, self._queue[0])
            except _UNFIT as error:
                raise self._unfit(error) from error
            except Exception as error:
                raise DistributedError(
                    explain(
                        f"The engine takes no more cells: {type(error).__name__}: {error}",
                        "its workers are gone",
                        "Call sweep() again with a fresh one: what was finished is kept",
                    )
                ) from error
            if not isinstance(future, Future):
                raise InvalidInput(
                    explain(
                        f"The executor gave a {type(future).__name__}",
                        "a sweep waits for futures of concurrent.futures",
                        "Wrap it: Polled(executor)",
                    )
                )
            self._flight[future] = (self._queue.popleft(), time.monotonic())

    def _wait(self) -> list[Future[Any]]:
        """Return futures that are done, or have taken too long."""
        while True:
            wait(self._flight, POLL, FIRST_COMPLETED)
            now = time.monotonic()
            limit = float("inf") if self._timeout is None else self._timeout
            # done() is asked, too, as wait() does not see a future that was cancelled by an executor that died
            done = [f for f, (_, since) in self._flight.items() if f.done() or now - since >= limit]
            if done:
                return done

    def _enter(self, done: Iterable[Future[Any]]) -> None:
        answers, again = [], []
        for future in done:
            cell = self._flight[future][0]
            answer = self._answer(future, cell)
            if answer is None:
                again.append(future)
            else:
                answers.append((future, cell, answer))
        self._ledger.write((cell, answer, 1 + self._lost[cell.key]) for _, cell, answer in answers)
        for future, _, _ in answers:
            del self._flight[future]
        for future in again:
            self._queue.appendleft(self._flight.pop(future)[0])
        for _, cell, answer in answers:
            self._pace.step(cell, answer)
        failed = [(cell, answer) for _, cell, answer in answers if answer.error]
        if failed and self._strict:
            self._stop(*failed[0])

    def _answer(self, future: Future[Any], cell: Cell) -> Answer | None:
        """Return what came of a cell; None if it was lost and is to be handed out again."""
        try:
            if not future.done():
                if not future.cancel() or self._owner.__module__.startswith("distributed."):  # Dask's tasks go on
                    self._warn(cell)
                raise TimeoutError(f"the executor gave no answer in {self._timeout:g} seconds")
            found = future.result()
            if not isinstance(found, Answer):
                raise DistributedError(f"The executor answered {found!r}.")
            return found
        except _UNFIT as error:
            raise self._unfit(error) from error
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a CancelledError is none of Exception's everywhere
            tried = isinstance(error, WorkerLost) or type(error).__name__ == "KilledWorker"  # by the engine itself
            if not tried and self._lost[cell.key] < self._retries:
                self._lost[cell.key] += 1
                return None
            notes = "\n".join(getattr(error, "__notes__", ()))
            return Answer(error=f"{type(error).__name__}: {error}", trace=notes)

    def _warn(self, cell: Cell) -> None:
        """Say once that a cell which counts as lost goes on."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"The cell {cell} gave no answer in {self._timeout:g} seconds, and the executor "
            f"{self._owner.__name__} cannot end what has begun: its worker stays busy, and leaving the executor waits "
            "for it. The engines local and ray end the worker.",
            ThalwegWarning,
            stacklevel=2,
        )

    def _stop(self, cell: Cell, answer: Answer) -> None:
        """End at a failure: nothing more is handed out, what was begun is entered."""
        self._queue.clear()
        self._strict = False
        for future in list(self._flight):
            if future.cancel():
                del self._flight[future]
        while self._flight:
            self._enter(self._wait())
            self._queue.clear()
        error = DistributedError(
            explain(f"The cell {cell} failed: {answer.error}", "the sweep is strict", "See the trace below")
        )
        error.add_note(answer.trace)
        raise error

    def _keep(self) -> None:
        """Enter what has come, and forget the rest."""
        came = [
            (cell, future.result())
            for future, (cell, _) in self._flight.items()
            if future.done() and not future.cancelled() and future.exception() is None
        ]
        for future in self._flight:
            future.cancel()
        self._ledger.write((cell, found, 1 + self._lost[cell.key]) for cell, found in came if isinstance(found, Answer))
        self._flight.clear()

    def _unfit(self, error: BaseException) -> InvalidInput:
        return InvalidInput(
            explain(
                f"The engine cannot run the function: {type(error).__name__}: {error}",
                "it is sent to workers by its name, and loaded there",
                "Define it at the top of a module that the workers can import",
            )
        )
