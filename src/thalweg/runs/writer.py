"""The thread that writes what a recorder hands over: a bounded queue, and files that are whole or absent."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.errors import StorageError, explain
from thalweg.runs.checkpoints import CheckpointWriter
from thalweg.runs.folder import RunFolder
from thalweg.runs.forwarding import Forward
from thalweg.runs.metrics import Event, MetricsWriter, Variable
from thalweg.runs.sketches import Projection
from thalweg.runs.snapshots import Snapshot
from thalweg.runs.state import Pace
from thalweg.runs.stepper import VARIABLES

POLL = 0.2
"""Seconds between two looks for rows."""
PACK = 1 << 20
"""Checkpoints share a file up to this size, as it is written anew with each of them."""
ROWS = 100_000
"""Rows that may wait; beyond, the loop waits for the disk."""

Row = tuple[int, dict[str, "float | Tensor"]]


@dataclass(frozen=True)
class Point:
    """Weights on their way to the disk.

    Attributes:
        step: Updates done.
        snapshot: The weights.
        weights: Whether they are kept.
        sketch: Whether their projection is.
    """

    step: int
    snapshot: Snapshot
    weights: bool
    sketch: bool


class Writer(threading.Thread):
    """Writes checkpoints, projections and rows of one run folder.

    At most ``depth`` snapshots wait and one is written, from the memory it came in; who hands over another one waits
    for the disk. After an error nothing more is written, everything that is handed over is dropped, and ``error`` says
    why.

    Args:
        folder: The run folder, which the caller has locked.
        projection: How weights are projected.
        dtype: Weights are stored in it; None: in their own.
        limit: Bytes that checkpoints and projections may take, or None.
        depth: Snapshots that may wait.
        forward: Who else gets the scalars.
        start: Step to go on from: what is later is removed first. None for a new run.
    """

    def __init__(
        self,
        folder: RunFolder,
        projection: Projection,
        dtype: torch.dtype | None = None,
        limit: int | None = None,
        depth: int = 2,
        forward: Sequence[Forward] = (),
        start: int | None = None,
    ) -> None:
        super().__init__(name="thalweg-writer", daemon=True)
        self._folder, self._projection, self._dtype, self._limit = folder, projection, dtype, limit
        self._points: queue.Queue[Point | threading.Event | None] = queue.Queue(maxsize=depth)
        self._rows: deque[Row] = deque()
        self._forward, self._start = list(forward), start
        self._opened = threading.Event()
        self._variables: set[str] = set()
        self._last: dict[str, int] = {}
        self._used = 0
        self._had: frozenset[int] = frozenset()
        self.error: BaseException | None = None
        self.notes: deque[str] = deque()

    def open(self) -> None:
        """Start, and return once the files are open.

        Raises:
            StorageError: They cannot be.
            RunFolderError: One that is there is damaged.
        """
        self.start()
        self._opened.wait()
        if self.error is not None:
            raise self.error

    def put(self, point: Point) -> None:
        """Hand over weights; waits while ``depth`` others wait."""
        self._hand_over(point)

    def log(self, step: int, values: dict[str, float | Tensor]) -> None:
        """Hand over a row, to be written within `POLL` seconds; of a value given twice the first one counts."""
        while len(self._rows) >= ROWS and self.is_alive() and self.error is None:
            time.sleep(POLL)
        if self.error is None:
            self._rows.append((step, values))

    def flush(self) -> None:
        """Return once all that was handed over is on the disk, or writing has failed."""
        saved = threading.Event()
        self._hand_over(saved)
        while not saved.wait(POLL) and self.is_alive():
            continue

    def close(self) -> None:
        """Write what is left, and end. Ctrl-C is passed on after that, unless it is pressed twice."""
        try:
            self._hand_over(None)
            self.join()
        except KeyboardInterrupt:
            self._hand_over(None)
            self.join()
            raise

    def _hand_over(self, point: Point | threading.Event | None) -> None:
        while self.is_alive():
            try:
                self._points.put(point, timeout=1.0)
                return
            except queue.Full:
                continue

    def run(self) -> None:
        """Write until `close`; not to be called."""
        ended = False
        try:
            self._open()
            self._opened.set()
            try:
                while not ended:
                    ended = self._turn()
                self._save()
            except BaseException:
                with suppress(Exception):  # what was whole before the error is kept, where it can be
                    self._save()
                raise
            finally:
                self._metrics.close()
        except BaseException as error:
            self.error = error
        finally:
            self._opened.set()
        while not ended:  # whoever trains must not wait for a disk that is full
            point = self._points.get()
            ended = point is None
            if isinstance(point, threading.Event):
                point.set()

    def _open(self) -> None:
        self._metrics = MetricsWriter(self._folder.metrics, {})
        try:
            self._checkpoints = CheckpointWriter(self._folder.checkpoints, PACK)
            self._sketches: CheckpointWriter | None = None
            if self._start is not None:
                self._metrics.truncate(self._start)
                self._checkpoints.truncate(self._start + 1)
                if self._folder.sketches.is_dir():
                    self._open_sketches().truncate(self._start + 1)
                    self._had = frozenset(self._open_sketches().steps())
            self._used = sum(
                path.stat().st_size
                for folder in (self._folder.checkpoints, self._folder.sketches)
                for path in folder.glob("*.safetensors")
            )
            self._pace = Pace(None, seconds=1.0)
        except BaseException:
            self._metrics.close()
            raise

    def _open_sketches(self) -> CheckpointWriter:
        if self._sketches is None:
            self._sketches = CheckpointWriter(self._folder.sketches, PACK)
        return self._sketches

    def _turn(self) -> bool:
        """Write the rows that wait and the next point, if one comes; return whether that was all."""
        try:
            point, told = self._points.get(timeout=POLL), True
        except queue.Empty:
            point, told = None, False
        while self._rows:
            step, values = self._rows.popleft()
            self._share(step, self._write(step, values))
        if isinstance(point, Point):
            self._keep(point)
        if isinstance(point, threading.Event):
            self._save()
            point.set()
        elif self._pace.due(-1):
            self._save()
        return told and point is None

    def _keep(self, point: Point) -> None:
        tensors = point.snapshot.wait()
        if point.sketch and point.step not in self._had:
            found = {name: self._projection.of(name, tensor) for name, tensor in tensors.items()}
            squares = torch.tensor([one for _, one in found.values()], dtype=torch.float64)
            vectors = {"projection": torch.cat([vector for vector, _ in found.values()]), "squares": squares}
            self._count(point.step, vectors)
            self._open_sketches().add(point.step, vectors, owned=True)
        else:
            norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors.values()]
            squares = torch.stack(norms).square()
        if point.weights:
            if self._dtype is not None:
                tensors = {name: tensor.to(self._dtype) for name, tensor in tensors.items()}
            self._count(point.step, tensors)
            self._checkpoints.add(point.step, tensors, owned=True)
        square = float(squares.sum())
        events = []
        if not math.isfinite(square):
            events.append(Event(point.step, "non_finite", "a weight is NaN or infinite"))
        self._write(point.step, {"weight_norm": math.sqrt(square) if square >= 0 else math.nan}, events)

    def _count(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self._used += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self._limit is not None and self._used > self._limit:
            raise StorageError(
                explain(
                    f"With step {step} the run takes {self._used:,} bytes",
                    f"its budget is {self._limit:,}",
                    "Record less often, keep fewer weights (keep=, dtype=), or raise disk_budget",
                )
            )

    def _write(self, step: int, values: Mapping[str, float | Tensor], events: Sequence[Event] = ()) -> dict[str, float]:
        new = {name: float(value) for name, value in values.items() if self._last.get(name, -1) < step}
        unknown = {name: VARIABLES.get(name, Variable("1", name)) for name in new if name not in self._variables}
        if unknown:
            self._metrics.announce(unknown)
            self._variables |= set(unknown)
        self._metrics.write(step, new, events)
        self._last |= dict.fromkeys(new, step)
        return new

    def _share(self, step: int, values: dict[str, float]) -> None:
        for target in list(self._forward) if values else []:
            try:
                target.log(values, step)
            except Exception as error:
                self._forward.remove(target)
                self.notes.append(
                    explain(
                        f"Forwarding scalars failed at step {step}: {type(error).__name__}: {error}",
                        "the tracker did not take them",
                        "Training and recording go on without it",
                    )
                )

    def _save(self) -> None:
        """Checkpoints first, then rows, so that a crash leaves no row ahead of its weights for long."""
        self._pace.start()
        self._checkpoints.flush()
        if self._sketches is not None:
            self._sketches.flush()
        self._metrics.sync()
        self._pace.done()
