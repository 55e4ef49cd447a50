"""Runs one after the other, by the plain problem and a dense diagonalisation: what stacked runs must equal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.problem import Problem


def dense(problem: Problem, w: Tensor) -> Tensor:
    """The Hessian by torch's own double backward, from plain calls of the problem's loss."""

    def whole(flat: Tensor) -> Tensor:
        parts = [problem.loss(problem.layout.split(flat), batch) * weight for batch, weight in problem.batches()]
        return torch.stack(parts).sum()

    return torch.autograd.functional.hessian(whole, w.clone())


def sharpness(problem: Problem, w: Tensor) -> float:
    """Its largest algebraic eigenvalue."""
    return float(torch.linalg.eigvalsh(dense(problem, w))[-1])


def descend(
    problem: Problem, w: Tensor, lr: float, steps: int, cutoff: float = 1e5, batches=None, measure=True
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Losses, sharpness and the last point of one run; infinity and NaN from the first loss above ``cutoff`` on."""
    losses, tops = np.full(steps + 1, np.inf), np.full(steps + 1, np.nan)
    for step in range(steps + 1):
        value, gradient = problem.value_and_gradient(w)
        losses[step] = np.inf if np.isnan(float(value)) else float(value)
        if not float(value) <= cutoff:
            break
        if measure:
            tops[step] = sharpness(problem, w)
        if step < steps:
            if batches is not None:
                gradient = problem.subset(batches[step]).gradient(w)
            w = w - lr * gradient
    return losses, tops, w
