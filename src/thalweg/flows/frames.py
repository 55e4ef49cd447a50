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
    effective = block.eigenvalues(metric)
    # Diagonalise Sigma in the metric of this step: the directions along which the rule oscillates independently.
    root = torch.linalg.cholesky(block.in_metric(metric)).T
    variance, turned = torch.linalg.eigh(root @ X @ root.T)
    variance, turned = variance.flip(0).clamp_min(0.0), turned.flip(1)
    turn = torch.linalg.solve_triangular(root, turned, upper=True)
    directions = block.U @ turn.to(block.U)
    scale = metric.to(block.U)
    images = LIMIT * directions * (scale[:, None] if scale.ndim else scale)
    weights = variance.to(block.U)
    total = float((directions.square().sum(0) * weights).sum())
    values |= {
        "critical": float(block.count),
        "predicted_loss": value + 0.5 * float((block.A * X).sum()) - 0.5 * law.decay * total,
        "predicted_squared_gradient": squared + float((images.square().sum(0) * weights).sum()),
        "total_variance": total,
        "residual": reaction.solution.residual,
    }
    rest = torch.empty(0, dtype=torch.float64) if known is None else known[block.count :]
    averaged = sample + images[where].square() @ weights
    seen = torch.cat([effective, rest])
    return Frame(time, w, values, seen, variance, block.U, turn, metric, sample, averaged)
