"""The density of eigenvalues by stochastic Lanczos quadrature, with error bands over probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.spectra.estimate import Estimate, EstimateStop
from thalweg.spectra.krylov import Krylov
from thalweg.spectra.sampling import safety, stream_of, unfinished

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
        skewness = 8**0.5 * cube / square.clamp_min(1e-300) ** 1.5 / math.sqrt(self.size * self.probes)
        return mean, error, skewness

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


def spectral_density(
    operator: Operator,
    *,
    probes: int = 10,
    steps: int = 40,
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Density:
    r"""Estimate the density of eigenvalues, ``(1/P) sum_i delta(x - lambda_i)``.

    From a random unit vector v, Lanczos steps with full reorthogonalisation give the Gauss quadrature of
    ``v' f(A) v``, whose mean over v is ``tr f(A) / P``: nodes are Ritz values, weights the squares of the first
    entries of their eigenvectors. It is exact for polynomials of degree ``2 steps - 1``.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        probes: Random vectors; with a target, those of the first round.
        steps: Lanczos steps a probe, at most P; ``steps + 1`` vectors are kept. Resolution is about range / steps.
        target: Add probes until the integrated standard error of the smoothed density (`Density.distance`) is below
            this: the fraction of mass in doubt.
        max_products: Budget. Default: what ``probes`` need without a target, 10,000 with one.
        seed: Seed of the probes.
        strict: Raise where the target is not met; False returns what there is.

    Returns:
        `Density`.

    Raises:
        InvalidInput: Fewer than 2 probes or 1 step, or a budget below ``probes * steps``.
        NotConverged: The budget did not reach the target (``strict=True``); ``error.result`` holds the density.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.linspace(-1, 3, 100, dtype=torch.float64)))
        >>> found = spectral_density(A, probes=20, steps=15)
        >>> low, high = found.moment(1).interval()
        >>> bool(low < 1.0 < high), bool(torch.allclose(found.weights.sum(dim=1), torch.ones(20).double()))
        (True, True)

    Sources: Golub and Meurant (2010, Matrices, Moments and Quadrature); Ubaru, Chen and Saad (2017, SIAM J. Matrix
    Anal. Appl. 38, 4), algorithm 1.
    """
    steps = min(steps, operator.size)
    first = probes * steps
    budget = max_products if max_products is not None else (first if target is None else max(10_000, first))
    if probes < 2 or steps < 1 or budget < first or (target is not None and not target > 0):
        raise InvalidInput(
            explain(
                f"spectral_density got probes={probes}, steps={steps}, max_products={max_products}, target={target}",
                "it needs two probes for an error, a step, a positive target, and products for the first round",
                f"Pass probes >= 2, steps >= 1, max_products >= {first}",
            )
        )
    stream, start = stream_of(seed, "density"), operator.products
    rows: list[tuple[Tensor, Tensor, bool]] = []
    goal = probes if target is not None else max(probes, budget // steps if max_products is not None else 0)
    while True:
        rows += [_quadrature(operator, steps, stream) for _ in range(goal - len(rows))]
        found = _collect(rows, operator, operator.products - start, EstimateStop.SPENT)
        if target is None:
            return found
        bound = found.distance() / safety(len(rows) - 1)
        if bound <= target:
            return _collect(rows, operator, found.products, EstimateStop.TARGET)
        wanted = math.ceil(len(rows) * min(max((bound / target) ** 2, 1.5), 2.0))
        goal = min(wanted, len(rows) + (budget - found.products) // steps)
        if goal <= len(rows):
            short = _collect(rows, operator, found.products, EstimateStop.BUDGET)
            return unfinished(short, found.distance(), target, strict)


def _quadrature(operator: Operator, steps: int, stream: torch.Generator) -> tuple[Tensor, Tensor, bool]:
    """Return nodes, weights and whether the Krylov space of one probe is invariant."""
    space = Krylov(operator, steps, stream)
    space.begin(None)
    while space.size < steps:
        space.expand()
        if space.beta == 0.0:
            break
    values, vectors, _ = space.ritz()
    weights = vectors[0] ** 2
    short = steps - space.size
    nodes = np.concatenate([values, np.full(short, values[-1])])
    weights = np.concatenate([weights / weights.sum(), np.zeros(short)])
    return torch.from_numpy(nodes), torch.from_numpy(weights), space.beta == 0.0


def _collect(rows: list[tuple[Tensor, Tensor, bool]], operator: Operator, products: int, stop: EstimateStop) -> Density:
    nodes, weights = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    return Density(nodes, weights, operator.size, products, stop, all(r[2] for r in rows))
