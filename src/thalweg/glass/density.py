"""Glass density: how fast gradients vary at random while weights move, by coordinate, tensor and layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.glass.estimators import Increments
from thalweg.glass.probing import (
    Groups,
    displacement_rounding,
    gradient,
    gradient_rounding,
    mini_batches,
    point_of,
    shared_state,
    signs,
    tensor_means,
)
from thalweg.glass.table import GlassTable, make_table
from thalweg.operators.hessian import hessian as hessian_operator
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class GlassDensity:
    r"""What `glass_density` measured.

    Attributes:
        rho: ``\rho_i``, gradient^2 / weight, shape ``(P,)``, while all coordinates move by ``sigma``.
        rho_error: Its standard error over batches, shape ``(P,)``.
        square: ``E \hat h_i^2`` of the finite difference, shape ``(P,)``: ``\sum_j H_ij^2 + \rho_i / 2 \sigma``.
        square_error: Its standard error.
        diagonal: ``E z_i \hat h_i``, shape ``(P,)``: the diagonal of the Hessian, with the mean effect of the jumps.
        diagonal_error: Its standard error.
        layers: Means over layers, with leakage and crossover.
        tensors: The same of every parameter tensor.
        sigma: Length of the probe per coordinate, in weights.
        batches: Mini-batches, each with signs of its own.
        batch_size: Samples in each; 0 where a loader's batches differ.
        evaluations: Gradients a batch on the segment.
        gradients: Gradients taken in all, of one batch each.
        products: Hessian products, of one batch each.
    """

    rho: Tensor = field(repr=False)
    rho_error: Tensor = field(repr=False)
    square: Tensor = field(repr=False)
    square_error: Tensor = field(repr=False)
    diagonal: Tensor = field(repr=False)
    diagonal_error: Tensor = field(repr=False)
    layers: GlassTable
    tensors: GlassTable
    sigma: float
    batches: int
    batch_size: int
    evaluations: int
    gradients: int
    products: int

    def __repr__(self) -> str:
        cost = f"{self.gradients} gradients" + (f", {self.products} Hessian products" if self.products else "")
        size = f" of {self.batch_size}" if self.batch_size else ""
        return f"GlassDensity(sigma={self.sigma:g}, {self.batches} batches{size}, {cost})\n{self.layers!r}"

    def plot(self) -> Figure:
        """Draw the density of each layer with its standard error, and what rounding alone gives."""
        import plotly.graph_objects as go

        names = [row.name for row in self.layers]
        figure = go.Figure(
            go.Bar(
                x=names,
                y=[row.rho for row in self.layers],
                error_y={"type": "data", "array": [row.rho_error for row in self.layers]},
                name="glass density",
            )
        )
        figure.add_scatter(x=names, y=[row.floor for row in self.layers], mode="markers", name="rounding alone")
        figure.update_yaxes(type="log", title="gradient² / weight", exponentformat="power")
        return figure.update_layout(title=f"Glass density, probe {self.sigma:g}", xaxis_title="layer")


def glass_density(
    problem: Problem,
    w: Tensor | None = None,
    *,
    sigma: float = 1e-3,
    batches: int = 16,
    batch_size: int | None = None,
    evaluations: int = 3,
    hessian: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> GlassDensity:
    r"""Return ``\rho_i = (2 / \sigma) E[((g_i^+ + g_i^-) / 2 - g_i^0)^2]`` with ``g^\pm`` at ``w \pm \sigma z``.

    ``z`` has independent signs; the gradients of one estimate are of one mini-batch, with one random state (dropout
    masks), and BatchNorm as the model's mode says, its running averages untouched. In the model
    ``g_i(w + s) = g_i + h_i s + W_i(s)``, ``Var W_i(s) = \rho_i |s|``, this is unbiased whatever ``h`` is. Each batch
    has other samples and other signs: with one batch, other signs cross mostly the same kinks, and the standard error
    would be too small. A smooth layer has no density: what is found there shrinks with ``\sigma`` to the power three,
    which `variation_exponents` tells apart. Densities are those of this batch size: they fall like its inverse.

    Args:
        problem: Model, loss and data. A loader's own batches are taken as they are.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        sigma: Length of the probe per coordinate, in weights: that of the steps that are of interest.
        batches: Mini-batches, two at least for standard errors.
        batch_size: Samples in each; default 64, or a quarter of the data if that is less.
        evaluations: Gradients per batch on the segment, three or more: with ``m + 1`` the relative variance of one
            estimate is ``2 / (m - 1)``. Other batches are worth more than further points.
        hessian: Also take one Hessian product a batch, for ``\sum_j H_ij^2`` without glass.
        seed: Of batches, signs and masks.
        progress: Called with the number of batches done.

    Returns:
        `GlassDensity`.

    Raises:
        InvalidInput: A number is out of range, or ``sigma`` is lost in the rounding of the weights.
        NonFinite: A gradient is not finite.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1))
        >>> x = torch.randn(400, 4)
        >>> found = glass_density(Problem(model, torch.nn.MSELoss(), (x, x[:, :1])), batches=4)
        >>> bool(found.layers["0"].rho > 100 * found.layers["2"].rho)  # the gradient of the output layer has no jumps
        True

    Source: the estimator from three gradients is that of the public code of arXiv 2411.16914.
    """
    point = point_of(problem, w)
    if evaluations < 3:
        raise InvalidInput(
            explain(f"evaluations is {evaluations}", "a density needs three gradients", "Pass three or more")
        )
    shaken = displacement_rounding(point, sigma)
    parts = mini_batches(problem, batches, batch_size, seed)
    steps = evaluations - 1
    spacing = 2 * sigma / steps
    density, square, diagonal = Increments(), Increments(), Increments()
    by_tensor: list[list[np.ndarray]] = [[], [], []]
    noise = torch.zeros_like(point)
    for number, part in enumerate(parts):
        z = signs(problem, seed, number)
        with shared_state(problem, seed, number):
            increments = Increments()
            before = gradient(part, point - sigma * z)
            for k in range(1, evaluations):
                along = sigma * (2 * k / steps - 1)
                after = gradient(part, point + along * z if along else point)
                increments.add(after - before)
                before = after
            image = hessian_operator(part, point, layout="double_backward").matvec(z) if hessian else None
            if number == 0:
                noise = gradient_rounding(part, point, gradient(part, point))
        h = increments.mean / spacing
        rho = increments.squares / ((steps - 1) * spacing)
        density.add(rho.double())
        square.add(h.double().square())
        diagonal.add((z * h).double())
        curved = image.double().square() if image is not None else torch.full_like(h, math.nan)
        for kept, values in zip(by_tensor, (rho, h.square(), curved)):
            kept.append(tensor_means(problem, values))
        if progress is not None:
            progress(number + 1)
    means = [np.stack(kept) for kept in by_tensor]
    bent = means[2] if hessian else means[1]
    # rounding of each gradient, and of each point through the curvature there
    floor = (evaluations / sigma) * tensor_means(problem, noise.double().square())
    floor = floor + bent.mean(axis=0) * shaken**2 / sigma
    sizes = {part._batches.samples or 0 for part in parts}  # of sequences, not of their tokens; 0 of a loader
    tables = [
        make_table(groups, sigma, means[0], means[1], means[2], floor)
        for groups in (Groups.layers(problem), Groups.tensors(problem))
    ]
    return GlassDensity(
        density.mean,
        density.standard_error,
        square.mean,
        square.standard_error,
        diagonal.mean,
        diagonal.standard_error,
        tables[0],
        tables[1],
        float(sigma),
        len(parts),
        max(sizes),
        evaluations,
        len(parts) * evaluations + 1,
        len(parts) if hessian else 0,
    )
