r"""Critical values of the exactly solvable model for ``y = 0``, per start and averaged over random starts.

With the learning rate in units of the trace, ``c = eta T_0``, everything hangs on one number of the start,
``eps = (a f_0 / T_0)^2`` in ``[0, 1/4]``:

* The loss rises in the first step iff ``|1 - c + c^2 eps| > 1``, so iff ``c^2 eps - c + 2 < 0`` or ``c > 1 / eps``.
  The lesser root is ``c_loss = (1 - sqrt(1 - 8 eps)) / (2 eps) = 2 + 4 eps + ...``; for ``eps >= 1/8`` the first step
  raises nothing below 4. There, and only there, a later step can: ``eps = 0.15`` does from ``c = 3.83`` on.
* ``s' - s = g (s - 4)``: the trace rises iff ``c > 4``, and then for ever. Below 4 it falls by sums that stay finite,
  so ``g`` goes to 0. Hence ``c_sharp = c_max = 4``.
* With ``u + v`` and ``u - v`` independent normal vectors, ``eps = z^2 / 4`` with ``z = sin(theta)`` of density
  ``cos(theta)^(w - 1)``; that is ``z = 2 B - 1``, ``B ~ Beta(w/2, w/2)``.

In units of the largest eigenvalue each ``c`` is multiplied by ``k = lambda_0 / T_0 = (1 + sqrt(1 + 12 eps)) / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from thalweg.errors import InvalidInput, explain
from thalweg.phases.uv import Floats, UVModel

Units: TypeAlias = Literal["trace", "lambda"]
"""What the learning rate is measured by: ``1 / T_0`` or ``1 / lambda_0``."""

DIVERGES = 4.0
"""``c_max`` and ``c_sharp`` in units of the trace."""


def uv_eps(model: UVModel, output: ArrayLike, kernel: ArrayLike) -> Floats:
    """``eps = (a f_0 / T_0)^2``, in ``[0, 1/4]``.

    Example:
        >>> float(uv_eps(UVModel(4), output=1.0, kernel=2.0))
        0.0625
    """
    ratio = model.scale * np.asarray(output, dtype=np.float64) / np.asarray(kernel, dtype=np.float64)
    return np.asarray(ratio**2)


def sharpness_factor(eps: ArrayLike) -> Floats:
    """``lambda_0 / T_0 = (1 + sqrt(1 + 12 eps)) / 2``: what turns units of the trace into units of the sharpness."""
    return np.asarray((1 + np.sqrt(1 + 12 * _checked(eps))) / 2)


def uv_c_loss(eps: ArrayLike, units: Units = "trace") -> Floats:
    """Where the first step raises the loss: ``(1 - sqrt(1 - 8 eps)) / (2 eps)``; 4 from ``eps = 1/8`` on.

    Below ``eps = 1/8`` no later step raises it at a lesser rate.

    Args:
        eps: Of the start, any shape.
        units: Of the result.

    Returns:
        Same shape. It is computed as ``4 / (1 + sqrt(1 - 8 eps))``, which loses no digits at small ``eps``.

    Example:
        >>> uv_c_loss([0.0, 0.01, 0.125, 0.2]).round(4).tolist()
        [2.0, 2.0417, 4.0, 4.0]
    """
    small = _checked(eps)
    c = 4 / (1 + np.sqrt(np.maximum(1 - 8 * small, 0)))
    return np.asarray(c * _unit(small, units))


def uv_c_max(eps: ArrayLike, units: Units = "trace") -> Floats:
    """Where training diverges: 4 in units of the trace, ``4 k`` in units of the sharpness.

    Example:
        >>> uv_c_max([0.0, 0.25], units="lambda").tolist()
        [4.0, 6.0]
    """
    small = _checked(eps)
    return np.asarray(DIVERGES * _unit(small, units))


def quadratic_c_loss(eps: ArrayLike) -> Floats:
    """What the quadratic model along the gradient predicts for ``c_loss``: ``2 / (1 + 2 eps)``, below 2.

    ``g^T H g / g^T g = T (1 + 2 eps)``. The truth lies above 2: the opening comes from beyond second order.

    Example:
        >>> float(quadratic_c_loss(0.25))
        1.3333333333333333
    """
    return np.asarray(2 / (1 + 2 * _checked(eps)))


def settled_trace(eps: ArrayLike, c: ArrayLike) -> Floats:
    """``T_inf / T_0 = 1 - eps (4 - c) / (2 - c)`` to first order in ``eps``, for ``c < 2``.

    To this order ``g_t = c^2 eps (1 - c)^(2 t)``, whose sum ``c eps / (2 - c)`` times ``4 - c`` is what ``s`` loses.
    Its slope diverges at 2 whatever ``eps``: the saturation curve bends there, though ``c_loss`` lies above.

    Raises:
        InvalidInput: A ``c`` is not within ``(0, 2)``.

    Example:
        >>> round(float(settled_trace(1 / 68, 1.0)), 3)  # the mean eps of width 16
        0.956
    """
    rate = np.asarray(c, dtype=np.float64)
    if not ((rate > 0) & (rate < 2)).all():
        raise InvalidInput(
            explain(
                f"A learning rate is c = {float(rate.flat[np.argmax(~((rate > 0) & (rate < 2)))]):g}",
                "the first order in eps holds for 0 < c < 2",
                "Follow the path with uv_path instead",
            )
        )
    return np.asarray(1 - _checked(eps) * (4 - rate) / (2 - rate))


def eps_mean(width: int, of: Callable[[Floats], Floats]) -> float:
    """Average of a function of ``eps`` over standard normal weights.

    Args:
        width: Width of the model.
        of: A function of ``eps``, smooth but for ``eps = 1/8``.

    Returns:
        The integral over ``theta`` in ``[0, pi/2]`` with weight ``cos^(w - 1)``, to about 1e-10.

    Example:
        >>> round(eps_mean(16, lambda eps: eps) * 4 * 17, 9)  # the mean is 1 / (4 (w + 1))
        1.0
    """
    from scipy.integrate import quad

    UVModel(width)  # refuses what is no width

    def weight(theta: float) -> float:
        return math.exp((width - 1) * math.log(max(math.cos(theta), 1e-300)))

    def value(theta: float) -> float:
        return float(of(np.float64(math.sin(theta) ** 2 / 4))) * weight(theta)  # type: ignore[arg-type]

    ends = sorted({0.0, math.pi / 4, math.pi / 2, *(n / math.sqrt(width) for n in (1, 3, 8) if n**2 < width)})
    total = norm = 0.0
    for low, high in pairwise(ends):  # 1/8 is an end, and so are the scales of a narrow weight
        total += quad(value, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
        norm += quad(weight, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
    return total / norm


@dataclass(frozen=True)
class UVConstants:
    """Critical values of one width, averaged over random starts.

    Attributes:
        width: The width.
        c_loss: Mean in units of the trace.
        c_loss_lambda: Mean in units of the sharpness.
        c_max: In units of the trace, where it is the same for each start.
        c_max_lambda: Mean in units of the sharpness.
        never_rises: Share of starts whose loss the first step never raises below the divergence, ``P(eps >= 1/8)``.
        mean_eps: Mean of ``eps``.
    """

    width: int
    c_loss: float
    c_loss_lambda: float
    c_max: float
    c_max_lambda: float
    never_rises: float
    mean_eps: float

    def __repr__(self) -> str:
        return (
            f"UVConstants(width {self.width}: c_loss = {self.c_loss:.4g}, c_sharp = c_max = {self.c_max:g} by the "
            f"trace; c_loss = {self.c_loss_lambda:.4g}, c_max = {self.c_max_lambda:.4g} by the sharpness; "
            f"{self.never_rises:.3g} of starts have no rise at first)"
        )

    def plot(self) -> Any:
        """Draw the distribution of ``c_loss`` over random starts, by the trace, up to the divergence."""
        import plotly.graph_objects as go

        theta = np.linspace(0, np.pi / 4, 400)[1:-1]
        c = uv_c_loss(np.sin(theta) ** 2 / 4)
        density = np.cos(theta) ** (self.width - 1) / np.gradient(c, theta)
        share = (1 - self.never_rises) * density / np.trapezoid(density, c)
        figure = go.Figure(go.Scatter(x=c, y=share, mode="lines", fill="tozeroy", name="starts"))
        figure.add_vline(x=self.c_loss, line={"dash": "dash"}, annotation_text="mean")
        return figure.update_layout(
            xaxis={"title": "c_loss = rate × trace at which the loss first rises", "range": [1.9, 4.1]},
            yaxis={"title": "density over random starts", "type": "log"},
            title=f"width {self.width}: {self.never_rises:.3g} of starts never rise below 4",
            height=380,
        )


def uv_constants(width: int) -> UVConstants:
    """Average the critical values over starts with standard normal weights (a Beta distribution), exactly.

    Args:
        width: The width, at least 1.

    Returns:
        The averages. A start without a rise below the divergence counts with ``c_loss = c_max``.

    Raises:
        InvalidInput: The width is below 1.

    Example:
        >>> found = uv_constants(2)
        >>> round(found.c_loss, 2), round(found.never_rises, 3)
        (2.79, 0.293)
    """
    from scipy.stats import beta

    share = 2 * float(beta.sf((1 + math.sqrt(0.5)) / 2, width / 2, width / 2))
    return UVConstants(
        width=width,
        c_loss=eps_mean(width, uv_c_loss),
        c_loss_lambda=eps_mean(width, lambda eps: uv_c_loss(eps, "lambda")),
        c_max=DIVERGES,
        c_max_lambda=eps_mean(width, lambda eps: uv_c_max(eps, "lambda")),
        never_rises=share,
        mean_eps=1 / (4 * (width + 1)),
    )


def _checked(eps: ArrayLike) -> Floats:
    value = np.asarray(eps, dtype=np.float64)
    if not ((value >= 0) & (value <= 0.25 * (1 + 1e-12))).all():
        raise InvalidInput(
            explain(
                "An eps lies outside of [0, 1/4]",
                "eps = (a f / T)^2, and T >= 2 |a f| for any weights",
                "Compute it with uv_eps from an output and its kernel",
            )
        )
    return value


def _unit(eps: Floats, units: Units) -> Floats | float:
    if units not in ("trace", "lambda"):
        raise InvalidInput(
            explain(f"The units are {units!r}", "there are two", "Choose 'trace' (c = eta T_0) or 'lambda'")
        )
    return 1.0 if units == "trace" else sharpness_factor(eps)
