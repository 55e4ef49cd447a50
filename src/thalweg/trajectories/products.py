"""Inner products of a first point and the increments after it, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import NonFinite, explain
from thalweg.trajectories.tiles import BLOCK, Layout

BUFFER = {True: 4, False: 256}
"""Blocks that are converted together, on the CPU (so that they stay in its caches) and on an accelerator."""
COMPARED = 8
"""Rows of which the zeros are found at a time: they stay in the fastest cache, and few calls are made."""
GRAIN = 2**15
"""Elements from which on torch shares work among its threads."""
WAITING = 2
"""Sums of buffers that may be done before those of an earlier one."""


class NonFiniteWeights(NonFinite):
    """A checkpoint holds a NaN or an infinity.

    Attributes:
        step: The step of the first checkpoint that has one in the block that was read.
        tensor: The tensor.
    """

    def __init__(self, message: str, step: int, tensor: str) -> None:
        super().__init__(message)
        self.step, self.tensor = step, tensor

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (str(self), self.step, self.tensor)  # it may come from another process


@dataclass(frozen=True)
class Bad:
    """Elements of a tensor that are NaN or infinite at one step."""

    step: int
    tensor: str
    elements: int


class Workspace:
    """Buffers that serve one tensor after the other, as the allocator would keep those of each size.

    Args:
        length: Elements of a row of the longest buffer; longer ones are made when they are needed.
        threaded: Have a second thread for subtracting and multiplying; `close` ends it.
    """

    def __init__(self, length: int = 0, *, threaded: bool = False) -> None:
        self.length = length
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="thalweg-multiply") if threaded else None
        self.held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return ``(rows, length)`` of the buffer called ``name``, with whatever is in it."""
        key = name, dtype, device
        if key not in self.held or len(self.held[key]) < rows * length:
            self.held[key] = torch.empty(rows * max(length, self.length), dtype=dtype, device=device)
        return self.held[key][: rows * length].view(rows, length)

    def close(self) -> None:
        """End the thread."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Sums:
    """What some blocks of a part add."""

    product: np.ndarray
    same: np.ndarray
    square: float
    flops: int
    bad: dict[int, int] = field(default_factory=dict)


class Products:
    """Accumulates ``Y Y^T`` over the elements of one tensor, with rows ``Y = (theta_1, U_1, ..., U_{T-1})``.

    Differences are taken of the raw numbers, products over blocks of `BLOCK` elements in float32 (float64 if
    ``exact``), sums over blocks in float64. On the CPU a product ``Y Y^T`` goes to BLAS as a symmetric one, which does
    half of the work.

    With a threaded workspace the caller fills one buffer after the other, gives it to the second thread if that is
    free, and works on it itself if not: both are busy whatever the products cost compared with the rest. Sums are added
    in the order of the buffers, so that it does not matter who made them.

    Args:
        steps: Steps of the checkpoints, for messages.
        layout: The tensor.
        exact: Products in float64.
        device: Where to multiply.
        on_bad: ``"raise"``, or ``"skip"`` to leave out elements that are not finite in every checkpoint.
        last: Only the columns of the last so many increments; None for all.
        workspace: Buffers to use; no other `Products` may use them before this one is finished.
    """

    def __init__(
        self,
        steps: Sequence[int],
        layout: Layout,
        *,
        exact: bool = False,
        device: torch.device | None = None,
        on_bad: str = "raise",
        last: int | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.steps, self.layout, self.on_bad, self.last = steps, layout, on_bad, last
        self.device = device or torch.device("cpu")
        self.dtype = torch.float64 if exact or layout.dtype == torch.float64 else torch.float32
        rows, parts = len(steps), len(layout.labels)
        columns = rows if last is None else last
        # A short tensor needs no full buffer; its single block is the same.
        self.length = buffer_length(layout, on_cpu=self.device.type == "cpu")
        self.open: dict[int, Tensor] = {}
        self.filled = [0] * parts
        self.workspace = workspace or Workspace()
        self.y = self._buffer("y")
        self.spare: tuple[Tensor, Tensor] | None = None
        self.busy: Future[_Sums] | None = None
        self.waiting: deque[tuple[int, Future[_Sums]]] = deque()
        self.moments = np.zeros((parts, rows, columns))
        self.unchanged = np.zeros((parts, rows - 1))
        self.bad: dict[int, int] = {}
        self.flops = 0

    def add(self, rows: Tensor, start: int, stop: int) -> None:
        """Take the elements ``[start, stop)`` of the tensor, one row a checkpoint."""
        rows = rows.to(self.device)
        for part, low, size, index in self._runs(start, stop):
            if part not in self.open:
                self.open[part] = self._buffer(f"x{part}")
            done = 0
            while done < size:
                at = self.filled[part]
                count = min(size - done, self.length - at)
                buffer = self.open[part][:, at : at + count]
                if index is None:
                    _convert(rows[:, low + done : low + done + count], buffer)
                else:
                    _convert(rows.index_select(1, index[done : done + count]), buffer)
                self.filled[part] += count
                done += count
                if self.filled[part] == self.length:
                    self._multiply(part)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int, Tensor | None]]:
        """Yield ``(part, start, length, places)`` of what ``[start, stop)`` holds, counted from ``start``.

        Where parts alternate in short runs, as in a matrix with its inputs first, their places are collected, since
        copies of single runs would take longer than the products. The order of a part's elements is the same.
        """
        pieces = list(self.layout.cut(start, stop))
        if len(pieces) < 8 or (stop - start) // len(pieces) >= BLOCK:
            yield from ((part, low, high - low, None) for low, high, part in pieces)
            return
        for part in range(len(self.layout.labels)):
            mine = [torch.arange(low, high, device=self.device) for low, high, p in pieces if p == part]
            if mine:
                index = torch.cat(mine)
                yield part, 0, len(index), index

    def finish(self) -> None:
        """Take what is left in blocks that are not full."""
        for part in range(len(self.filled)):
            if self.filled[part]:
                self._multiply(part, here=True)
        self._settle(0)
        self.open.clear()

    def _buffer(self, name: str) -> Tensor:
        return self.workspace.get(name, len(self.steps), self.length, self.dtype, self.device)

    def _multiply(self, part: int, *, here: bool = False) -> None:
        """Have the sums of a buffer made, by the second thread if it is free."""
        count, self.filled[part] = self.filled[part], 0
        x, pool = self.open[part], self.workspace.pool
        if pool is not None and not here and (self.busy is None or self.busy.done()):
            if self.spare is None:
                self.spare = self._buffer("x spare"), self._buffer("y spare")
            other, y = self.spare
            self.busy = pool.submit(self._sums, x[:, :count], y[:, :count])
            self.waiting.append((part, self.busy))
            self.open[part], self.spare = other, (x, y)  # free again when the thread is
        else:
            mine: Future[_Sums] = Future()
            self.waiting.append((part, mine))
            try:
                mine.set_result(self._sums(x[:, :count], self.y[:, :count]))
            except Exception as error:  # raised below, after what earlier blocks may raise
                mine.set_exception(error)
        self._settle(WAITING)

    def _settle(self, limit: int) -> None:
        """Add the sums that are there, in the order of their buffers, and wait until no more than some are left."""
        while self.waiting and (len(self.waiting) > limit or self.waiting[0][1].done()):
            part, future = self.waiting.popleft()
            sums = future.result()
            self.moments[part] += sums.product
            self.unchanged[part] += sums.same
            self.flops += sums.flops
            if self.last is None:  # squares on the coarse grid of a short type round alike: this sum errs the most
                self.moments[part, 0, 0] += sums.square - sums.product[0, 0]
            for index, count in sums.bad.items():
                self.bad[index] = self.bad.get(index, 0) + count

    def _sums(self, x: Tensor, y: Tensor) -> _Sums:
        """Return what some blocks add; ``y`` is where their differences go. It may run in any thread."""
        _differences(x, y)
        same, product, times = self._equal(x, y), self._product(y), 1
        bad: dict[int, int] = {}
        if not np.isfinite(product).all():
            skipped, bad = self._clean(x)
            if skipped:
                _differences(x, y)
                same, product, times = self._equal(x, y) - skipped, self._product(y), 2
            if not np.isfinite(product).all():  # finite numbers whose squares are beyond float32
                wide = torch.empty_like(x, dtype=torch.float64)
                product, times = self._product(_differences(x.double(), wide)), times + 1
        flops = times * 2 * y.shape[0] * y.shape[1] * (self.last or y.shape[0])
        return _Sums(product, same, self._square(x[0]), flops, bad)

    def _square(self, row: Tensor) -> float:
        if self.last is not None:
            return 0.0
        if self.device.type != "cpu":
            return float(row.double().square().sum())
        wide = row.numpy().astype(np.float64)
        return float(wide @ wide)

    def _product(self, y: Tensor) -> np.ndarray:
        count = y.shape[1]
        if self.device.type == "cpu":
            array: np.ndarray = y.numpy()
            first = 0 if self.last is None else array.shape[0] - self.last
            total = np.zeros(self.moments.shape[1:])
            with np.errstate(all="ignore"):  # what is not finite is looked for by the caller
                for at in range(0, count, BLOCK):
                    block = array[:, at : at + BLOCK]
                    if block.shape[1] < BLOCK:  # a few terms: their rounding does not average out, and they are cheap
                        block = block.astype(np.float64)
                    total += block @ block[first:].T
            return total
        first, full = 0 if self.last is None else y.shape[0] - self.last, count - count % BLOCK
        tail = y[:, full:].double()
        sums = tail @ tail[first:].T
        if full:
            blocks = y[:, :full].reshape(len(y), -1, BLOCK).transpose(0, 1)
            with full_precision():
                sums += torch.bmm(blocks, blocks[:, first:].transpose(1, 2)).double().sum(0)
        return np.asarray(sums.cpu().numpy())

    def _equal(self, x: Tensor, y: Tensor) -> np.ndarray:
        """Count the elements that neighbours have in common."""
        if self.device.type != "cpu":
            return np.asarray((x[1:] == x[:-1]).sum(1).double().cpu().numpy())
        array: np.ndarray = y.numpy()  # a difference is zero where they are equal, and only there: it may be subnormal
        found, flags = np.empty(len(array) - 1), np.empty((COMPARED, y.shape[1]), dtype=bool)
        for first in range(1, len(array), COMPARED):
            rows = array[first : first + COMPARED]
            np.equal(rows, 0, out=flags[: len(rows)])
            found[first - 1 : first - 1 + len(rows)] = [np.count_nonzero(row) for row in flags[: len(rows)]]
        return found

    def _clean(self, x: Tensor) -> tuple[int, dict[int, int]]:
        """Zero the elements that are not finite somewhere; return how many, and how many each checkpoint has."""
        finite = torch.isfinite(x)
        if bool(finite.all()):
            return 0, {}
        counts = (~finite).sum(1).tolist()
        if self.on_bad != "skip":
            index = next(i for i, count in enumerate(counts) if count)
            step, name = self.steps[index], self.layout.name
            raise NonFiniteWeights(
                explain(
                    f"The checkpoint of step {step} has NaN or infinite values in {name!r} "
                    f"({counts[index]} in a block of {x.shape[1]})",
                    "no angle with it is defined",
                    "End the trajectory before that step (window), leave the tensor out (select), or leave out such "
                    'elements everywhere with on_bad="skip"',
                ),
                step,
                name,
            )
        spoilt = ~finite.all(0)
        if self.device.type == "cpu":
            x.numpy()[:, spoilt.numpy()] = 0
        else:
            x[:, spoilt] = 0
        return int(spoilt.sum()), {index: int(count) for index, count in enumerate(counts) if count}


def _convert(rows: Tensor, out: Tensor) -> None:
    """Copy to another type, on the CPU without torch's threads.

    These wait for each other without giving way. As a second thread works on another buffer meanwhile, one of them
    often has no core, and the work took up to six times the processor time.
    """
    together = len(rows)
    if out.device.type == "cpu" and torch.get_num_threads() > 1:
        together = max(1, (GRAIN - 1) // out.shape[1])
    for at in range(0, len(rows), together):
        out[at : at + together].copy_(rows[at : at + together])


def _differences(x: Tensor, y: Tensor) -> Tensor:
    """Write the first row and the increments after it."""
    if x.device.type == "cpu":  # by NumPy, for which a mode of torch that the caller is in means nothing to threads
        points, out = x.numpy(), y.numpy()
        out[0] = points[0]
        with np.errstate(all="ignore"):  # as for the products
            np.subtract(points[1:], points[:-1], out=out[1:])
        return y
    y[0] = x[0]
    torch.sub(x[1:], x[:-1], out=y[1:])
    return y


def buffer_length(layout: Layout, *, on_cpu: bool = True) -> int:
    """Elements of each part that are held converted: some blocks, or fewer for a short tensor."""
    return min(BLOCK * BUFFER[on_cpu], max(1, *layout.sizes()))


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32 while open, whatever the caller chose, and give the choice back."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
