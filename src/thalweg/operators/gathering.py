"""Parameters that lie in pieces, gathered where a model reads them and again where its derivatives do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# Newer torch calls these by other names, and warns at the old ones.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Cut:
    """How a tensor of ``rows`` rows is cut over the processes of a group: ``chunk`` rows each, the last ones fewer."""

    rows: int
    count: int
    rank: int
    group: ProcessGroup | None
    scalar: bool = False
    """The whole tensor has no dimension, and is kept as one row."""

    @property
    def chunk(self) -> int:
        """Rows of a full piece."""
        return -(-self.rows // self.count)

    @property
    def own(self) -> slice:
        """The rows of this process."""
        return slice(min(self.rank * self.chunk, self.rows), min((self.rank + 1) * self.chunk, self.rows))

    def gather(self, piece: Tensor) -> Tensor:
        """Return the whole tensor from every process's piece."""
        padded = _padded(piece.detach(), self.chunk)
        whole = piece.new_empty((self.count * self.chunk, *piece.shape[1:]))
        _ALL_GATHER(whole, padded, group=self.group)
        return whole[0] if self.scalar else whole[: self.rows]

    def scatter(self, whole: Tensor) -> Tensor:
        """Return this process's piece of the sum over processes of ``whole``."""
        padded = _padded(whole.detach(), self.count * self.chunk)
        piece = whole.new_empty((self.chunk, *whole.shape[1:]))
        _REDUCE_SCATTER(piece, padded, group=self.group)
        return piece[: self.own.stop - self.own.start]


class Gather(torch.autograd.Function):
    """Piece to whole tensor. Its transpose under sums over processes is `Scatter`, and the other way round.

    Each calls the other in its backward, so derivatives of every order are right.
    """

    @staticmethod
    def forward(ctx: Any, piece: Tensor, cut: Cut) -> Tensor:
        """Gather."""
        ctx.cut = cut
        return cut.gather(piece)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Sum over processes, and keep this one's rows."""
        return Scatter.apply(grad, ctx.cut), None  # type: ignore[no-untyped-call]


class Scatter(torch.autograd.Function):
    """Whole tensor of each process to this process's piece of their sum."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, cut: Cut) -> Tensor:
        """Sum and cut."""
        ctx.cut = cut
        return cut.scatter(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gather."""
        return Gather.apply(grad, ctx.cut), None  # type: ignore[no-untyped-call]


class Book:
    """The pieces of a model's parameters, and which of its tensors were gathered from them.

    While it is open, what autograd would save of a gathered parameter is a note of where to gather it again, so
    no graph keeps whole parameters. That is communication inside the backward passes: every process must run the
    same operations, which it does for one model and equally many batches.
    """

    def __init__(self) -> None:
        self.cuts: list[Cut] = []
        self.pieces: list[Tensor] | None = None
        """One piece per parameter while open."""
        self._alive: dict[int, tuple[Any, int, Tensor]] = {}

    @contextmanager
    def open(self, pieces: Sequence[Tensor]) -> Iterator[None]:
        """Let `read` gather from ``pieces``."""
        before, self.pieces = self.pieces, list(pieces)
        try:
            yield
        finally:
            self.pieces = before

    @contextmanager
    def saving_notes(self) -> Iterator[None]:
        """Save notes instead of gathered parameters; open around forward and differentiable backward passes."""
        with saved_tensors_hooks(self._pack, self._unpack):
            yield

    def read(self, number: int) -> Tensor:
        """Return the whole parameter, with a graph that leads to its piece."""
        assert self.pieces is not None
        piece = self.pieces[number]
        whole: Tensor = Gather.apply(piece, self.cuts[number])  # type: ignore[no-untyped-call]
        return self._noted(whole, number, piece)

    def _noted(self, whole: Tensor, number: int, piece: Tensor) -> Tensor:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        storage = whole.untyped_storage()
        # The weak reference keeps the address from being given to another storage, so it is a safe key.
        self._alive[storage._cdata] = (StorageWeakRef(storage), number, piece.detach())  # type: ignore[no-untyped-call]
        return whole

    def _pack(self, tensor: Tensor) -> Any:
        known = self._alive.get(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else None
        if known is None or known[0].expired():
            return tensor
        return known[1], known[2], tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, piece, size, stride, offset = packed
        whole = self._noted(self.cuts[number].gather(piece), number, piece)
        return whole.as_strided(size, stride, offset)


class LazyParameters(dict[str, Any]):
    """A module's ``_parameters``: reading an attribute gathers it. What is stored has the shape, and no numbers.

    Listing parameters gives what is stored, which is NaN everywhere: a loss that sums over ``model.parameters()``
    comes out as NaN instead of wrong.
    """

    def __init__(self, stored: dict[str, Any], numbers: dict[str, int], book: Book) -> None:
        super().__init__(stored)
        self.numbers, self.book = numbers, book

    def __getitem__(self, name: str) -> Any:
        if self.book.pieces is None or name not in self.numbers:
            return super().__getitem__(name)
        return self.book.read(self.numbers[name])


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if len(tensor) == rows:
        return tensor.contiguous()
    padded = tensor.new_zeros((rows, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
