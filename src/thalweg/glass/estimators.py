r"""Glass density and curvature from gradients along a segment, and what a density does to the loss: formulas only.

The model of one coordinate is ``g(w + s) = g(w) + h s + W(s)`` with ``E W = 0``, ``Var W(s) = \rho |s|`` and
independent increments: many small jumps of the gradient, as ReLU kinks cause them, at random places. With ``\lambda``
jumps ``J`` per unit length ``\rho = \lambda E[J^2]``, and ``h`` is the curvature between jumps plus ``\lambda E[J]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

GAUSSIAN = math.sqrt(2 / (3 * math.pi))
r"""``c`` in ``E|X| = c \sqrt{\rho} |\delta|^{3/2}`` for ``X = \int_0^\delta W ds`` of many jumps: 0.4607."""
JENSEN = 1 / math.sqrt(3)
r"""The constant that bounds it whatever the jumps are: ``E|X| \le \sqrt{E X^2}``."""
CROSSOVER = 4 * GAUSSIAN**2
r"""``8 / (3 \pi)``: the glass part ``c \sqrt{\rho} s^{3/2}`` equals the Hessian part ``h s^2 / 2`` at this times
``\rho / h^2``."""


def curvature_and_density(gradients: Tensor | Sequence[Tensor], sigma: float) -> tuple[Tensor, Tensor]:
    r"""Return ``(h, \rho)`` from ``m + 1`` gradients at equal distances from ``w - \sigma z`` to ``w + \sigma z``.

    With increments ``d_j`` over ``\Delta = 2 \sigma / m``: ``h = mean(d) / \Delta`` and
    ``\rho = \sum (d_j - mean d)^2 / ((m - 1) \Delta)``. Both are unbiased, and of minimum variance where the increments
    are Gaussian; ``m = 2`` gives ``(g^+ - g^-) / 2 \sigma`` and ``(2 / \sigma) ((g^+ + g^-) / 2 - g^0)^2``. The sign of
    ``h`` is that of the row of ``H z``.

    Args:
        gradients: Shape ``(m + 1, ...)`` with ``m >= 2``, or that many tensors, in the order of the segment.
        sigma: Half the length of the segment per coordinate.

    Returns:
        Two tensors of the shape of one gradient.

    Raises:
        InvalidInput: Fewer than three gradients, or ``sigma`` is not positive.

    Example:
        >>> h, rho = curvature_and_density(torch.tensor([-1.0, 0.25, 2.0]), sigma=0.5)
        >>> h.item(), rho.item()
        (3.0, 0.25)
    """
    if len(gradients) < 3 or not sigma > 0:
        raise InvalidInput(
            explain(
                f"Got {len(gradients)} gradients and sigma {sigma}",
                "a density needs three gradients along a segment of positive length",
                "Pass three or more, and a positive sigma",
            )
        )
    steps = len(gradients) - 1
    spacing = 2 * sigma / steps
    increments = Increments()
    for before, after in itertools.pairwise(gradients):
        increments.add(after - before)
    return increments.mean / spacing, increments.squares / ((steps - 1) * spacing)


class Increments:
    """Mean and sum of squared deviations of tensors that come one by one: no difference of large squares is taken."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, value: Tensor) -> None:
        """Take in one tensor; all have one shape."""
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = value.clone(), torch.zeros_like(value)
            return
        deviation = value - self.mean
        self.mean += deviation / self.count
        self.squares.addcmul_(deviation, value - self.mean)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean; NaN of fewer than two."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.squares / (self.count * (self.count - 1))).sqrt()


def relative_variance(evaluations: int = 3, crossings: float = math.inf, kurtosis: float = 3.0) -> float:
    r"""Return ``Var \hat\rho / \rho^2`` of one estimate: ``2 / (m - 1) + E[J^4] / (m \lambda \Delta E[J^2]^2)``.

    The first term is what Gaussian increments leave; the second is for few jumps: ``\lambda \Delta`` of them are
    expected between two neighbouring gradients. For three gradients it is ``2 + kurtosis / (2 crossings)``.

    Args:
        evaluations: Gradients ``m + 1``.
        crossings: Jumps expected between two neighbouring gradients, ``\lambda \Delta``.
        kurtosis: ``E[J^4] / E[J^2]^2``; 3 for Gaussian jumps, 1 for jumps of one size.

    Example:
        >>> relative_variance(), relative_variance(5), relative_variance(crossings=0.5, kurtosis=1.0)
        (2.0, 0.6666666666666666, 3.0)
    """
    steps = evaluations - 1
    return 2 / (steps - 1) + kurtosis / (steps * crossings)


def glass_part(rho: Tensor, move: Tensor, constant: float = GAUSSIAN) -> Tensor:
    r"""Return ``c \sum_i \sqrt{\rho_i} |\delta_i|^{3/2}``, 0-dim: coordinates added up, an upper bound.

    Args:
        rho: Densities, shape ``(P,)``.
        move: ``\delta``, shape ``(P,)``.
        constant: `GAUSSIAN`, or `JENSEN` for jumps of any law.

    Example:
        >>> round(glass_part(torch.tensor([3.0]), torch.tensor([1.0]), JENSEN).item(), 6)
        1.0
    """
    size = move.double().abs()
    return constant * (rho.double().clamp_min(0).sqrt() * size.pow(1.5)).sum()


def independent_glass_part(rho: Tensor, move: Tensor, constant: float = GAUSSIAN) -> Tensor:
    r"""Return ``c \sqrt{\sum_i \rho_i |\delta_i|^3}``, 0-dim: coordinates that vary independently of each other."""
    return constant * (rho.double().clamp_min(0) * move.double().abs().pow(3)).sum().sqrt()
