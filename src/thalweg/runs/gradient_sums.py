"""Inner products of a probe's gradients, tensor by tensor: all gradients kept, sketched, or passed over twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.operators.processes import Processes
from thalweg.runs.gradient_draws import Draws, Gradient, check_finite
from thalweg.runs.gradient_moments import Products
from thalweg.runs.gradient_together import together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Keep = Literal["auto", "gradients", "second pass", "sketch"]
BUDGET = 256 << 20
"""Bytes of gradients that ``"auto"`` keeps at most."""
SKETCH = 4096
"""Entries that stand for a gradient where it is not kept; short tensors keep theirs."""
_SHORTEST = 256
_CHUNK = 1 << 16
_SHORT = 1 << 12
"""Terms that an inner product of two gradients may add up in float32; sums of such sums are float64."""


@dataclass(frozen=True)
class Sums:
    """What the gradients of a probe leave behind.

    Attributes:
        rows: The gradients or their sketches, float32 or wider, shape ``(n, K)``; parts of the tensors in order.
        widths: Entries of ``rows`` that belong to each tensor.
        squares: ``|g_i|^2`` of each tensor, float64, shape ``(T, n)``.
        pulls: ``<g_i, d>`` of each tensor, float64, shape ``(T, n)``.
        inners: ``<g_i, S>`` of each tensor from a second pass, same shape; None: from ``rows``.
        totals: ``|S|^2`` of each tensor, float64, shape ``(T,)``.
        pushes: ``|d|^2`` of each tensor, same shape.
        sizes: Entries of each tensor.
        losses: Of the mini-batches, float64, shape ``(n,)``.
        keep: How it was done.
        passes: Forward-backward passes, on all processes together.
    """

    rows: Tensor
    widths: tuple[int, ...]
    squares: Tensor
    pulls: Tensor
    inners: Tensor | None
    totals: Tensor
    pushes: Tensor
    sizes: tuple[int, ...]
    losses: Tensor
    keep: Keep
    passes: int

    def products(self, tensor: int) -> Products:
        """Return the inner products of one tensor of the model."""
        start = sum(self.widths[:tensor])
        gram = _gram(self.rows[:, start : start + self.widths[tensor]])
        squares, blur = self.squares[tensor], 0.0
        if self.widths[tensor] < self.sizes[tensor]:
            blur = _blur(gram, squares, float(self.totals[tensor]), self.widths[tensor])
        return self._products(
            gram,
            squares,
            None if self.inners is None else self.inners[tensor],
            float(self.totals[tensor]),
            self.pulls[tensor],
            float(self.pushes[tensor]),
            blur,
        )

    def whole(self) -> Products:
        """Return the inner products of the gradients of all tensors together."""
        if self.keep != "gradients":
            return joined([self.products(t) for t in range(len(self.sizes))])
        total, push = float(self.totals.sum()), float(self.pushes.sum())
        return self._products(_gram(self.rows), self.squares.sum(0), None, total, self.pulls.sum(0), push, 0.0)

    @staticmethod
    def _products(
        gram: Tensor, squares: Tensor, inners: Tensor | None, total: float, pull: Tensor, push: float, blur: float
    ) -> Products:
        gram = gram.clone()
        gram.diagonal().copy_(squares)  # what is known exactly goes before its sketch
        return Products(gram, squares, gram.sum(1) if inners is None else inners, total, pull, push, blur)


def add_up(
    draws: Draws,
    w: Tensor,
    n: int,
    *,
    d: Tensor | None = None,
    keep: Keep = "auto",
    group: ProcessGroup | None = None,
    shared: bool = False,
) -> Sums:
    """Take ``n`` gradients at ``w`` and keep what their inner products need.

    Args:
        draws: The mini-batches.
        w: The point, shape ``(P,)``.
        n: Mini-batches.
        d: A known vector that the objective adds to each gradient, shape ``(P,)``.
        keep: ``"gradients"``: all of them, n P numbers. ``"sketch"``: their sum and sketches. ``"second pass"``: too,
            and the same mini-batches once more for exact ``<g_i, S>``. ``"auto"``: the first within `BUDGET`, else the
            second.
        group: Process group to share the mini-batches out in; None: the default one, if ``shared``.
        shared: Whether to share them out: process r takes every R-th mini-batch, and one reduction joins them.

    Raises:
        InvalidInput: A second pass was asked for on several processes.
        DistributedError: Processes have different points, or one failed.
        NonFinite: A loss or gradient is NaN or infinite.
    """
    if keep not in get_args(Keep) or (shared and keep == "second pass"):
        raise InvalidInput(
            explain(
                f"keep is {keep!r}" + (" on several processes" if shared else ""),
                "gradients are kept or sketched; a second pass would need a second reduction",
                "Choose 'auto', 'gradients', 'sketch'" + ("" if shared else " or 'second pass'"),
            )
        )
    layout = draws.problem.layout
    wide = torch.promote_types(draws.problem.dtype, torch.float32)
    if keep == "auto":
        keep = "gradients" if n * layout.size * wide.itemsize <= BUDGET else "sketch"
    point = draws.problem._own(w).detach()
    sketches = [
        _Sketch(size, _width(size, layout.size, keep), draws.seed, t, point.device)
        for t, size in enumerate(layout.sizes)
    ]
    known = None if d is None else [part.to(point.device, wide) for part in layout.split(d)]
    processes = Processes(group, point.device) if shared else None
    mine = range(n) if processes is None else range(processes.rank, n, processes.count)
    work = _Work(draws, point, n, sketches, known, wide, keep)
    flat = work.run(mine) if processes is None else processes.sum(lambda: work.run(mine), point, work.length)
    total, rows, small = work.parts(flat)
    squares, pulls, losses = small
    parts = layout.split(total)
    inners = None
    if keep == "second pass":
        inners = torch.stack(draws.at(point, lambda gradient: [_dots(gradient(i)[1], parts) for i in range(n)]), dim=1)
    return Sums(
        rows,
        tuple(sketch.width for sketch in sketches),
        squares,
        pulls,
        inners,
        _dots(parts, parts),
        torch.zeros(len(parts), dtype=torch.float64) if known is None else _dots(known, known),
        layout.sizes,
        losses,
        keep,
        n * (2 if keep == "second pass" else 1),
    )


def check_count(n: int) -> None:
    """Refuse fewer mini-batches than tell signal from noise.

    Raises:
        InvalidInput: It is no whole number of at least two.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 2:
        raise InvalidInput(
            explain(
                "A gradient level was asked for from one mini-batch" if n == 1 else f"batches is {n!r}",
                "the squared norm of one noisy gradient cannot be told from its noise",
                "Take 2 mini-batches at least, and 16 or more for an interval that means something",
            )
        )


def joined(products: Sequence[Products]) -> Products:
    """Add the products of several tensors."""
    total = products[0]
    for one in products[1:]:
        total = total + one
    return total


def groups_of(names: Sequence[str], groups: Mapping[str, Iterable[str]]) -> dict[str, list[int]]:
    """Return the places in ``names`` of the tensors of each group.

    Raises:
        InvalidInput: A group names a tensor that is not there, or none.
    """
    found = {}
    for label, members in groups.items():
        listed = list(members)
        unknown = [name for name in listed if name not in names]
        if unknown or not listed:
            raise InvalidInput(
                explain(
                    f"The group {label!r} names {unknown[0]!r}" if unknown else f"The group {label!r} is empty",
                    f"the parameters are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
                    "List names of parameters",
                )
            )
        found[label] = sorted({names.index(name) for name in listed})
    return found


class _Work:
    """One process's share, as one vector that adds up over processes: S, the rows, and a few numbers."""

    def __init__(
        self,
        draws: Draws,
        w: Tensor,
        n: int,
        sketches: Sequence[_Sketch],
        known: Sequence[Tensor] | None,
        dtype: torch.dtype,
        keep: Keep,
    ) -> None:
        self.draws, self.w, self.n, self.sketches, self.known, self.dtype = draws, w, n, sketches, known, dtype
        self.keep = keep
        self.size, self.width = draws.problem.layout.size, sum(sketch.width for sketch in sketches)
        self.cells = (2 * len(sketches) + 1) * n

    @property
    def length(self) -> int:
        """Entries of the vector; each float64 of the few goes as three pieces that narrower floats hold."""
        return self.size + self.n * self.width + 3 * self.cells

    def run(self, mine: Sequence[int]) -> Tensor:
        """Take the gradients ``mine``."""
        flat = torch.zeros(self.length, dtype=self.dtype, device=self.w.device)
        rows = flat[self.size : self.size + self.n * self.width].view(self.n, self.width)
        small = torch.zeros(2 * len(self.sketches) + 1, self.n, dtype=torch.float64)
        if mine and self.keep == "gradients":
            small[:, list(mine)] = self._kept(mine, flat, rows)
        elif mine:
            small[:, list(mine)] = self.draws.at(self.w, lambda gradient: self._sketched(gradient, mine, flat, rows))
        for i in mine:
            check_finite(i, float(small[-1, i]), float(small[: len(self.sketches), i].sum()))
        flat[self.size + self.n * self.width :] = _pieces(small.reshape(-1), self.dtype).to(flat.device)
        return flat

    def _kept(self, mine: Sequence[int], flat: Tensor, rows: Tensor) -> Tensor:
        """Keep each gradient as it comes, and add up when all are there."""
        losses = together(self.draws, self.w, mine, rows)
        if losses is None:
            losses = self.draws.at(self.w, lambda gradient: self._one_by_one(gradient, mine, rows))
        torch.mv(rows.T, torch.ones(self.n, dtype=self.dtype, device=rows.device), out=flat[: self.size])
        own = rows if len(mine) == self.n else rows[list(mine)]
        parts = torch.split(own, list(self.draws.problem.layout.sizes), dim=1)
        squares = torch.stack([_row_dots(part, None) for part in parts])
        pulls = torch.zeros_like(squares)
        if self.known is not None:
            pulls = torch.stack([_row_dots(part, d.reshape(-1)) for part, d in zip(parts, self.known)])
        return torch.cat([squares, pulls, losses.double()[None]]).cpu()

    def _one_by_one(self, gradient: Gradient, mine: Sequence[int], rows: Tensor) -> Tensor:
        losses = []
        for i in mine:
            value, grads = gradient(i)
            losses.append(value)
            if grads[0].dtype == self.dtype:
                torch.cat([g.reshape(-1) for g in grads], out=rows[i])
            else:
                rows[i] = torch.cat([g.reshape(-1) for g in grads])
            del grads
        return torch.stack(losses)

    def _sketched(self, gradient: Gradient, mine: Sequence[int], flat: Tensor, rows: Tensor) -> Tensor:
        """Add each gradient to the sum, and keep its sketch."""
        total = self.draws.problem.layout.split(flat[: self.size])
        columns = []
        for i in mine:
            value, grads = gradient(i)
            wide = [g.to(self.dtype) for g in grads]
            torch._foreach_add_(total, wide)
            pulls = torch.zeros(len(wide), dtype=torch.float64) if self.known is None else _dots(wide, self.known)
            columns.append(torch.cat([_dots(wide, wide), pulls, value.double().cpu().reshape(1)]))
            start = 0
            for g, sketch in zip(wide, self.sketches):
                rows[i, start : start + sketch.width] = sketch(g)
                start += sketch.width
            del grads, wide, g
        return torch.stack(columns, dim=1)

    def parts(self, flat: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Take the vector apart into S, the rows, and ``(squares, pulls, losses)``."""
        total, rows, pieces = torch.split(flat, [self.size, self.n * self.width, 3 * self.cells])
        small = pieces.double().cpu().view(3, -1).sum(0).view(-1, self.n)
        tensors = len(self.sketches)
        return total, rows.view(self.n, self.width), (small[:tensors], small[tensors:-1], small[-1])


class _Sketch:
    r"""Random signs and buckets: ``E <S a, S b> = <a, b>``, exact where nothing is shortened."""

    def __init__(self, size: int, width: int, seed: int, tensor: int, device: torch.device) -> None:
        self.width = min(width, size)
        self.table: tuple[Tensor, Tensor] | None = None
        if self.width < size:
            stream = _rng.generator(seed, "gradient sketch", tensor)
            at = torch.randint(0, self.width, (size,), generator=stream, dtype=torch.int32)
            signs = 2 * torch.randint(0, 2, (size,), generator=stream, dtype=torch.int8) - 1
            self.table = at.to(device), signs.to(device)

    def __call__(self, g: Tensor) -> Tensor:
        flat = g.reshape(-1)
        if self.table is None:
            return flat
        at, signs = self.table
        return torch.zeros(self.width, dtype=g.dtype, device=g.device).index_add_(0, at, flat * signs)


def _width(size: int, whole: int, keep: Keep) -> int:
    return size if keep == "gradients" else max(_SHORTEST, -(-SKETCH * size // whole))


def _dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner products in float64 of tensors and their partners, on the CPU, converting some entries at a time."""
    found = []
    for one, other in zip(a, b):
        pieces = []
        for x, y in zip(torch.split(one.reshape(-1), _CHUNK), torch.split(other.reshape(-1), _CHUNK)):
            wide = x.double()
            pieces.append(wide.dot(wide if one is other else y.double()))
        found.append(pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum())
    return torch.stack(found).cpu()


def _row_dots(rows: Tensor, d: Tensor | None) -> Tensor:
    """Return the inner product of each row with ``d``, or itself, in float64, some columns at a time."""
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for k, part in enumerate(torch.split(rows, columns := _columns(rows), dim=1)):
        wide = part.double()
        found += wide.square().sum(1) if d is None else wide @ d[k * columns : (k + 1) * columns].double()
    return found


def _columns(rows: Tensor) -> int:
    """Columns to convert at a time: few enough for a cache, many enough for an accelerator."""
    return _SHORT if rows.device.type == "cpu" else _CHUNK


def _gram(rows: Tensor) -> Tensor:
    """Return all inner products of rows, float64 on the CPU.

    On the CPU rows in float32 are multiplied as they are, some columns at a time, which is right to ``1e-7`` of the
    product of two norms and takes a fourth of the time; not where such products have been made less exact.
    """
    exact = rows.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, _columns(rows), dim=1):
        factor = part if exact else part.double()
        gram += factor @ factor.T
    return gram.cpu()


def _pieces(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write float64 numbers as three of ``dtype`` each that add up to them."""
    found, rest = [], values
    for _ in range(3):
        found.append(rest.to(dtype))
        rest = rest - found[-1].double()
    return torch.cat(found)


def _blur(gram: Tensor, squares: Tensor, total: float, width: int) -> float:
    r"""What sketches of ``width`` entries add to the mean square of ``<g_i - \bar g, g_j - \bar g>``, ``i != j``."""
    n = len(squares)
    row = gram.mean(1)
    own = squares - 2 * (row - gram.diagonal() / n + squares / n) + total / n**2  # |g_i - mean|^2
    spread = (float(own.sum()) ** 2 - float(own.square().sum())) / (n * (n - 1))
    sketched = gram - row - row[:, None] + gram.mean()
    inner = (float(sketched.square().sum()) - float(sketched.diagonal().square().sum())) / (n * (n - 1))
    return (spread + max(0.0, inner - spread / width)) / width
