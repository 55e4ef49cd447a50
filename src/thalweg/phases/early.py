"""What critical constants are measured on: short runs at ``eta = c / lambda_0``, whoever does them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, NonFinite, explain

Array = NDArray[np.float64]
Row = tuple[int, float]
"""Place of a seed, from 0, and ``c``: one run at the learning rate ``c / lambda_0`` of that seed's initialisation."""


@dataclass(frozen=True)
class Cost:
    """What was computed, in passes over the training or the measurement set.

    Attributes:
        products: Hessian-vector products.
        gradients: Gradients.
        forwards: Losses without a gradient.
        solves: Largest eigenvalues, each of several products.
        runs: Short runs begun.
        seconds: Wall-clock time.
    """

    products: int = 0
    gradients: int = 0
    forwards: int = 0
    solves: int = 0
    runs: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return replace(self, **{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def __repr__(self) -> str:
        return (
            f"{self.runs} runs: {self.solves} eigenvalues by {self.products} Hessian products, "
            f"{self.gradients} gradients, {self.forwards} forward passes, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class EarlyCurves:
    """Curves of short runs, one row each.

    Attributes:
        rows: Index of the seed and ``c`` of each run.
        loss: ``L_0 .. L_T``, shape ``(R, T + 1)``; infinite or NaN from where a run diverged.
        sharpness: ``lambda_0 .. lambda_T``, shape ``(R, T + 1)``; NaN where not measured, and after divergence.
    """

    rows: tuple[Row, ...]
    loss: Array
    sharpness: Array

    def __repr__(self) -> str:
        return f"EarlyCurves({len(self.rows)} runs of {self.loss.shape[1] - 1} steps)"


class EarlyRuns(Protocol):
    """One architecture at several initialisations, trained for a few steps at any ``c``.

    Networks implement it, and so does any model whose recursion is known: the machinery that finds critical constants
    asks for nothing else, and is tested on the latter.
    """

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per initialisation and order of batches."""

    @property
    def loss0(self) -> Array:
        """``L_0`` of each seed, shape ``(S,)``."""

    @property
    def sharpness0(self) -> Array:
        """``lambda_0`` of each seed, shape ``(S,)``: the unit of learning rates, ``eta = c / lambda_0``."""

    @property
    def steps(self) -> int:
        """Steps of a run; ten in the paper."""

    @property
    def cutoff(self) -> float:
        """Loss beyond which a run has diverged."""

    @property
    def cost(self) -> Cost:
        """What was spent since construction."""

    def first_losses(self, rows: Sequence[Row]) -> Array:
        """``L(theta_0 - (c / lambda_0) g_0)`` of each row, shape ``(R,)``: forward passes only."""

    def run(
        self, rows: Sequence[Row], measure: Collection[int] = (), ceiling: Sequence[float] | None = None
    ) -> EarlyCurves:
        """Train every row for ``steps`` steps; ``measure`` are the steps, from 1, at which to take the sharpness.

        A run whose sharpness exceeds its ``ceiling`` may stop there: a lower bound of that sharpness, above the
        ceiling, is then the last that is known of it, and later losses are NaN.
        """

    def barrier(self, rows: Sequence[Row], points: int = 101) -> Array:
        """Largest ``L / L_0`` on the segment from ``theta_0`` to ``theta_T``, at ``points`` equal distances.

        ``theta_0`` itself, where the ratio is one, is left out. Infinite for a run that diverges. Shape ``(R,)``.
        """

    def sharpness_at(self, rows: Sequence[Row], steps: Sequence[int], ceiling: Sequence[float] | None = None) -> Array:
        """Sharpness of each row after its own number of steps, shape ``(R,)``; NaN for a run that diverges.

        Where it exceeds the row's ``ceiling``, a lower bound above that will do.
        """


def check_start(runs: EarlyRuns) -> None:
    """Refuse runs without a seed, or whose initial loss or sharpness makes no learning rate.

    Raises:
        InvalidInput: No seed.
        NonFinite: A loss or sharpness at initialisation is NaN, infinite, or a sharpness not positive.
    """
    if not runs.seeds or runs.steps < 1:
        raise InvalidInput(
            explain(
                f"{len(runs.seeds)} seeds, {runs.steps} steps",
                "a critical constant is read off at least one run of at least one step",
                "Pass seeds and steps",
            )
        )
    for seed, loss, sharpness in zip(runs.seeds, runs.loss0, runs.sharpness0):
        if not (np.isfinite(loss) and np.isfinite(sharpness) and sharpness > 0):
            raise NonFinite(
                explain(
                    f"Seed {seed} starts at a loss of {loss:.6g} with sharpness {sharpness:.6g}",
                    "the learning rate is c over the sharpness at initialisation, which is finite and positive",
                    "Check data and initialisation of the model",
                )
            )
