"""What short runs of networks start from, however they are run: copies of one architecture, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import Array, Cost
from thalweg.problem import Problem


@dataclass(frozen=True)
class Copy:
    """One initialisation with its data.

    Attributes:
        seed: Of the initialisation, and of the order of batches.
        train: What is trained on.
        measured: What loss and sharpness are measured on; the same object where the sets are the same.
    """

    seed: int
    train: Problem
    measured: Problem


def batch_indices(seed: int, count: int, size: int, steps: int) -> Tensor:
    """Return sample indices of each step, shape ``(steps, size)``: a fresh permutation per epoch, its rest left out.

    Example:
        >>> batch_indices(0, 10, 5, 4)[:2].flatten().sort().values.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if not 1 <= size <= count:
        raise InvalidInput(
            explain(
                f"Batches of {size} from {count} samples",
                "a batch is drawn without replacement from an epoch",
                f"Use 1 to {count}, or None for all at once",
            )
        )
    each = count // size
    parts = [
        torch.randperm(count, generator=_rng.generator(seed, "batches", epoch))[: each * size].reshape(each, size)
        for epoch in range(-(-steps // each))
    ]
    return torch.cat(parts)[:steps]


class CopyRuns:
    """The settings and the account of `EarlyRuns` of networks; how rows are run is left to who inherits.

    Attributes:
        seeds: Of initialisations and orders of batches.
        loss0: ``L_0``, shape ``(S,)``.
        sharpness0: ``lambda_0``, shape ``(S,)``; NaN where it did not converge.
        steps: Steps of a run.
        cutoff: Loss beyond which a run has diverged.
        batch_size: Samples of a step; None for all.
        tol: Relative residual of the sharpness after step 0.
        cost: What was spent since construction, the initial sharpness included.
    """

    loss0: Array
    sharpness0: Array

    def __init__(
        self, copies: Sequence[Copy], *, steps: int, cutoff: float, batch_size: int | None, tol: float
    ) -> None:
        self.seeds = tuple(copy.seed for copy in copies)
        self.steps, self.cutoff, self.batch_size, self.tol = steps, cutoff, batch_size, tol
        self.cost = Cost()

    def _spend(self, **what: float) -> None:
        self.cost = self.cost + replace(Cost(), **what)  # type: ignore[arg-type]
