"""Block LOBPCG on callables: warm starts, preconditioners, and one product per unconverged pair and iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.spectra.hidden import MISS, REACH, Edges, look
from thalweg.spectra.results import Stop
from thalweg.spectra.subspace import Subspace
from thalweg.spectra.task import Array, Found, Task, wanted
from thalweg.spectra.thick_restart import positive

Positions = NDArray[np.int64]
STEEP = 0.01
"""Cosine between residual and preconditioned residual below which the residual itself is taken."""


@dataclass(frozen=True)
class LOBPCG:
    r"""Locally optimal block preconditioned conjugate gradients (Knyazev, 2001), in an orthonormal basis.

    An iteration adds the preconditioned residuals ``W = M (A X - X \theta)`` of the pairs that have not converged to
    the Ritz vectors ``X`` and the last steps ``P``, and takes the best pairs of the span. Products of ``X`` and ``P``
    are recombined from stored ones, so it costs one product per unconverged pair. Converged pairs stay in the span
    and cost nothing (soft locking), and the basis is kept orthonormal, steps included (Hetmaniuk and Lehoucq, 2006).

    With ``basis`` larger than three blocks, steps are not forgotten until it is full. That is a block Davidson method
    (Stathopoulos, 2007: GD+k), and needs fewer products: without a preconditioner its space is a block Krylov space.

    Attributes:
        tol: Relative residual; default 1e-7 in float64, 1e-4 below.
        max_products: Budget; default ``20 P`` up to 10,000.
        basis: Vectors kept at once, each with its product; default three per pair.
        block: Residuals added per iteration, the most wanted pairs' first; default those of all unconverged pairs.
        preconditioner: From residuals as columns ``(P, b)`` to directions ``(P, b)``, positive definite, such as an
            approximate inverse. It proposes directions, and Ritz values judge them: none makes a result wrong.
        check_missed: With a start, look for eigenvalues that belong to the result and are orthogonal to it.
        certify: Confirm the residuals by fresh products at the end.

    Raises:
        InvalidInput: A field is out of range.
    """

    tol: float | None = None
    max_products: int | None = None
    basis: int | None = None
    block: int | None = None
    preconditioner: Callable[[Tensor], Tensor] | None = None
    check_missed: bool = True
    certify: bool = True

    def __post_init__(self) -> None:
        positive("LOBPCG", tol=self.tol, max_products=self.max_products, basis=self.basis, block=self.block)

    @property
    def name(self) -> str:
        """As results show it."""
        said = [] if self.basis is None else [f"basis={self.basis}"]
        said += [] if self.block is None else [f"block={self.block}"]
        said += [] if self.preconditioner is None else ["preconditioned"]
        return f"LOBPCG({', '.join(said)})" if said else "LOBPCG"

    def solve(self, task: Task) -> Found:
        """Converge the wanted pairs of ``task``."""
        return _Solve(task, self).run()


class _Solve:
    """One task."""

    def __init__(self, task: Task, method: LOBPCG) -> None:
        self.task, self.method = task, method
        least = 3 * task.count
        asked = method.basis or least
        if asked < least:
            raise InvalidInput(
                explain(
                    f"LOBPCG got basis={asked} for {task.count} pairs",
                    "pairs, residuals and steps need three vectors each",
                    f"Pass {least} or more, or None",
                )
            )
        started = 0 if task.start is None else len(task.start)
        self.capacity = min(max(asked, 2 * task.count + started), task.room)
        self.stream = _rng.generator(task.seed, "lobpcg")
        self.basis = Subspace(task.operator, self.capacity, task.against)
        self.last: Array | None = None
        """Coordinates of the previous iteration's pairs, in the basis as it was then."""
        self.norm = 0.0

    def run(self) -> Found:
        """Iterate; where a start was given, look for what is orthogonal to it, and go on with that."""
        task, notes = self.task, tuple[str, ...]()
        self._fill(task.start)
        found = self._iterate()
        if task.start is None or not self.method.check_missed:
            return found
        for attempt in range(task.room):
            if not found.stop.converged or found.stop is Stop.INVARIANT:
                break
            edges = Edges.of(task, found.values, self.norm, REACH)
            hint, chance = look(task, [task.against, found.rows], edges, _rng.generator(task.seed, "missed", attempt))
            if hint is None:
                stated = f"the start has missed something with a probability of at most {max(chance, MISS):.1g}"
                return replace(found, notes=(*notes, stated))
            notes = ("the start had missed a wanted eigenvector",)
            self._forget(room_for=1)
            self.basis.add(hint[None])
            found = self._iterate()
        return replace(found, notes=notes)

    def _fill(self, start: Tensor | None) -> None:
        """Begin with the start, and random vectors where it is too few."""
        if start is not None:
            self.basis.add(start)
        space = self.task.operator.space
        for _ in range(3):
            missing = min(self.task.count - self.basis.size, self.task.budget - self.task.spent)
            if missing > 0:
                self.basis.add(torch.stack([space.random(self.stream) for _ in range(missing)]))

    def _iterate(self) -> Found:
        """Expand by residuals until the wanted pairs have converged."""
        task, basis = self.task, self.basis
        best, since = np.inf, 0
        while True:
            values, coordinates = basis.ritz()
            self.norm = max(self.norm, float(np.abs(values[[0, -1]]).max()))
            picked = wanted(values, task.k, task.which)
            values, pairs = values[picked], coordinates[:, picked]
            rows = basis.residuals(values, pairs)
            lengths = task.operator.space.norm(rows).to("cpu", torch.float64).numpy()
            ratio = lengths / np.maximum(task.limits(values, self.norm), 1e-300)
            active = np.flatnonzero(ratio > 1.0)
            since = 0 if ratio.max() < 0.5 * best else since + 1
            best = min(best, float(ratio.max()))
            stop = None
            if not len(active) and len(picked) == task.count:
                stop = Stop.CONVERGED
            elif basis.size == task.room:
                stop = Stop.INVARIANT
            elif task.spent >= task.budget:
                stop = Stop.BUDGET
            elif (since > 100 and best < 100 and task.eps > 1e-10) or not self._expand(rows, active, values, pairs):
                stop = Stop.STAGNATED
            if stop is not None:
                shares = np.eye(len(picked))
                return Found.of(task, values, basis.vectors(pairs), stop, self.norm, rows, shares)

    def _chosen(self, active: Positions, values: Array) -> Positions:
        """Positions of the residuals to add: the most wanted pairs first."""
        order = np.abs(values[active]) if self.task.which in ("both", "magnitude") else values[active]
        order = order if self.task.which == "smallest" else -order
        most = min(self.method.block or len(active), self.task.budget - self.task.spent)
        chosen: Positions = active[np.argsort(order, kind="stable")][:most]
        return chosen

    def _expand(self, residuals: Tensor, active: Positions, values: Array, pairs: Array) -> int:
        """Add directions, making room if need be; return how many were new."""
        new = residuals[torch.from_numpy(self._chosen(active, values)).to(residuals.device)]
        if self.method.preconditioner is not None:
            new = self._preconditioned(new)
        if self.basis.size + len(new) > self.capacity:
            pairs = self._forget(len(new))
        self.last = pairs
        return self.basis.add(new)

    def _preconditioned(self, residuals: Tensor) -> Tensor:
        assert self.method.preconditioner is not None
        given = self.method.preconditioner(residuals.T)
        if given.shape != residuals.T.shape or not bool(torch.isfinite(given).all()):
            raise InvalidInput(
                explain(
                    f"The preconditioner gave {tuple(given.shape)} for residuals {tuple(residuals.T.shape)}"
                    + ("" if given.shape != residuals.T.shape else ", with NaN or infinite entries"),
                    "it maps residuals as columns to directions of the same shape",
                    "Return a finite tensor of the shape that comes in",
                )
            )
        space, given = self.task.operator.space, given.T
        along = space.all_sum((residuals * given).sum(dim=1))
        if bool((along < 0).any()):
            raise InvalidInput(
                explain(
                    f"The preconditioner is indefinite: r' M r = {float(along.min()):.2e} for a residual r",
                    "its direction leads away from the wanted pairs, and the iteration may stand still",
                    "Pass a positive definite one, such as the absolute value of yours",
                )
            )
        # A direction at a right angle to the residual gains nothing; the residual itself always does.
        steep = along > STEEP * space.norm(residuals) * space.norm(given)
        return torch.where(steep[:, None], given, residuals)

    def _forget(self, room_for: int) -> Array:
        """Make room: keep Ritz vectors and the last steps; return the new coordinates of the wanted pairs."""
        basis, task = self.basis, self.task
        values, coordinates = basis.ritz()
        picked = wanted(values, task.k, task.which)
        most = max(self.capacity - room_for, len(picked))
        spare = max(most - 2 * len(picked), 0) // 2
        ends = 2 if task.which == "both" else 1
        more = wanted(values, task.k + spare // ends, task.which)[:most]
        kept = [*picked, *[i for i in more if i not in picked]][:most]
        chosen = coordinates[:, kept]
        if self.last is not None and len(kept) < most:
            old = np.zeros((basis.size, self.last.shape[1]))
            old[: len(self.last)] = self.last
            steps = coordinates[:, picked] - old @ (old.T @ coordinates[:, picked])
            steps -= chosen @ (chosen.T @ steps)
            left, sizes, _ = np.linalg.svd(steps, full_matrices=False)
            # A step below rounding has no direction.
            steps = left[:, sizes > 1e3 * task.eps][:, : most - len(kept)]
            chosen, _ = np.linalg.qr(np.concatenate([chosen, steps], axis=1))
        basis.compress(chosen)
        return np.eye(chosen.shape[1])[:, : len(picked)]
