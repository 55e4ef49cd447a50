"""Gradient norms that were published at several sample sizes: what they say of the gradient, and what of the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InvalidInput, NonFinite, explain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class NoiseFit:
    r"""``|mean gradient of m samples| = \sqrt{a + s^2 / m}``, fitted.

    Attributes:
        norm: ``\sqrt{a}``, the norm of the gradient; 0 where the fit gives a negative ``a``.
        noise: ``s``, the noise of one sample.
        square: ``a``, as fitted.
        sizes: ``m``.
        values: What was fitted.
    """

    norm: float
    noise: float
    square: float
    sizes: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def largest_residual(self) -> float:
        """Largest difference of a value from the fit, in the units of the values."""
        return float(np.abs(self.at(self.sizes) - np.array(self.values)).max())

    @property
    def bias(self) -> tuple[float, ...]:
        """How many times too large the values are as gradient norms."""
        return tuple(value / self.norm if self.norm else math.inf for value in self.values)

    def at(self, sizes: Sequence[float]) -> np.ndarray:
        """Return the fitted value at other sizes."""
        return np.asarray(np.sqrt(np.maximum(0.0, self.square + self.noise**2 / np.asarray(sizes, dtype=float))))

    def plot(self) -> Figure:
        """Draw values, fit and the level that remains."""
        import plotly.graph_objects as go

        along = np.geomspace(min(self.sizes), max(self.sizes) * 4, 100)
        figure = go.Figure(go.Scatter(x=self.sizes, y=self.values, mode="markers", name="values"))
        figure.add_scatter(x=along, y=self.at(along.tolist()), mode="lines", name="fit")
        figure.add_hline(y=self.norm, line_dash="dash", annotation_text=f"norm {self.norm:.3g}")
        return figure.update_xaxes(type="log", title="samples").update_layout(yaxis_title="norm of the mean gradient")

    def __repr__(self) -> str:
        return (
            f"NoiseFit(norm {self.norm:.4g}, noise {self.noise:.4g} a sample, {len(self.sizes)} values, "
            f"largest residual {self.largest_residual:.2g})"
        )


def fit_noise(m: Sequence[float], values: Sequence[float]) -> NoiseFit:
    r"""Fit ``values^2 = a + s^2 / m`` by least squares of relative errors: the gradient norm is ``\sqrt{a}``.

    Args:
        m: Samples behind each value, positive.
        values: Norms of mean gradients, positive; each must come from samples of its own for the errors to be fair.

    Returns:
        `NoiseFit`.

    Raises:
        InvalidInput: Fewer than three values, or fewer than two different sizes.
        NonFinite: A number is not finite and positive.

    Example:
        >>> fit = fit_noise([10, 100, 1000], [(0.25 + 4 / m) ** 0.5 for m in (10, 100, 1000)])
        >>> round(fit.norm, 6), round(fit.noise, 6)
        (0.5, 2.0)
    """
    sizes, norms = np.asarray(m, dtype=float), np.asarray(values, dtype=float)
    if sizes.ndim != 1 or sizes.shape != norms.shape or len(sizes) < 3 or len(np.unique(sizes)) < 2:
        raise InvalidInput(
            explain(
                f"Got sizes of shape {sizes.shape} and values of shape {norms.shape}",
                "two numbers are fitted, from one value for each size",
                "Pass three values at least, at different sizes",
            )
        )
    if not (np.isfinite(sizes).all() and np.isfinite(norms).all() and (sizes > 0).all() and (norms > 0).all()):
        raise NonFinite(
            explain("A size or value is not finite and positive", "norms and sizes are", "Leave such points out")
        )
    squares = norms**2
    design = np.stack([np.ones_like(sizes), 1 / sizes], axis=1) / squares[:, None]
    (a, s2), *_ = np.linalg.lstsq(design, np.ones_like(squares), rcond=None)
    return NoiseFit(
        math.sqrt(max(0.0, a)), math.sqrt(max(0.0, s2)), float(a), tuple(sizes.tolist()), tuple(norms.tolist())
    )
