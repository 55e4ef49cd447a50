"""What the eigenvectors will be at new weights, from what they were at the weights before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

RIDGE = 1e-4
"""Weight of ``|c|^2`` against the mean squared distance of the past weights: old vectors carry errors, too."""

SAME = 0.5
"""Cosine above which a direction counts as the continuation of an old one."""


class History:
    r"""The last few pairs of weights and leading eigenvectors, and their combination for new weights.

    Eigenvectors are a smooth function of the weights. So where the new weights are nearly a combination of
    past ones, ``w = sum_j c_j w_j`` with ``sum_j c_j = 1``, the same combination of the past eigenvectors is right
    to second order in the distances:

    .. math:: Q(w) \approx \sum_j c_j Q_j, \qquad c = \arg\min |w - \sum_j c_j w_j|^2 + \rho |c|^2 .

    At the edge of stability the weights jump to and fro along a few directions, which past weights span, and drift
    slowly otherwise: the combination undoes the jump. ``Q_j`` are kept in one gauge (each is rotated within its span
    to be closest to the one before), so that crossing eigenvalues do not disturb it.

    Args:
        depth: Pairs kept; each holds ``k + 1`` vectors of length ``P``.

    Raises:
        InvalidInput: ``depth`` is not positive.
    """

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise InvalidInput(
                explain(f"history is {depth}", "a warm start needs one set of old vectors", "Pass 1 or more")
            )
        self.depth = depth
        self.points: list[Tensor] = []
        self.blocks: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.blocks)

    def append(self, w: Tensor | None, rows: Tensor) -> None:
        """Remember eigenvectors, orthonormal rows of shape ``(k, P)``, at weights ``w``, where these are known."""
        if self.blocks:
            rows = self._align(rows)
        self.blocks = [*self.blocks, rows][-self.depth :]
        self.points = [] if w is None else [*self.points, w.detach().clone()][-self.depth :]

    def predict(self, w: Tensor | None) -> Tensor:
        """Return rows near the eigenvectors at ``w``, not orthonormal, shape ``(k, P)``."""
        share = self.coefficients(w)
        used = [(float(c), block) for c, block in zip(share, self.blocks) if c]
        out = used[0][1] * used[0][0]
        for c, block in used[1:]:
            out = out.add(block, alpha=c)
        return out

    def coefficients(self, w: Tensor | None) -> np.ndarray:
        """Return ``c``, one number per remembered pair, summing to one."""
        share = np.zeros(len(self.blocks))
        if w is None or not self.points:
            # Unknown weights: a line through what was two and four calls ago, for a period of two is the rule at
            # the edge of stability and does no harm away from it.
            if len(share) >= 4:
                share[[-2, -4]] = 2.0, -1.0
            else:
                share[-min(len(share), 2)] = 1.0
            return share
        known = len(self.points)
        away = torch.stack([point.to(w) - w.detach() for point in self.points])
        gram = (away @ away.T).to("cpu", torch.float64).numpy()
        size = float(np.trace(gram)) / known
        if not np.isfinite(size) or size <= 0:  # the weights have not moved
            share[-1] = 1.0
            return share
        solved = np.linalg.solve(gram / size + RIDGE * np.eye(known), np.ones(known))
        share[-known:] = solved / solved.sum()
        return share

    def _align(self, rows: Tensor) -> Tensor:
        """Rotate ``rows`` within their span towards the last block; forget, in older ones, what left the span."""
        last = self.blocks[-1].to(rows)
        left, overlap, right = np.linalg.svd((rows @ last.T).to("cpu", torch.float64).numpy())
        old = len(last)
        # Rows beyond the rank of the overlap are new directions: they keep their place behind the others.
        turned = torch.from_numpy(left.T.copy()).to(rows) @ rows
        gauge = torch.from_numpy(right.T.copy()).to(rows)
        aligned = gauge @ turned[:old]
        fresh = turned[old:]
        for number in np.flatnonzero(overlap < SAME).tolist():
            # This direction replaced another one: no combination of the two means anything.
            axis = gauge[:, number : number + 1]
            replaced = turned[number : number + 1]
            self.blocks = [block + axis @ (replaced - axis.T @ block) for block in self.blocks]
        if len(fresh):
            self.blocks = [torch.cat([block, fresh]) for block in self.blocks]
        return torch.cat([aligned, fresh])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, nothing where nothing is known."""
        state = {"blocks": torch.stack(self.blocks)} if self.blocks else {}
        return state | ({"points": torch.stack(self.points)} if self.points else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.blocks = [block.clone() for block in state["blocks"]] if "blocks" in state else []
        self.points = [point.clone() for point in state["points"]] if "points" in state else []
