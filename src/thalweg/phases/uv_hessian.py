r"""The Hessian of the exactly solvable model in closed form: trace, both ends, the whole spectrum.

In ``p = (u + v) / sqrt 2`` and ``q = (u - v) / sqrt 2`` the output is ``f = a (|p|^2 - |q|^2) / 2``, and the Hessian is
``a^2 (p, -q)(p, -q)^T + a D diag(1, -1)``. On the plane of ``(p, 0)`` and ``(0, q)`` it is a 2 x 2 matrix of trace
``T`` and determinant ``-a^2 D (2 f + D)``; across that plane it is ``a D`` and ``-a D``, ``w - 1`` times each.

The first part is positive semidefinite and of rank one, so all eigenvalues lie at or above ``-|a D|``, and all but one
at or below ``|a D|``: the larger one of the plane is the largest of all, and for ``w > 1`` the smallest is ``-|a D|``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thalweg.errors import InvalidInput, explain
from thalweg.phases.uv import Floats, UVModel


def uv_eigenvalues(model: UVModel, residual: ArrayLike, kernel: ArrayLike) -> tuple[Floats, Floats]:
    """The two eigenvalues on the plane of the weights: ``(T -+ sqrt(T^2 + 4 a^2 D (2 f + D))) / 2``, ``f = D + y``.

    The second is the largest of the whole spectrum, the sharpness. The root is taken of
    ``4 a^2 (f + D)^2 + (T - 2 a f)(T + 2 a f)``, the same without a difference of squares that may come out negative.

    Args:
        model: The model.
        residual: ``D``, any shape.
        kernel: ``T``, same shape.

    Returns:
        The smaller and the larger one; infinite where the state is.

    Example:
        >>> low, high = uv_eigenvalues(UVModel(1), residual=1.0, kernel=2.0)  # u = v = 1
        >>> float(low), float(high)
        (-1.0, 3.0)
    """
    d, t = np.asarray(residual, dtype=np.float64), np.asarray(kernel, dtype=np.float64)
    alive = np.isfinite(d) & np.isfinite(t)
    d, t = np.where(alive, d, 0.0), np.where(alive, t, 0.0)
    f, a = d + model.y, model.scale
    root = np.sqrt(4 * a**2 * (f + d) ** 2 + np.maximum((t - 2 * a * f) * (t + 2 * a * f), 0.0))
    return np.where(alive, (t - root) / 2, -np.inf), np.where(alive, (t + root) / 2, np.inf)


def uv_spectrum(model: UVModel, residual: float, kernel: float) -> Floats:
    """All ``2 w`` eigenvalues, ascending: the two of `uv_eigenvalues`, and ``a D`` and ``-a D``, ``w - 1`` times each.

    Args:
        model: The model.
        residual: ``D``, finite.
        kernel: ``T``, finite.

    Returns:
        Shape ``(2 w,)``.

    Raises:
        InvalidInput: The state is not finite.

    Example:
        >>> uv_spectrum(UVModel(2), residual=2**0.5, kernel=2.0).round(6).tolist()
        [-1.0, -1.0, 1.0, 3.0]
    """
    if not (np.isfinite(residual) and np.isfinite(kernel)):
        raise InvalidInput(
            explain("The state is not finite", "a diverged run has no Hessian", "Take an earlier step of the path")
        )
    low, high = uv_eigenvalues(model, residual, kernel)
    bulk = np.repeat(model.scale * residual, model.width - 1)
    return np.sort(np.concatenate([[float(low), float(high)], bulk, -bulk]))
