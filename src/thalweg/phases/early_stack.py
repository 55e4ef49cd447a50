"""Short runs of networks, all of them as one program over stacked parameters."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import Array, EarlyCurves, Row
from thalweg.phases.early_copies import Copy, CopyRuns, batch_indices
from thalweg.sweeps.batched import Curves, train_stack
from thalweg.sweeps.batched_lanczos import top_eigenvalues
from thalweg.sweeps.stack import Stack

TOGETHER = 128
"""Points whose losses are evaluated in one call."""


def obstacle(copies: Sequence[Copy]) -> str:
    """Return what keeps these copies from being one stack, or nothing."""
    first = copies[0]
    if any(copy.train is not copy.measured for copy in copies):
        return "loss and sharpness are measured on another set than is trained on"
    if any(copy.train.layout != first.train.layout for copy in copies):
        return "the copies have different parameters"
    ours = dict(first.train.model.named_buffers())
    for copy in copies[1:]:
        theirs = dict(copy.train.model.named_buffers())
        if theirs.keys() != ours.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
            return "the copies have different buffers"
    return ""


class StackRuns(CopyRuns):
    """`EarlyRuns` of networks that differ in nothing but their parameters, stacked.

    Args:
        copies: One per seed; `obstacle` has nothing to say about them.
        steps: Steps of a run.
        cutoff: Loss beyond which a run has diverged.
        batch_size: Samples of a step; None for all.
        tol: Relative residual of the sharpness after step 0; a tenth of it at step 0.

    Raises:
        InvalidInput: The copies are no stack, or their losses differ from those of their own modules.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        *,
        steps: int = 10,
        cutoff: float = 1e5,
        batch_size: int | None = None,
        tol: float = 1e-3,
    ) -> None:
        began = time.perf_counter()
        problem = copies[0].train
        why = obstacle(copies)
        own = [] if why else [float(copy.train.value(copy.train.initial)) for copy in copies]
        self.stack = Stack(problem)
        self.starts = torch.stack([copy.train.initial for copy in copies]) if not why else problem.initial[None]
        losses, self._gradient = self.stack.value_and_gradient(self.starts)
        if not why and not np.allclose(losses.double().cpu().numpy(), own, rtol=1e-4, atol=1e-6, equal_nan=True):
            why = "copies of the first module with the parameters of the others have other losses than these"
        if why:
            raise InvalidInput(explain("The copies cannot be stacked", why, "Run them one after the other"))
        super().__init__(copies, steps=steps, cutoff=cutoff, batch_size=batch_size, tol=tol)
        self._loss0 = losses.double().cpu()
        first = top_eigenvalues(self.stack, self.starts, tol=max(tol / 10, 10 * torch.finfo(problem.dtype).eps))
        self._guess, self._sharpness0 = first.guess, torch.where(first.converged, first.values, torch.nan)
        self.loss0, self.sharpness0, self._samples = self._loss0.numpy(), self._sharpness0.numpy(), int(problem.samples)
        self._spend(
            products=int(first.products.sum()), gradients=len(copies), forwards=len(copies), solves=len(copies),
            seconds=time.perf_counter() - began,
        )  # fmt: skip
        self._first: Tensor | None = self._gradient if batch_size is None else None

    def first_losses(self, rows: Sequence[Row]) -> Array:
        """Losses after the first step, by forward passes along the first gradient, shape ``(R,)``."""
        began = time.perf_counter()
        gradient, place = self._first_gradient(), self._places(rows)
        rates = self._rates(rows).to(self.starts)
        parts = [
            self.stack.loss(self.starts[place[part]] - rates[part, None] * gradient[place[part]])
            for part in _parts(len(rows))
        ]
        self._spend(forwards=len(rows), seconds=time.perf_counter() - began)
        return np.asarray(torch.cat(parts).double().cpu().numpy()) if parts else np.empty(0)

    def run(
        self, rows: Sequence[Row], measure: Collection[int] = (), ceiling: Sequence[float] | None = None
    ) -> EarlyCurves:
        """Train all rows; see `EarlyRuns.run`."""
        if not rows:
            return EarlyCurves((), np.empty((0, self.steps + 1)), np.empty((0, self.steps + 1)))
        found = self._train(rows, self.steps, measure, ceiling)
        sharpness = found.sharpness.copy()
        sharpness[:, 0] = self.sharpness0[self._places(rows)]
        return EarlyCurves(tuple(rows), found.loss, sharpness)

    def barrier(self, rows: Sequence[Row], points: int = 101) -> Array:
        """Largest ``L / L_0`` on the segment to the end of each run; see `EarlyRuns.barrier`."""
        if not rows:
            return np.empty(0)
        final = self._train(rows, self.steps, (), None, keep_final=True).final
        assert final is not None
        began = time.perf_counter()
        shares = torch.linspace(0, 1, points, dtype=torch.float64)[1:]
        heights, count = np.full(len(rows), np.inf), 0
        for r, ((i, _), end) in enumerate(zip(rows, final.to(self.starts))):
            if not bool(torch.isfinite(end).all()):
                continue
            start, losses = self.starts[i], []
            for part in _parts(len(shares)):
                losses.append(self.stack.loss(start + shares[part, None].to(start) * (end - start)))
            along = torch.cat(losses).double()
            heights[r] = float(torch.where(along.isnan(), torch.inf, along).max()) / self.loss0[i]
            count += len(along)
        self._spend(forwards=count, seconds=time.perf_counter() - began)
        return heights

    def sharpness_at(self, rows: Sequence[Row], steps: Sequence[int], ceiling: Sequence[float] | None = None) -> Array:
        """Sharpness of each row after its own number of steps; see `EarlyRuns.sharpness_at`."""
        found = np.full(len(rows), np.nan)
        for count in sorted(set(steps)):
            own = [r for r, n in enumerate(steps) if n == count]
            if count == 0:
                found[own] = self.sharpness0[self._places([rows[r] for r in own])]
            else:
                level = None if ceiling is None else [ceiling[r] for r in own]
                found[own] = self._train([rows[r] for r in own], count, (count,), level).sharpness[:, count]
        return found

    def _train(
        self, rows: Sequence[Row], steps: int, measure: Collection[int], ceiling: Sequence[float] | None,
        keep_final: bool = False,
    ) -> Curves:  # fmt: skip
        place = self._places(rows)
        batches = None
        if self.batch_size is not None:
            orders = {i: self._order(i, steps) for i in set(place.tolist())}
            batches = torch.stack([orders[i] for i in place.tolist()], dim=1)  # (steps, R, B)
        found = train_stack(
            self.stack, self.starts, self._rates(rows), steps, index=place, measure=set(measure), tol=self.tol,
            cutoff=self.cutoff, batches=batches, loss0=self._loss0, guess0=self._guess,
            gradient0=self._gradient if batches is None else None, sharpness0=self._sharpness0, keep_final=keep_final,
            ceiling=None if ceiling is None else torch.tensor(ceiling, dtype=torch.float64),
        )  # fmt: skip
        self._spend(
            products=found.products, gradients=found.gradients, forwards=found.forwards, runs=len(rows),
            solves=int(np.isfinite(found.sharpness[:, 1:]).sum()), seconds=found.seconds,
        )  # fmt: skip
        return found

    def _first_gradient(self) -> Tensor:
        """Gradients of the first step, shape ``(S, P)``."""
        if self._first is None:
            batch = torch.stack([self._order(i, self.steps)[0] for i in range(len(self.seeds))])
            self._first = self.stack.value_and_gradient(self.starts, batch)[1]
            self._spend(gradients=len(self.seeds))
        return self._first

    def _order(self, i: int, steps: int) -> Tensor:
        """Samples of each step; the first ones do not depend on how many steps there are."""
        assert self.batch_size is not None
        return batch_indices(self.seeds[i], self._samples, self.batch_size, steps)

    def _places(self, rows: Sequence[Row]) -> Tensor:
        return torch.tensor([i for i, _ in rows], dtype=torch.int64)

    def _rates(self, rows: Sequence[Row]) -> Tensor:
        return torch.tensor([c for _, c in rows], dtype=torch.float64) / self._sharpness0[self._places(rows)]


def _parts(count: int) -> list[slice]:
    return [slice(low, min(low + TOGETHER, count)) for low in range(0, count, TOGETHER)]
