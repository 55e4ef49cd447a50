r"""What a central flow predicts at one time, from its point and its oscillation."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.flows.laws import LIMIT, Law
from thalweg.flows.process import Frame, sampled
from thalweg.flows.subspace import Critical, Reaction


def oscillation(
    time: float,
    w: Tensor,
    value: float,
    gradient: Tensor,
    metric: Tensor,
    law: Law,
    block: Critical | None,
    reaction: Reaction | None,
    known: Tensor | None,
) -> Frame:
    r"""Return the frame with its predictions of time averages.

    With ``Sigma = sum_i xi_i u_i u_i'`` and ``U' P U = I``: the loss averages ``L + 1/2 tr(H Sigma)``, the squared
    gradient ``|g|^2 + sum_i xi_i |2 P u_i|^2``, and the squared displacement along ``u_i`` in the metric is ``xi_i``.

    Args:
        time: In steps.
        w: The point, shape ``(P,)``.
        value: Loss there.
        gradient: Its gradient, without decay.
        metric: ``P``.
        law: The rule's law.
        block: The critical subspace, or None.
        reaction: The oscillation in it, or None.
        known: Effective eigenvalues from the last solve, descending; those of the block replace the leading ones.
    """
    squared = float(gradient @ gradient)
    values = {
        "loss": value,
        "squared_gradient": squared,
        "predicted_loss": value,
        "predicted_squared_gradient": squared,
        "critical": 0.0,
        "total_variance": 0.0,
    }
    where = sampled(len(gradient)).to(gradient.device)
    sample = gradient[where].square()
    if block is None or reaction is None:
        return Frame(time, w, values, known, metric=metric, sample=sample, predicted_sample=sample)
    X = reaction.solution.X
    # Diagonalise Sigma in the metric of this step: the directions along which the rule oscillates independently.
    root = block.root(metric)
    effective = block.eigenvalues(metric, root)
    variance, turned = torch.linalg.eigh(root.T @ X @ root)
    variance, turned = variance.flip(0).clamp_min(0.0), turned.flip(1)
    turn = torch.linalg.solve_triangular(root.T, turned, upper=True)
    scale = metric.to(block.U)
    total = float((block.gram * X).sum())
    values |= {
        "critical": float(block.count),
        "predicted_loss": value + 0.5 * float((block.A * X).sum()) - 0.5 * law.decay * total,
        "predicted_squared_gradient": squared + LIMIT**2 * float((block.in_metric(scale.square()) * X).sum()),
        "total_variance": total,
        "residual": reaction.solution.residual,
    }
    images = LIMIT * (block.U[where] @ turn.to(block.U))
    images = images * (scale[where, None] if scale.ndim else scale)
    rest = torch.empty(0, dtype=torch.float64) if known is None else known[block.count :]
    averaged = sample + images.square() @ variance.to(images)
    seen = torch.cat([effective, rest])
    return Frame(time, w, values, seen, variance, block.U, turn, metric, sample, averaged)
