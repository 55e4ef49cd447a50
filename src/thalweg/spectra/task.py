"""What is asked of an eigensolver, and what it hands back to be certified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.errors import NonFinite, explain
from thalweg.operators.base import Operator
from thalweg.spectra.results import Stop

Array = NDArray[np.float64]
Which = Literal["largest", "smallest", "both", "magnitude"]

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
SMALL = 1e-3
"""Eigenvalues below this share of the norm are held to a residual relative to it, not to themselves."""


@dataclass(frozen=True)
class Task:
    """Which pairs of which operator.

    Attributes:
        operator: Symmetric.
        k: Pairs from each end that is asked for; at most ``room``.
        which: The end or ends.
        tol: Relative residual.
        budget: Products that the solver may spend.
        seed: Of every random vector.
        start: Guesses as rows, shape ``(l, P)``, or None.
        against: Orthonormal rows of a space to leave out, or None.
    """

    operator: Operator
    k: int
    which: Which
    tol: float
    budget: int
    seed: int = 0
    start: Tensor | None = None
    against: Tensor | None = None
    first: int = field(default=0)
    """Products of the operator before this task."""

    @property
    def room(self) -> int:
        """Dimension of the space in which pairs are sought."""
        return self.operator.size - (0 if self.against is None else len(self.against))

    @property
    def count(self) -> int:
        """Pairs asked for in all."""
        return min(2 * self.k if self.which == "both" else self.k, self.room)

    @property
    def spent(self) -> int:
        """Products since the task began."""
        return self.operator.products - self.first

    @property
    def eps(self) -> float:
        """Rounding of the operator's dtype."""
        return float(torch.finfo(self.operator.dtype).eps)

    def limits(self, values: Array, norm: float) -> Array:
        """The residual at which a pair has converged: ``tol max(|theta|, 1e-3 |A|)``, never below rounding."""
        relative: Array = self.tol * np.maximum(np.abs(values), SMALL * norm)
        return np.maximum(relative, 4 * self.eps * norm)

    def rounding(self, norm: float) -> float:
        """What products and restarts have lost: it adds up like a random walk."""
        return self.eps * norm * float(np.sqrt(max(self.spent, 1)))


@dataclass(frozen=True)
class Found:
    """Pairs with residuals as stored products give them.

    Attributes:
        values: Shape ``(k,)``.
        rows: Vectors as rows, shape ``(k, P)``.
        stop: Why the solver ended.
        norm: Largest magnitude of an eigenvalue seen.
        defects: Directions, shape ``(r, P)``, in which residuals point.
        gram: Their inner products, shape ``(r, r)``.
        shares: Residual vectors are ``shares @ defects``; shape ``(k, r)``.
        notes: What is to be said about the way there.
    """

    values: Array
    rows: Tensor
    stop: Stop
    norm: float
    defects: Tensor
    gram: Array
    shares: Array
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, task: Task, values: Array, rows: Tensor, stop: Stop, norm: float, defects: Tensor, shares: Array,
        notes: tuple[str, ...] = (),
    ) -> Found:  # fmt: skip
        """Take the inner products of ``defects`` as the operator's vectors are held."""
        gram = task.operator.space.inner(defects, defects).to("cpu", torch.float64).numpy()
        return cls(values, rows, stop, norm, defects, gram, shares, notes)

    @property
    def residuals(self) -> Array:
        """Their norms, shape ``(k,)``."""
        squared: Array = np.einsum("ij,jk,ik->i", self.shares, self.gram, self.shares)
        return np.sqrt(np.maximum(squared, 0.0))

    def take(self, positions: list[int]) -> Found:
        """Only these pairs."""
        index = torch.tensor(positions, dtype=torch.int64, device=self.rows.device)
        return Found(
            self.values[positions], self.rows[index], self.stop, self.norm, self.defects, self.gram,
            self.shares[positions], self.notes,
        )  # fmt: skip


class Method(Protocol):
    """What every solver is: its limits, and how it solves a task."""

    @property
    def tol(self) -> float | None:
        """Relative residual; None for the dtype's default."""

    @property
    def max_products(self) -> int | None:
        """Budget; None for a generous one."""

    @property
    def certify(self) -> bool:
        """Whether to confirm residuals by fresh products."""

    @property
    def name(self) -> str:
        """As results show it."""

    def solve(self, task: Task) -> Found:
        """Solve, counting no product that a certificate needs."""


def tolerance(tol: float | None, dtype: torch.dtype) -> float:
    """The relative residual in force for ``dtype``: 1e-7 in float64, 1e-4 below, unless given."""
    return tol if tol is not None else _TOLERANCE.get(dtype, 1e-4)


def wanted(values: Array, k: int, which: Which) -> list[int]:
    """Return the positions of the wanted ones among ascending ``values``."""
    n = len(values)
    if which == "largest":
        return list(range(max(n - k, 0), n))
    if which == "smallest":
        return list(range(min(k, n)))
    if which == "both":
        return sorted({*range(min(k, n)), *range(max(n - k, 0), n)})
    return sorted(np.argsort(-np.abs(values), kind="stable")[:k].tolist())


def not_finite(number: int) -> NonFinite:
    """The error for product ``number``."""
    return NonFinite(
        explain(
            f"Product number {number} is not finite",
            "the loss overflows or has left its domain at this point",
            "Check the loss and gradient there; lower the learning rate, or use float64",
        )
    )
