r"""How gradients vary with distance: the power that tells glass (1), a kink (3) and smoothness (4) apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from thalweg.errors import InvalidInput, explain
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
from thalweg.glass.table import jackknife
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Label = Literal["glass", "mixed", "kink", "smooth", "rounding", "unsure"]
DISTANCES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Distances per coordinate where none are named, in weights."""
CLEAR = 10.0
"""A variation counts where it is this many times what rounding alone gives."""
MIXED = 2.5
"""Power of second differences from which the gradient is continuous."""
FEWEST = 3
"""Distances below which no power is quoted."""
_FIRST, _SECOND = 2.0, 1.5
"""Variances of both differences, in units of that of one gradient."""


@dataclass(frozen=True)
class LayerExponent:
    """How the gradient of one layer varies with distance.

    Attributes:
        name: Of the layer.
        label: What its second differences say: glass (0.5 to 1.5), mixed (glass and something smooth: up to 2.5), kink
            (to 3.8: the gradient is continuous and has corners), smooth (above), rounding (too small to see), or
            unsure (the errors reach over a border).
        first: Power of ``E[(g^+ - g^0)^2]``: 1 by jumps, 2 by a Hessian.
        first_error: Its standard error over batches.
        second: Power of ``E[((g^+ + g^-) / 2 - g^0)^2]``: 1 by jumps, 3 by corners of the gradient, 4 where it is
            smooth.
        second_error: Its standard error.
        used: Which distances the second power is fitted to, those that stand out from rounding.
    """

    name: str
    label: Label
    first: float
    first_error: float
    second: float
    second_error: float
    used: tuple[bool, ...]

    @property
    def continuous(self) -> bool:
        """Whether the gradient is continuous, so that there is no glass: kink or smooth, or one of these two."""
        reach = 2 * self.second_error if math.isfinite(self.second_error) else 0.0
        return self.label in ("kink", "smooth") or (self.label == "unsure" and self.second - reach >= MIXED)


@dataclass(frozen=True)
class Exponents:
    """What `variation_exponents` found.

    Attributes:
        layers: Powers and labels by layer.
        distances: Per coordinate, in weights, shape ``(k,)``.
        first: Mean square of first differences, shape ``(layers, k)``.
        first_error: Standard error over batches.
        second: Mean square of second differences, same shape.
        second_error: Standard error over batches.
        noise: Mean square rounding of one gradient, shape ``(layers,)``.
        batches: Mini-batches.
        gradients: Gradients taken, of one batch each.
    """

    layers: tuple[LayerExponent, ...]
    distances: np.ndarray = field(repr=False)
    first: np.ndarray = field(repr=False)
    first_error: np.ndarray = field(repr=False)
    second: np.ndarray = field(repr=False)
    second_error: np.ndarray = field(repr=False)
    noise: np.ndarray = field(repr=False)
    batches: int
    gradients: int

    def __getitem__(self, name: str) -> LayerExponent:
        """Return a layer by its name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise InvalidInput(explain(f"There is no layer {name!r}", "powers are by layer", f"Choose among: {names}"))

    def __repr__(self) -> str:
        low, high = self.distances[0], self.distances[-1]
        width = max([5, *(len(layer.name) for layer in self.layers)])
        lines = [
            f"Exponents(distances {low:g} to {high:g}, {self.batches} batches, {self.gradients} gradients)",
            f"{'layer':<{width}}  {'first':>13}  {'second':>13}  label",
        ]
        for layer in self.layers:
            powers = (
                f"{value:.2f} ± {error:.2f}" if math.isfinite(value) else "-"
                for value, error in ((layer.first, layer.first_error), (layer.second, layer.second_error))
            )
            first, second = powers
            lines.append(f"{layer.name:<{width}}  {first:>13}  {second:>13}  {layer.label}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw the mean square of second differences against distance, one curve a layer."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for row, layer in enumerate(self.layers):
            name = f"{layer.name}: {layer.label}"
            if math.isfinite(layer.second):
                name = f"{layer.name}: {layer.second:.2f}, {layer.label}"
            figure.add_scatter(
                x=self.distances,
                y=self.second[row],
                error_y={"type": "data", "array": self.second_error[row]},
                name=name,
                mode="lines+markers",
            )
        figure.update_xaxes(type="log", title="distance per coordinate (weights)", exponentformat="power")
        figure.update_yaxes(type="log", title="mean square second difference of the gradient", exponentformat="power")
        return figure.update_layout(title="Variation of the gradient with distance")


def variation_exponents(
    problem: Problem,
    w: Tensor | None = None,
    *,
    distances: Sequence[float] = DISTANCES,
    batches: int = 8,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Exponents:
    r"""Fit ``E[(g(w + s z) - g(w))^2] \propto s^p``, and the same of second differences, by layer.

    Randomly placed jumps add their variances, so that both powers are 1. A Hessian gives 2 to first differences and
    nothing to second ones, where corners of a continuous gradient leave 3 and a smooth gradient 4. All distances of
    one batch share its signs and masks; the standard error leaves out one batch at a time. Distances at which
    rounding would show are left out of the fit.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        distances: Per coordinate, in weights, three or more, increasing.
        batches: Mini-batches, two at least for standard errors.
        batch_size: Samples in each; default 64, or a quarter of the data if that is less.
        seed: Of batches, signs and masks: those of `glass_density`.
        progress: Called with the number of batches done.

    Returns:
        `Exponents`; one gradient and two more a distance of each batch.

    Raises:
        InvalidInput: A number is out of range, or the shortest distance is lost in the rounding of the weights.
        NonFinite: A gradient is not finite.

    Example:
        >>> import torch
        >>> torch.manual_seed(0)
        <torch._C.Generator object at 0x...>
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1)).double()
        >>> x = torch.randn(400, 4).double()
        >>> found = variation_exponents(Problem(model, torch.nn.MSELoss(), (x, x[:, :1])), batches=2)
        >>> found["0"].label, round(found["0"].first, 1), round(found["0"].second, 1)
        ('smooth', 2.0, 4.0)
    """
    ladder = [float(s) for s in distances]
    if len(ladder) < FEWEST or any(b <= a for a, b in itertools.pairwise(ladder)) or ladder[0] <= 0:
        raise InvalidInput(
            explain(f"distances are {ladder}", "a power needs three increasing lengths", "Pass three or more")
        )
    point = point_of(problem, w)
    shaken = np.array([displacement_rounding(point, s) for s in ladder])
    parts = mini_batches(problem, batches, batch_size, seed)
    groups = Groups.layers(problem)
    rows = []
    noise = np.zeros(len(groups.names))
    for number, part in enumerate(parts):
        z = signs(problem, seed, number)
        with shared_state(problem, seed, number):
            centre = gradient(part, point)
            if number == 0:
                error = gradient_rounding(part, point, centre)
                noise = tensor_means(problem, error.double().square()) @ groups.weights
            found = []
            for s in ladder:
                up, down = gradient(part, point + s * z) - centre, gradient(part, point - s * z) - centre
                first, second = (up.square() + down.square()) / 2, ((up + down) / 2).square()
                found.append([tensor_means(problem, v) @ groups.weights for v in (first, second)])
        rows.append(found)
        if progress is not None:
            progress(number + 1)
    array = np.array(rows)  # (batches, distances, first and second, layers)
    mean, spread = jackknife(lambda kept: kept.mean(axis=0), array)
    # a displaced point is rounded: that moves the gradient by the curvature there
    bent = mean[:, 0] / np.square(ladder)[:, None] * np.square(shaken)[:, None]
    floors = np.stack([_FIRST * noise + bent, _SECOND * noise + bent / 2], axis=1)
    layers = tuple(
        _layer(name, ladder, array[..., i], mean[..., i], floors[..., i]) for i, name in enumerate(groups.names)
    )
    return Exponents(
        layers,
        np.array(ladder),
        mean[:, 0].T,
        spread[:, 0].T,
        mean[:, 1].T,
        spread[:, 1].T,
        noise,
        len(parts),
        len(parts) * (1 + 2 * len(ladder)) + 1,
    )


def label_of(power: float, error: float) -> Label:
    """Return what a power of second differences says; unsure where twice its error reaches over a border.

    Example:
        >>> label_of(1.03, 0.05), label_of(3.1, 0.1), label_of(4.0, 0.01), label_of(1.5, 0.2), label_of(2.0, 0.1)
        ('glass', 'kink', 'smooth', 'unsure', 'mixed')
    """
    if not math.isfinite(power):
        return "rounding"
    reach = 2 * error if math.isfinite(error) else 0.0
    kinds = {_kind(power - reach), _kind(power), _kind(power + reach)}
    return _kind(power) if len(kinds) == 1 else "unsure"


def _kind(power: float) -> Label:
    borders: tuple[tuple[float, Label], ...] = ((0.5, "unsure"), (1.5, "glass"), (MIXED, "mixed"), (3.8, "kink"))
    return next((label for border, label in borders if power < border), "smooth")


def _layer(name: str, ladder: list[float], rows: np.ndarray, mean: np.ndarray, floors: np.ndarray) -> LayerExponent:
    """Fit both powers; ``rows`` is (batches, distances, 2)."""
    fits = []
    clear = mean > CLEAR * floors
    for kind in range(2):
        used = clear[:, kind]
        if used.sum() < FEWEST:
            fits.append((math.nan, math.nan))
            continue
        x = np.log(np.array(ladder)[used])
        x = x - x.mean()

        def slope(kept: np.ndarray, kind: int = kind, used: np.ndarray = used, x: np.ndarray = x) -> np.ndarray:
            y = np.log(kept.mean(axis=0)[used, kind])
            return np.asarray(x @ (y - y.mean()) / (x @ x))

        value, error = jackknife(slope, rows)
        fits.append((float(value), float(error)))
    (first, first_error), (second, second_error) = fits
    label = label_of(second, second_error)
    if len(rows) > 1 and math.isfinite(second) and not math.isfinite(second_error):
        label = "unsure"  # without one of the batches there is nothing left
    return LayerExponent(name, label, first, first_error, second, second_error, tuple(map(bool, clear[:, 1])))
