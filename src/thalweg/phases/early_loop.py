"""Short runs of networks, one after the other: slow, for any module, and what faster ways are held against."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import NonFinite, NotConverged
from thalweg.operators import hessian
from thalweg.phases.early import Array, EarlyCurves, Row
from thalweg.phases.early_copies import Copy, CopyRuns, batch_indices
from thalweg.problem import Problem
from thalweg.spectra import top_eigenpairs

POWER_STEPS = 20
"""Power iterations of the demonstration's protocol, which ends with one Rayleigh quotient."""


class LoopRuns(CopyRuns):
    """`EarlyRuns` of networks, a row at a time.

    Args:
        copies: One per seed, of one architecture.
        steps: Steps of a run.
        cutoff: Loss beyond which a run has diverged.
        batch_size: Samples of a step; None for all.
        tol: Relative residual of the sharpness after step 0; a tenth of it at step 0, which sets the learning rate.
        demo: Measure as the public demonstration does: 20 power iterations from a fixed vector, and with mini-batches
            the sharpness after a step on the next batch, which training then skips.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        *,
        steps: int = 10,
        cutoff: float = 1e5,
        batch_size: int | None = None,
        tol: float = 1e-3,
        demo: bool = False,
    ) -> None:
        super().__init__(copies, steps=steps, cutoff=cutoff, batch_size=batch_size, tol=tol)
        self.copies, self.demo = list(copies), demo
        began = time.perf_counter()
        self.starts = [copy.measured.initial for copy in self.copies]
        self.loss0 = np.array([float(c.measured.value(w)) for c, w in zip(self.copies, self.starts)])
        self._vectors: list[Tensor | None] = [None] * len(self.copies)
        self.sharpness0 = np.full(len(self.copies), np.nan)
        for i, start in enumerate(self.starts):
            if np.isfinite(self.loss0[i]):
                value, vector = self.sharpness(self.copies[i].measured, start, tol / 10, None)
                self.sharpness0[i], self._vectors[i] = value, vector
        self._gradients: list[Tensor | None] = [None] * len(self.copies)
        self._spend(forwards=len(self.copies), seconds=time.perf_counter() - began)

    def first_losses(self, rows: Sequence[Row]) -> Array:
        """Losses after the first step, by forward passes along the first gradient, shape ``(R,)``."""
        began = time.perf_counter()
        found = [
            float(self.copies[i].measured.value(self.starts[i] - self._rate(i, c) * self.first_gradient(i)))
            for i, c in rows
        ]
        self._spend(forwards=len(found), seconds=time.perf_counter() - began)
        return np.array(found)

    def run(
        self, rows: Sequence[Row], measure: Collection[int] = (), ceiling: Sequence[float] | None = None
    ) -> EarlyCurves:
        """Train each row; see `EarlyRuns.run`."""
        began = time.perf_counter()
        level = [np.inf] * len(rows) if ceiling is None else ceiling
        done = [self._train(i, c, self.steps, frozenset(measure), top)[:2] for (i, c), top in zip(rows, level)]
        self._spend(runs=len(done), seconds=time.perf_counter() - began)
        empty = np.empty((0, self.steps + 1))
        loss = np.stack([one[0] for one in done]) if done else empty
        return EarlyCurves(tuple(rows), loss, np.stack([one[1] for one in done]) if done else empty)

    def barrier(self, rows: Sequence[Row], points: int = 101) -> Array:
        """Largest ``L / L_0`` on the segment to the end of each run; see `EarlyRuns.barrier`."""
        began = time.perf_counter()
        found = []
        for i, c in rows:
            loss, _, end = self._train(i, c, self.steps, frozenset())
            if not loss[-1] <= self.cutoff:
                found.append(np.inf)
                continue
            shares = torch.linspace(0, 1, points, dtype=torch.float64)[1:].tolist()
            along = [float(self.copies[i].measured.value(torch.lerp(self.starts[i], end, s))) for s in shares]
            found.append(max(np.inf if np.isnan(v) else v for v in along) / self.loss0[i])
            self._spend(forwards=len(along))
        self._spend(runs=len(rows), seconds=time.perf_counter() - began)
        return np.array(found)

    def sharpness_at(self, rows: Sequence[Row], steps: Sequence[int], ceiling: Sequence[float] | None = None) -> Array:
        """Sharpness of each row after its own number of steps; see `EarlyRuns.sharpness_at`."""
        began = time.perf_counter()
        found = [self._train(i, c, n, frozenset((n,)))[1][n] for (i, c), n in zip(rows, steps)]
        self._spend(runs=len(found), seconds=time.perf_counter() - began)
        return np.array(found)

    def first_gradient(self, i: int) -> Tensor:
        """Gradient of the first step, shape ``(P,)``; taken once."""
        known = self._gradients[i]
        if known is None:
            order = self._order(i, self.steps)
            known = self._gradients[i] = self._on(i, order, 0).gradient(self.starts[i])
            self._spend(gradients=1)
        return known

    def sharpness(self, problem: Problem, w: Tensor, tol: float, start: Tensor | None) -> tuple[float, Tensor | None]:
        """Largest eigenvalue and its vector; NaN where products are not finite or do not converge."""
        if self.demo:
            return self._power(problem, w)
        try:
            found = top_eigenpairs(hessian(problem, w), tol=max(tol, 10 * torch.finfo(w.dtype).eps), start=start)
        except NonFinite:
            return np.nan, None
        except NotConverged as error:
            self._spend(products=getattr(error.result, "products", 0), solves=1)
            return np.nan, None
        self._spend(products=found.products, solves=1)
        return float(found.values[0]), found.vectors[:, 0]

    def _power(self, problem: Problem, w: Tensor) -> tuple[float, Tensor | None]:
        operator = hessian(problem, w)
        stream = _rng.generator(0, "power iteration")
        v = torch.randn(len(w), generator=stream, dtype=torch.float64).to(w)
        for _ in range(POWER_STEPS):
            v = operator.matvec(v / v.norm())
        v = v / v.norm()
        self._spend(products=POWER_STEPS + 1, solves=1)
        return float(v @ operator.matvec(v)), v

    def _train(
        self, i: int, c: float, steps: int, measure: frozenset[int], ceiling: float = np.inf
    ) -> tuple[Array, Array, Tensor]:
        """Losses, sharpness and the end of one run, which stops above the ceiling."""
        copy, rate = self.copies[i], self._rate(i, c)
        loss, sharpness = np.full(steps + 1, np.inf), np.full(steps + 1, np.nan)
        loss[0], sharpness[0] = self.loss0[i], self.sharpness0[i]
        order, vector = self._order(i, steps), self._vectors[i]
        both = order is None and copy.train is copy.measured
        w, gradient = self.starts[i], self.first_gradient(i)
        for t in range(1, steps + 1):
            w = w - rate * gradient
            if both and t < steps:
                value, gradient = copy.train.value_and_gradient(w)
            else:
                value = copy.measured.value(w)
            loss[t] = float(value)
            self._spend(**{"gradients" if both and t < steps else "forwards": 1})
            if not loss[t] <= self.cutoff:
                break
            if t in measure:
                # the demonstration takes the batch that training would have used next
                set_ = copy.measured if order is None or not self.demo else copy.train.subset(order[2 * t - 1])
                sharpness[t], found = self.sharpness(set_, w, self.tol, vector)
                vector = vector if found is None else found
                if sharpness[t] > ceiling:
                    loss[t + 1 :] = np.nan
                    break
            if not both and t < steps:
                gradient = self._on(i, order, t).gradient(w)
                self._spend(gradients=1)
        return loss, sharpness, w

    def _order(self, i: int, steps: int) -> Tensor | None:
        if self.batch_size is None:
            return None
        copy, drawn = self.copies[i], max(steps, self.steps) * (2 if self.demo else 1)
        return batch_indices(copy.seed, int(copy.train.samples), self.batch_size, drawn)

    def _on(self, i: int, order: Tensor | None, step: int) -> Problem:
        train = self.copies[i].train
        return train if order is None else train.subset(order[2 * step if self.demo else step])

    def _rate(self, i: int, c: float) -> float:
        return c / float(self.sharpness0[i])
