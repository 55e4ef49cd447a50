"""What a randomised estimator returns: a value, its standard error, and how far both can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STEEPEST = 1.0
"""Largest skewness that the interval corrects for; estimates of a larger one are mostly noise."""
_SHOWN = 2000
"""Entries of a vector that a figure shows."""


class EstimateStop(StrEnum):
    """Why an estimator ended; the value is a sentence that says what to try."""

    TARGET = "The standard error is below the target, with 90 per cent confidence."
    SPENT = "No target was set: the products that were granted are spent."
    EXACT = "The probes span the range of the operator: the value is exact to rounding."
    BUDGET = "The budget of products ran out before the target: raise max_products, or loosen target."
    ROUNDING = "The target lies below the rounding of the products: use float64, or loosen target."

    @property
    def converged(self) -> bool:
        """Whether the result is what was asked for."""
        return self in (EstimateStop.TARGET, EstimateStop.SPENT, EstimateStop.EXACT)


@dataclass(frozen=True)
class Estimate:
    r"""A random estimate ``x`` of ``theta`` with its standard error ``s``.

    The interval inverts ``T + g T^2 / 3 + g^2 T^3 / 27 + g / 6`` with ``T = (x - theta) / s`` and ``g`` the skewness of
    ``x``, which is Student's ``t`` up to higher orders (Hall, 1992, J. R. Stat. Soc. B 54, 221). For ``g = 0`` it is
    the familiar ``x \pm t s``. Without the correction, intervals for a spectrum with few large eigenvalues cover too
    little: such estimates fall below the truth more often than above it, and their standard errors are then small too.

    Attributes:
        value: 0-dim, or shape ``(P,)`` for a diagonal; in the operator's units.
        standard_error: Same shape and units.
        products: Operator products that this result cost.
        samples: Random probes behind it.
        stop: Why the estimator ended.
        method: How it was estimated, in words.
        degrees: Student degrees of freedom of the standard error.
        skewness: Standardised third moment of ``value``, same shape; zeros where it is not known.
        scale: ``"square"`` where ``value^2`` is the unbiased one: the interval is taken for the square.

    Example:
        >>> one = torch.tensor(1.0)
        >>> estimate = Estimate(10 * one, one, 20, 10, EstimateStop.SPENT, "by hand", 9.0, 0 * one)
        >>> [round(float(end), 2) for end in estimate.interval()]
        [7.74, 12.26]
    """

    value: Tensor
    standard_error: Tensor
    products: int
    samples: int
    stop: EstimateStop
    method: str
    degrees: float
    skewness: Tensor
    scale: Literal["linear", "square"] = "linear"

    @property
    def relative_error(self) -> float:
        """``|s| / |x|``, in Euclidean norms; what ``target`` bounds. Infinite where the value is zero and s is not."""
        size, error = float(self.value.double().norm()), float(self.standard_error.double().norm())
        return error / size if size else (math.inf if error else 0.0)

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return ``(low, high)``, each of the shape of ``value``: where the truth lies, with this probability.

        For a diagonal the probability is that of each entry, not of all of them at once.

        Args:
            confidence: Between 0 and 1.

        Raises:
            InvalidInput: ``confidence`` is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise InvalidInput(
                explain(f"confidence is {confidence}", "it is a probability", "Pass 0.95 for 95 per cent")
            )
        t = student_quantile(0.5 + confidence / 2, self.degrees)
        value, error = self.value.double(), self.standard_error.double()
        if self.scale == "square":
            value, error = value.square(), 2 * value * error
        skewness = self.skewness.double().clamp(-_STEEPEST, _STEEPEST)
        low, high = value - error * _unskewed(t, skewness), value - error * _unskewed(-t, skewness)
        if self.scale == "square":
            low, high = low.clamp_min(0).sqrt(), high.clamp_min(0).sqrt()
        return low.to(self.value.dtype), high.to(self.value.dtype)

    def __repr__(self) -> str:
        if self.value.ndim:
            shown = f"{self.value.numel():,} values, error {100 * self.relative_error:.2g} % of their norm"
        else:
            shown = f"{float(self.value):.6g} ± {float(self.standard_error):.1e}"
        return f"Estimate({shown}, {self.method}, products={self.products}, stop={self.stop.name})"

    def plot(self) -> Figure:
        """Draw the value with its 95 per cent interval; of a vector, up to 2,000 entries spread evenly."""
        import plotly.graph_objects as go

        low, high = (end.reshape(-1) for end in self.interval())
        value = self.value.reshape(-1)
        step = max(1, -(-value.numel() // _SHOWN))
        index = torch.arange(0, value.numel(), step)
        value, low, high = (t.to("cpu", torch.float64)[index] for t in (value, low, high))
        figure = go.Figure(
            go.Scatter(
                x=index.tolist(),
                y=value.tolist(),
                error_y={
                    "type": "data",
                    "array": (high - value).tolist(),
                    "arrayminus": (value - low).tolist(),
                },
                mode="markers",
                name=self.method,
            )
        )
        return figure.update_layout(
            title=f"{self.method}: value and 95 % interval, {self.products} products",
            xaxis_title="coordinate" if self.value.ndim else "",
            yaxis_title="estimate",
        )


def student_quantile(p: float, degrees: float) -> float:
    """Return the ``p`` quantile of Student's t; the normal one for infinite degrees of freedom."""
    from scipy import stats

    return float(stats.norm.ppf(p) if math.isinf(degrees) else stats.t.ppf(p, degrees))


def _unskewed(t: float, g: Tensor) -> Tensor:
    """Solve ``T + g T^2 / 3 + g^2 T^3 / 27 + g / 6 = t``; the left is ``((1 + g T / 3)^3 - 1) / g + g / 6``."""
    flat = g.abs() < 1e-6
    safe = torch.where(flat, torch.ones_like(g), g)
    inside = 1 + safe * (t - safe / 6)
    return torch.where(flat, torch.full_like(g, t), 3 / safe * (inside.sign() * inside.abs().pow(1 / 3) - 1))
