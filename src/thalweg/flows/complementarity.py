r"""How strongly an optimiser oscillates: the semidefinite complementarity problem of a central flow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from thalweg.errors import InvalidInput, NotConverged, ThalwegError, explain
from thalweg.flows.semidefinite import EPS, Floats, interior_point, least_norm, newton, proximal
from thalweg.operators.packing import smat, svec

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ASYMMETRY = 1e-5
"""Relative asymmetry, and relative negative eigenvalue of beta, that are taken as rounding of float32 data."""


class Unbounded(ThalwegError):
    """No X satisfies the conditions: no oscillation, however large, lowers the curvature in some direction."""


class Method(StrEnum):
    """How a complementarity problem was solved; the value is a sentence."""

    ZERO = "Alpha is positive semidefinite, so X = 0."
    CLOSED = "One direction: X = max(0, -alpha / beta)."
    ACTIVE = "Every direction is active: beta[X] = -alpha was solved."
    NEWTON = "Newton's method on the normal map."
    INTERIOR = "An interior-point method, polished by Newton's method."


@dataclass(frozen=True)
class Complementarity:
    r"""``X >= 0``, ``S = alpha + beta[X] >= 0``, ``<X, S> = 0``, and how well each holds.

    Attributes:
        X: Shape ``(k, k)``, float64, on the CPU.
        slack: ``S``, same shape.
        method: How it was found, and so why the solver stopped.
        iterations: Newton and interior-point steps; zero for direct solutions.
        primal: ``max(0, -lambda_min(X)) / |X|``.
        dual: ``max(0, -lambda_min(S)) / s`` with ``s = max(|alpha|, |beta[X]|)``, Frobenius norms.
        gap: ``|<X, S>| / (|X| s)``.
    """

    X: Tensor
    slack: Tensor
    method: Method
    iterations: int
    primal: float
    dual: float
    gap: float

    @property
    def residual(self) -> float:
        """The largest of the three relative residuals."""
        return max(self.primal, self.dual, self.gap)

    @property
    def rank(self) -> int:
        """Number of directions that oscillate: eigenvalues of X above 1e-9 of the largest."""
        values = torch.linalg.eigvalsh(self.X)
        return int((values > 1e-9 * values.max()).sum()) if len(values) and float(values.max()) > 0 else 0

    def __repr__(self) -> str:
        return (
            f"Complementarity(k={len(self.X)}, rank={self.rank}, trace={float(self.X.trace()):.6g}, "
            f"residual={self.residual:.0e}, method={self.method.name}, iterations={self.iterations})"
        )

    def plot(self) -> Figure:
        """Draw the eigenvalues of X, and the slack along the same directions."""
        import plotly.graph_objects as go

        values, basis = torch.linalg.eigh(self.X)
        along = (basis.T @ self.slack @ basis).diagonal()
        index = list(range(1, len(values) + 1))
        figure = go.Figure()
        figure.add_bar(x=index, y=values.flip(0).tolist(), name="oscillation (X)")
        figure.add_bar(x=index, y=along.flip(0).tolist(), name="slack", yaxis="y2", offsetgroup="2")
        return figure.update_layout(
            title=f"{self.rank} of {len(values)} directions oscillate",
            xaxis_title="eigenvector of X",
            yaxis_title="variance",
            yaxis2={"title": "slack", "overlaying": "y", "side": "right"},
            barmode="group",
        )


def solve(
    alpha: Tensor | NDArray[Any],
    beta: Tensor | NDArray[Any],
    *,
    start: Complementarity | Tensor | NDArray[Any] | None = None,
    tolerance: float = 1e-10,
    strict: bool = True,
) -> Complementarity:
    r"""Find ``X >= 0`` with ``alpha + beta[X] >= 0`` and ``<X, alpha + beta[X]> = 0``.

    This is the optimality condition of ``min 1/2 <X, beta[X]> + <alpha, X>`` over positive semidefinite ``X``; for
    definite ``beta`` there is exactly one. Where ``beta`` is singular, ``beta[X]`` is still unique, and the X of
    least norm is returned. Solved in float64 on the CPU whatever comes in: X = 0 if that will do; in closed form for
    k = 1; with all directions active; by Newton's method on the normal map; by an interior-point method.

    Args:
        alpha: Shape ``(k, k)``, symmetric.
        beta: Shape ``(m, m)``, ``m = k (k + 1) / 2``: the operator in `svec` coordinates, symmetric positive
            semidefinite. Asymmetry and negative eigenvalues at the rounding of float32 are removed.
        start: A nearby solution, or its X of shape ``(k, k)``, in the same basis.
        tolerance: What the three relative residuals may be, unless the rounding of ``beta[X]`` is larger.
        strict: Raise where that is not reached.

    Returns:
        A `Complementarity`.

    Raises:
        InvalidInput: Shapes do not fit, entries are not finite, ``beta`` is not symmetric positive semidefinite.
        Unbounded: ``beta`` vanishes along a direction in which ``alpha`` is negative.
        NotConverged: The tolerance was not reached; ``error.result`` is the best found.

    Example:
        >>> alpha = torch.tensor([[-1.0, 0.0], [0.0, 2.0]]).double()
        >>> solve(alpha, torch.eye(3).double()).X.tolist()  # the projection of -alpha
        [[1.0, 0.0], [0.0, 0.0]]
    """
    a, b, k = _checked(alpha, beta)
    guess = None if start is None else _start(start, k)
    size = float(np.linalg.norm(a))
    if k == 0 or size == 0 or np.linalg.eigvalsh(smat(a))[0] >= 0:
        return _result(a, b, np.zeros_like(a), Method.ZERO, 0)
    scale = float(np.trace(b)) / len(a)
    if scale <= 0:
        raise _unbounded()
    a_unit, b_unit, unit = a / size, b / scale, size / scale
    if k == 1:
        return _result(a, b, -a / b[0], Method.CLOSED, 0)
    definite, b_unit, x = _active(a_unit, b_unit)
    if not definite:
        b = b_unit * scale  # clipped
    if x is not None:
        found = _result(a, b, unit * x, Method.ACTIVE, 0)
        if _reached(found, a, b, tolerance):
            return found
    best: Complementarity | None = None
    for x, method, iterations in _candidates(a_unit, b_unit, definite, None if guess is None else guess / unit):
        found = _result(a, b, unit * x, method, iterations)
        if _reached(found, a, b, tolerance):
            return found
        best = found if best is None or found.residual < best.residual else best
    assert best is not None
    if strict:
        raise NotConverged(
            explain(
                f"The complementarity problem was solved to {best.residual:.1e} instead of {tolerance:.0e}",
                "X would not keep every eigenvalue at its threshold",
                "Look at the spectrum of beta: a nearly singular one leaves X undetermined; or pass strict=False",
            ),
            best,
        )
    return best


def _checked(alpha: Any, beta: Any) -> tuple[Floats, Floats, int]:
    """``svec alpha`` and symmetric ``beta`` as float64 arrays."""
    first, second = _array(alpha), _array(beta)
    k = first.shape[0] if first.ndim == 2 else -1
    m = k * (k + 1) // 2
    if first.shape != (k, k) or second.shape != (m, m):
        raise InvalidInput(
            explain(
                f"alpha has shape {first.shape}, beta {second.shape}",
                "for alpha of shape (k, k) beta acts on packed matrices, shape (m, m) with m = k (k + 1) / 2",
                "Pack a (k, k, k, k) tensor with svec_operator",
            )
        )
    for name, matrix in (("alpha", first), ("beta", second)):
        size = np.linalg.norm(matrix)
        if not np.isfinite(size):
            raise InvalidInput(
                explain(f"{name} has NaN or infinite entries", "no X is defined", "Look at the derivatives it is from")
            )
        off = np.linalg.norm(matrix - matrix.T)
        if off > ASYMMETRY * size:
            raise InvalidInput(
                explain(
                    f"{name} differs from its transpose by {off / size:.1e} of its norm",
                    "both data of the problem are symmetric",
                    "Pass the symmetric part if that is what you mean",
                )
            )
    return svec(first), (second + second.T) / 2, k


def _array(data: Any) -> Floats:
    if isinstance(data, Tensor):
        data = data.detach().to("cpu", torch.float64).numpy()
    return np.asarray(data, dtype=np.float64)


def _active(a: Floats, b: Floats) -> tuple[bool, Floats, Floats | None]:
    """Whether ``b`` is definite; ``b`` with rounding removed; ``-b^+ a`` where that solves the problem."""
    factor, failed = lapack.dpotrf(b, lower=1)
    if not failed and lapack.dpocon(factor, np.abs(b).sum(axis=0).max(), uplo="L")[0] > 1e-13:
        x = lapack.dpotrs(factor, -a, lower=1)[0]
        return True, b, x if np.linalg.eigvalsh(smat(x))[0] >= 0 else None
    values, vectors = np.linalg.eigh(b)
    if values[0] < -ASYMMETRY * values[-1]:
        raise InvalidInput(
            explain(
                f"beta has the eigenvalue {values[0] / values[-1]:.1e} times its largest",
                "without positive semidefiniteness the problem is not convex, and X is not determined",
                "Check the sign: beta[X] is what X adds to the slack",
            )
        )
    kept = values > 16 * len(a) * EPS * values[-1]
    b = (vectors[:, kept] * values[kept]) @ vectors[:, kept].T
    x = -(vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ a)
    consistent = np.linalg.norm(vectors[:, ~kept].T @ a) <= 1e-12
    floor = -4 * EPS * np.linalg.norm(x)
    return False, (b + b.T) / 2, x if consistent and np.linalg.eigvalsh(smat(x))[0] >= floor else None


def _candidates(a: Floats, b: Floats, definite: bool, guess: Floats | None) -> Iterator[tuple[Floats, Method, int]]:
    """Solutions of the scaled problem by ever slower and surer means."""
    z = -a if guess is None else guess - (a + b @ guess)  # X - S
    taken = 0
    if definite:
        x, _, taken = newton(a, b, z)
        yield x, Method.NEWTON, taken
    x, s, steps = interior_point(a, b)
    ray = x / (np.linalg.norm(x) or 1.0)
    if not definite and np.linalg.norm(b @ ray) <= 1e-6 and float(a @ ray) < -1e-6:
        raise _unbounded()  # the objective falls along it without end
    taken += steps
    rough = x - s
    for polish in (newton, proximal):
        x, z, steps = polish(a, b, rough)
        taken += steps
        if not definite:
            yield _least(b, x, z), Method.INTERIOR, taken
        yield x, Method.INTERIOR, taken


def _start(start: Any, k: int) -> Floats:
    given = _array(start.X if isinstance(start, Complementarity) else start)
    if given.shape != (k, k) or not np.isfinite(given).all():
        raise InvalidInput(
            explain(
                f"Start has shape {given.shape}", f"X has shape ({k}, {k}) and is finite", "Pass None to begin anew"
            )
        )
    packed: Floats = svec(given)
    return packed


def _least(b: Floats, x: Floats, z: Floats) -> Floats:
    """The solution of least norm on the face that the slack leaves free."""
    values, vectors = np.linalg.eigh(smat(z))
    free = vectors[:, values > -1e-9 * np.abs(values).max()]
    return least_norm(b, x, free) if free.shape[1] else np.zeros_like(x)


def _result(a: Floats, b: Floats, x: Floats, method: Method, iterations: int) -> Complementarity:
    """Measure the three residuals on the given data, not on anything the solver kept."""
    bx = b @ x
    s = a + bx
    big, small = smat(x), smat(s)
    x_norm = float(np.linalg.norm(x))
    s_norm = max(float(np.linalg.norm(a)), float(np.linalg.norm(bx)))
    dual = _negative(small) / s_norm if s_norm else 0.0
    primal = _negative(big) / x_norm if x_norm else 0.0
    gap = abs(float(x @ s)) / (x_norm * s_norm) if x_norm and s_norm else 0.0
    return Complementarity(torch.from_numpy(big), torch.from_numpy(small), method, iterations, primal, dual, gap)


def _negative(matrix: Floats) -> float:
    return max(0.0, -float(np.linalg.eigvalsh(matrix)[0])) if len(matrix) else 0.0


def _reached(found: Complementarity, a: Floats, b: Floats, tolerance: float) -> bool:
    """Whether the residuals are within the tolerance, or the rounding of ``a + b X`` if that is larger."""
    product = float(np.linalg.norm(b)) * float(torch.linalg.norm(found.X))
    rounding = 8 * EPS * product / max(float(np.linalg.norm(a)), float(np.linalg.norm(found.slack.numpy())))
    return found.residual <= max(tolerance, rounding)


def _unbounded() -> Unbounded:
    return Unbounded(
        explain(
            "The complementarity problem has no solution",
            "along some direction curvature is above its threshold, and no oscillation lowers it "
            "(its third derivative vanishes there)",
            "The step size is above the stability limit of a loss that is quadratic in that direction: lower it",
        )
    )


__all__ = ["Complementarity", "Method", "Unbounded", "solve"]
