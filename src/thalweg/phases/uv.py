r"""The exactly solvable model: two linear layers and one example, followed in function space.

``f = (x / sqrt(w)) v . u`` with ``u, v`` in ``R^w`` and ``L = (f - y)^2 / 2``. With ``a = x / sqrt(w)``, the residual
``D = f - y`` and the tangent kernel ``T = a^2 (|u|^2 + |v|^2)``, one step of gradient descent is

    D' = D (1 - eta T) + (eta a D)^2 f,        T' = T + eta a^2 D (eta D T - 4 f):

multiply ``u' = u - eta a D v`` and ``v' = v - eta a D u`` out. Nothing else of the ``2 w`` weights matters. For
``y = 0`` even the parameters drop out of ``s = eta T`` and ``g = (eta a f)^2``.

Sources: arXiv 2302.12250 (the model with ``x = 1, y = 0``), arXiv 2311.02076 (a general target).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from thalweg._rng import generator
from thalweg.errors import InvalidInput, explain

Floats: TypeAlias = NDArray[np.float64]

INK = ("#0068A8", "#C24A00", "#00795A", "#A8447F", "#6B4FA0")
FLOOR = 1e-8
"""The figure starts with losses down to this share of the largest, below which no catapult can be seen."""


@dataclass(frozen=True)
class UVModel:
    """The model ``f = (x / sqrt(w)) v . u`` with the loss ``(f - y)^2 / 2``.

    Args:
        width: Width ``w``, at least 1.
        x: The input, not 0.
        y: The target.

    Raises:
        InvalidInput: The width is below 1, or the input is 0 or not finite.

    Example:
        >>> model = UVModel(width=4)
        >>> model.scale
        0.5
        >>> u, v = model.weights(seed=0)
        >>> output, kernel = model.reduce(u, v)
        >>> path = uv_path(model, output, kernel, lr=1 / kernel, steps=200)
        >>> bool(path.loss[-1] < 1e-12 * path.loss[0])
        True
    """

    width: int
    x: float = 1.0
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InvalidInput(
                explain(f"The width is {self.width}", "the layers have no weights", "Give a width of at least 1")
            )
        if not (math.isfinite(self.x) and math.isfinite(self.y)) or self.x == 0:
            raise InvalidInput(
                explain(
                    f"The example is x = {self.x}, y = {self.y}",
                    "the output has to depend on the weights, and all numbers have to be finite",
                    "Give a finite x other than 0, and a finite y",
                )
            )

    @property
    def scale(self) -> float:
        """``a = x / sqrt(w)``."""
        return self.x / math.sqrt(self.width)

    def weights(self, seed: int) -> tuple[Floats, Floats]:
        """Draw ``u`` and ``v`` from the standard normal distribution, shape ``(w,)`` each."""
        drawn = torch.randn(2, self.width, generator=generator(seed, "uv", self.width), dtype=torch.float64).numpy()
        return drawn[0], drawn[1]

    def reduce(self, u: ArrayLike, v: ArrayLike) -> tuple[float, float]:
        """Return the output ``f`` and the kernel ``T`` of given weights: all that the dynamics depends on."""
        first, second = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
        return float(self.scale * first @ second), float(self.scale**2 * (first @ first + second @ second))


def uv_step(model: UVModel, residual: ArrayLike, kernel: ArrayLike, lr: ArrayLike) -> tuple[Floats, Floats]:
    """One exact step: ``D' = D (1 - eta T) + (eta a D)^2 f``, ``T' = T + eta a^2 D (eta D T - 4 f)``.

    Args:
        model: The model.
        residual: ``D = f - y``, any shape.
        kernel: ``T``, same shape.
        lr: ``eta``, a number or the same shape.

    Returns:
        The next residual and the next kernel.

    Example:
        >>> residual, kernel = uv_step(UVModel(1), residual=1.0, kernel=2.0, lr=0.5)
        >>> float(residual), float(kernel)
        (0.25, 0.5)
    """
    d, t, eta = (np.asarray(value, dtype=np.float64) for value in (residual, kernel, lr))
    f = d + model.y
    push = eta * model.scale * d
    return d * (1 - eta * t) + push**2 * f, t + push * (push * t - 4 * model.scale * f)


def reduced_step(s: ArrayLike, g: ArrayLike) -> tuple[Floats, Floats]:
    """One step for ``y = 0`` without any parameter: ``s' = s + g (s - 4)``, ``g' = g (1 - s + g)^2``.

    Args:
        s: ``eta T``, any shape.
        g: ``(eta a f)^2``, in ``[0, s^2 / 4]``.

    Returns:
        The next ``s`` and ``g``.

    Example:
        >>> s, g = reduced_step(1.0, 0.25)
        >>> float(s), float(g)
        (0.25, 0.015625)
    """
    a, b = np.asarray(s, dtype=np.float64), np.asarray(g, dtype=np.float64)
    return a + b * (a - 4), b * (1 - a + b) ** 2


@dataclass(frozen=True, eq=False, repr=False)
class UVPath:
    """A path of gradient descent on the model, exact up to rounding. Entries after a divergence are infinite.

    Attributes:
        model: The model.
        lr: Learning rate, shape ``()`` or ``(R,)``.
        residual: ``D_t``, shape ``(..., steps + 1)``.
        kernel: ``T_t``, the trace of the Hessian, same shape.
    """

    model: UVModel
    lr: Floats
    residual: Floats
    kernel: Floats

    @property
    def output(self) -> Floats:
        """``f_t``."""
        return self.residual + self.model.y

    @property
    def loss(self) -> Floats:
        """``L_t = D_t^2 / 2``."""
        return np.asarray(self.residual**2 / 2)

    @property
    def trace(self) -> Floats:
        """Trace of the Hessian, which is the kernel."""
        return self.kernel

    @property
    def sharpness(self) -> Floats:
        """Largest eigenvalue of the Hessian."""
        from thalweg.phases.uv_hessian import uv_eigenvalues

        return uv_eigenvalues(self.model, self.residual, self.kernel)[1]

    def __repr__(self) -> str:
        runs = f"{self.lr.size} runs of " if self.lr.ndim else ""
        return (
            f"UVPath({runs}{self.kernel.shape[-1] - 1} steps, width {self.model.width}, "
            f"x = {self.model.x:g}, y = {self.model.y:g})"
        )

    def plot(self) -> Any:
        """Draw the loss, and trace and sharpness in units of ``1 / eta`` beside the threshold 2."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
        steps = np.arange(self.kernel.shape[-1])
        rates = np.atleast_1d(self.lr)
        curves = [np.atleast_2d(value) for value in (self.loss, self.trace, self.sharpness)]
        for at, rate in enumerate(rates):
            told, colour = f", rate {rate:.4g}" if rates.size > 1 else "", INK[at % len(INK)]
            for values, name, row in (
                (curves[0][at], "loss", 1),
                (rate * curves[1][at], "rate × trace", 2),
                (rate * curves[2][at], "rate × sharpness", 2),
            ):
                shown = np.where(np.isfinite(values), values, np.nan)
                line = {"color": colour, "dash": "dot" if name.endswith("sharpness") else "solid", "width": 1.8}
                figure.add_trace(go.Scatter(x=steps, y=shown, name=name + told, mode="lines", line=line), row, 1)
        figure.add_hline(y=2, line={"dash": "dash", "color": "#7D8590"}, row=2, col=1)
        known = curves[0][np.isfinite(curves[0]) & (curves[0] > 0)]
        floor = known.max() * FLOOR if len(known) and known.min() < known.max() * FLOOR else None
        span = None if floor is None else np.log10([floor, 3 * known.max()]).tolist()
        figure.update_yaxes(type="log", title_text="loss", exponentformat="power", range=span, row=1, col=1)
        figure.update_yaxes(title_text="in units of 1 / rate", row=2, col=1)
        figure.update_xaxes(title_text="step", row=2, col=1)
        return figure.update_layout(height=560)


def uv_path(
    model: UVModel, output: ArrayLike, kernel: ArrayLike, *, lr: ArrayLike, steps: int, cutoff: float = 1e150
) -> UVPath:
    """Follow gradient descent on the model by `uv_step`; all runs at once.

    Args:
        model: The model.
        output: ``f_0``, shape ``()`` or ``(R,)``.
        kernel: ``T_0``, same shape; at least ``2 |a f_0|``, as ``|u|^2 + |v|^2 >= 2 |u . v|``.
        lr: ``eta``, same shape or a number.
        steps: Steps to take.
        cutoff: A run ends where its loss is not at or below this; from there on, its entries are infinite.

    Returns:
        The path.

    Raises:
        InvalidInput: A start is not that of any weights, a rate is not positive, or the steps are negative.

    Example:
        >>> path = uv_path(UVModel(16), output=0.5, kernel=2.0, lr=1.05, steps=50)
        >>> path
        UVPath(50 steps, width 16, x = 1, y = 0)
        >>> bool(path.loss[1] > path.loss[0]), bool(path.loss[-1] < 1e-6)  # above 2 / T_0: a catapult
        (True, True)
    """
    f, t, eta = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (output, kernel, lr)))
    if steps < 0:
        raise InvalidInput(explain(f"There are {steps} steps to take", "a path goes forward", "Give 0 or more"))
    if not (np.isfinite(f) & np.isfinite(t)).all() or (t < 2 * abs(model.scale * f) * (1 - 1e-12)).any():
        raise InvalidInput(
            explain(
                "A start has a kernel below 2 |a f|, or is not finite",
                "no weights have that output and that kernel, as |u|^2 + |v|^2 >= 2 |u . v|",
                "Take the start from UVModel.reduce(u, v)",
            )
        )
    if not ((eta > 0) & np.isfinite(eta)).all():
        raise InvalidInput(
            explain(f"A learning rate is {eta.min():g}", "steps need a positive, finite one", "Correct the rate")
        )
    residual, kernels = np.full((2, *f.shape, steps + 1), math.inf)
    d, t = f - model.y, t.copy()
    residual[..., 0], kernels[..., 0] = d, t
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, steps + 1):
            d, t = uv_step(model, d, t, eta)
            alive = d**2 / 2 <= cutoff  # False for NaN
            d, t = np.where(alive, d, math.inf), np.where(alive, t, math.inf)
            residual[..., step], kernels[..., step] = d, t
    return UVPath(model, eta, residual, kernels)


def zero_loss_stable(model: UVModel, lr: float, kernel: float) -> bool:
    """Whether ``D = 0`` with this kernel is a stable point of gradient descent: ``eta T < 2``.

    Raises:
        InvalidInput: No weights reach the target with this kernel: it takes ``T >= 2 |a y|``.

    Example:
        >>> zero_loss_stable(UVModel(1, y=0.5), lr=1.0, kernel=1.5)
        True
    """
    if kernel < 2 * abs(model.scale * model.y) * (1 - 1e-9):  # rounding of a path that ends there
        raise InvalidInput(
            explain(
                f"The kernel {kernel:g} is below {2 * abs(model.scale * model.y):g}",
                "no weights with this kernel give the target, as |u|^2 + |v|^2 >= 2 |u . v|",
                "Give a larger kernel",
            )
        )
    return lr * kernel < 2


def ends_at_edge(model: UVModel, lr: float) -> bool:
    """Whether no zero-loss point is stable: ``|psi| > 1`` with ``psi = eta a y``, so ``eta > sqrt(w) / |x y|``.

    The least kernel of a zero-loss point is ``2 |a y|``, and stability wants it below ``2 / eta``.

    Example:
        >>> ends_at_edge(UVModel(1, y=0.99), lr=1.0), ends_at_edge(UVModel(1, y=1.01), lr=1.0)
        (False, True)
    """
    return abs(lr * model.scale * model.y) > 1
