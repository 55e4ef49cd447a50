"""Gauss quadratures of the spectrum, one per random probe, and what follows from them with error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.spectra.estimate import Estimate, EstimateStop

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GRID = 512
_WIDTHS = 4.0
"""The grid reaches this many kernel widths beyond the outermost node."""


@dataclass(frozen=True)
class Density:
    r"""Gauss quadratures ``sum_j w_ij delta(x - theta_ij)`` of ``(1/P) sum_i delta(x - lambda_i)``, one per probe i.

    Attributes:
        nodes: ``theta``, shape ``(probes, steps)``, ascending, in the operator's units. A probe whose Krylov space
            ended early repeats its last node with weight zero.
        weights: ``w``, shape ``(probes, steps)``, not negative; every row sums to one.
        size: ``P``.
        products: Operator products that this result cost.
        stop: Why the estimator ended.
        complete: Every Krylov space became invariant, so that more steps would change nothing.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    products: int
    stop: EstimateStop
    complete: bool

    @property
    def probes(self) -> int:
        """Number of random probes."""
        return len(self.nodes)

    def expectation(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return ``tr f(A) / P``, its standard error and its skewness, from ``values = f(nodes)``.

        For v uniform on the sphere, ``v' f(A) v`` has variance ``2 (E f^2 - (E f)^2) / (P + 2)``, and to leading order
        third cumulant ``8 E (f - E f)^3 / P^2``, with ``E`` the mean over the spectrum. The same quadratures give these
        means, and know them far better than a few probes know their own scatter.

        Args:
            values: Shape ``(probes, steps, ...)``.
        """
        weights = self.weights.reshape(self.weights.shape + (1,) * (values.ndim - 2))
        mean = (weights * values).sum(dim=1).mean(dim=0)
        deviation = values - mean
        square = (weights * deviation.square()).sum(dim=1).mean(dim=0)
        cube = (weights * deviation**3).sum(dim=1).mean(dim=0)
        error = (2 * square / (self.size + 2) / self.probes).sqrt()
        skewness = 8**0.5 * cube / square.clamp_min(1e-200) ** 1.5 / math.sqrt(self.size * self.probes)
        most = math.sqrt(8 / self.probes)  # of a rank-one f(A); quadratures that say more have seen too little of it
        return mean, error, skewness.clamp(-most, most)

    def moment(self, j: int = 1) -> Estimate:
        r"""Return the mean of ``\lambda^j``, ``tr A^j / P``, with its standard error.

        Raises:
            InvalidInput: The order is negative, or beyond ``2 steps - 1``, to which the quadrature is exact.
        """
        steps = self.nodes.shape[1]
        if j < 0 or (j > 2 * steps - 1 and not self.complete):
            raise InvalidInput(
                explain(
                    f"Moment {j} was asked for",
                    f"with {steps} steps the quadrature is exact for orders 0 to {2 * steps - 1}",
                    "Take more steps, or a lower order",
                )
            )
        return self._estimate(self.nodes**j, f"moment {j} of the density")

    def cumulative(self, x: Tensor) -> Estimate:
        """Return the fraction of eigenvalues at or below each of ``x``, shape ``(m,)``, with its standard error.

        A step of the true function is sharp only where a node has converged to an eigenvalue; elsewhere the error of
        the quadrature is up to one weight, and is not part of the standard error.
        """
        return self._estimate((self.nodes[..., None] <= x.to(self.nodes)).to(self.nodes), "cumulative density")

    def default_width(self) -> float:
        """Return the kernel width that the quadrature resolves: the range of the nodes over the number of steps."""
        spread = float(self.nodes.max() - self.nodes.min())
        return max(spread / self.nodes.shape[1], 1e-12 * float(self.nodes.abs().max()), 1e-300)

    def density(self, grid: Tensor | None = None, width: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(grid, mean, standard error)`` of the density, convolved with a Gaussian.

        The error is that of the probes, for the *smoothed* density. A width below the default shows structure of the
        quadrature, not of the spectrum, unless the nodes have converged.

        Args:
            grid: Where, shape ``(m,)``, in the operator's units. Default: 512 points over all nodes.
            width: Standard deviation of the Gaussian, in the operator's units. Default: `default_width`.

        Returns:
            Three tensors of shape ``(m,)``; the density is per unit of eigenvalue and integrates to one.

        Raises:
            InvalidInput: ``width`` is not positive.
        """
        width = self.default_width() if width is None else width
        if not width > 0:
            raise InvalidInput(explain(f"width is {width}", "a kernel has a positive width", "Pass None for a default"))
        if grid is None:
            low, high = float(self.nodes.min()), float(self.nodes.max())
            grid = torch.linspace(low - _WIDTHS * width, high + _WIDTHS * width, _GRID, dtype=self.nodes.dtype)
        grid = grid.to(self.nodes)
        found = self.smoothed(grid, width)
        return grid, found.value, found.standard_error

    def smoothed(self, grid: Tensor, width: float) -> Estimate:
        """Return the values of `density` on ``grid`` as an `Estimate`, whose intervals know their skewness."""
        bumps = torch.exp(-0.5 * ((grid - self.nodes[..., None]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return self._estimate(bumps, "smoothed density")

    def distance(self, width: float | None = None) -> float:
        """Return the standard error of the smoothed density integrated over the axis: the fraction of mass in doubt."""
        grid, _, error = self.density(width=width)
        return float(torch.trapezoid(error, grid))

    def _estimate(self, values: Tensor, method: str) -> Estimate:
        value, error, skewness = self.expectation(values)
        floor = 8 * torch.finfo(self.nodes.dtype).eps * value.abs()
        # The error follows the mean half as closely as a sample's own scatter would, which makes the correction of an
        # interval for skewness a quarter as large.
        return Estimate(
            value,
            torch.hypot(error, floor),
            self.products,
            self.probes,
            self.stop,
            method,
            2.0 * (self.probes - 1),
            skewness / 4,
        )

    def __repr__(self) -> str:
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return (
            f"Density({self.probes} probes of {self.nodes.shape[1]} steps on [{low:.4g}, {high:.4g}], "
            f"mean {self.moment(1).value:.4g} ± {self.moment(1).standard_error:.1e}, products={self.products}, "
            f"stop={self.stop.name})"
        )

    def plot(self, width: float | None = None) -> Figure:
        """Draw the smoothed density on a logarithmic axis, with its 95 per cent band over probes."""
        import plotly.graph_objects as go

        grid, mean, _ = self.density(width=width)
        low, high = self.smoothed(grid, self.default_width() if width is None else width).interval()
        floor = 1e-3 / self.size / float(grid[-1] - grid[0])  # a thousandth of one eigenvalue, spread over the axis
        x = grid.tolist()
        figure = go.Figure(
            [
                go.Scatter(
                    x=x, y=high.clamp_min(floor).tolist(), line={"width": 0}, showlegend=False, hoverinfo="skip"
                ),
                go.Scatter(
                    x=x,
                    y=low.clamp_min(floor).tolist(),
                    line={"width": 0},
                    fill="tonexty",
                    name="95 % band",
                    hoverinfo="skip",
                ),
                go.Scatter(x=x, y=mean.clamp_min(floor).tolist(), name="density"),
            ]
        )
        return figure.update_layout(
            title=f"Spectral density: {self.probes} probes, {self.nodes.shape[1]} steps, {self.products} products",
            xaxis_title="eigenvalue",
            yaxis_title="density",
            yaxis_type="log",
        )
