r"""Two solvers of ``min 1/2 x'Bx + a'x`` over packed positive semidefinite matrices, and the face of least norm.

`newton` works on the normal map: every symmetric ``Z`` is ``X - S`` with ``X, S >= 0`` and ``<X, S> = 0`` (its positive
and negative part), so two of the three conditions hold by construction, and what is left is one equation,
``a + B X(Z) = S(Z)``. It is strongly semismooth (Sun and Sun, Math. Oper. Res. 27, 2002), so Newton's method with
the derivative of the projection converges quadratically, whichever eigenvalues of ``X`` are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.operators.packing import order, smat, svec

Floats = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Split:
    """``Z = X - S`` in its eigenbasis: ``Z = Q diag(values) Q'``."""

    values: Floats
    basis: Floats

    @classmethod
    def of(cls, z: Floats) -> Split:
        """Diagonalise the packed matrix ``z``."""
        values, basis = np.linalg.eigh(smat(z))
        return cls(values, basis)

    @property
    def positive(self) -> Floats:
        """``svec X``, positive semidefinite to rounding."""
        found: Floats = svec((self.basis * np.maximum(self.values, 0.0)) @ self.basis.T)
        return found

    @property
    def derivative(self) -> Floats:
        """The (m, m) matrix of ``dX/dZ``: symmetric, eigenvalues between 0 and 1.

        In the eigenbasis it multiplies entry ``ij`` with ``(v_i^+ - v_j^+) / (v_i - v_j)`` (Loewner).
        """
        rotation = svec(self.basis.T @ _units(len(self.values)) @ self.basis)  # row p: Q'E_pQ
        up, size = np.maximum(self.values, 0.0), np.abs(self.values)
        total = size[:, None] + size[None, :]
        share = np.divide(up[:, None] + up[None, :], total, out=np.full_like(total, 0.5), where=total > 0)
        rows, columns = np.triu_indices(len(self.values))
        found: Floats = (rotation * share[rows, columns]) @ rotation.T
        return found


def newton(a: Floats, b: Floats, z: Floats, *, steps: int = 50) -> tuple[Floats, Floats, int]:
    """Solve ``a + B X(Z) = S(Z)`` by damped Newton steps from ``z``.

    Args:
        a: Shape ``(m,)``, packed; of norm about one.
        b: Shape ``(m, m)``, symmetric positive semidefinite; eigenvalues about one.
        z: Start, shape ``(m,)``: positive part a guess of X, negative part of S.
        steps: Budget.

    Returns:
        ``(svec X, svec Z, steps taken)`` of the smallest residual found, converged or not.
    """
    eye, size = np.eye(len(a)), float(np.linalg.norm(b))

    def residual(split: Split, z: Floats) -> tuple[Floats, Floats, float]:
        x = split.positive
        f = a + b @ x - (x - z)
        return x, f, float(np.linalg.norm(f))

    split = Split.of(z)
    x, f, norm = residual(split, z)
    for number in range(steps):
        if norm <= 2 * EPS * (1.0 + size * float(np.linalg.norm(x))):
            return x, z, number
        jacobian = eye + (b - eye) @ split.derivative
        try:
            step = np.linalg.solve(jacobian, -f)
        except np.linalg.LinAlgError:
            step = np.linalg.lstsq(jacobian, -f, rcond=1e-12)[0]
        length = 1.0
        while True:
            trial = z + length * step
            next_split = Split.of(trial)
            next_x, next_f, next_norm = residual(next_split, trial)
            if next_norm <= (1 - 1e-4 * length) * norm:
                break
            length /= 2
            if length < 1e-3 or norm <= 1e-12:  # stuck, or at rounding
                return x, z, number + 1
        z, split, x, f, norm = trial, next_split, next_x, next_f, next_norm
    return x, z, steps


def proximal(a: Floats, b: Floats, z: Floats, *, delta: float = 1e-6, steps: int = 20) -> tuple[Floats, Floats, int]:
    """Solve as `newton` does where B is singular: proximal-point steps, each of which is definite.

    Step ``j`` minimises the objective plus ``delta/2 |X - X_j|^2``; the fixed points are the solutions, whatever
    ``delta``, and near them few steps suffice.

    Returns:
        As `newton`.
    """
    x, taken = Split.of(z).positive, 0
    shifted = b + delta * np.eye(len(a))
    for _ in range(steps):
        previous = x
        x, z, number = newton(a - delta * previous, shifted, z)
        taken += number
        if delta * np.linalg.norm(x - previous) <= 1e-14 * (1.0 + np.linalg.norm(b @ x)):
            break
    return x, z, taken


def interior_point(a: Floats, b: Floats) -> tuple[Floats, Floats, int]:
    """Solve the cone program with Clarabel (Goulart and Chen, arXiv 2405.12762).

    It ends when the objective is right to 1e-12, which leaves X right to about the root of that.

    Returns:
        ``(svec X, svec S, iterations)``. Where the objective has no minimum, X is a direction of descent without end,
        or far out on one.
    """
    from scipy import sparse

    clarabel: Any = import_module("clarabel")  # it has no types
    m = len(a)
    k = order(m)
    # Clarabel packs the upper triangle column by column.
    rows, columns = np.triu_indices(k)
    theirs = np.lexsort((rows, columns))
    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(b[np.ix_(theirs, theirs)])),
        a[theirs],
        -sparse.identity(m, format="csc"),
        np.zeros(m),
        [clarabel.PSDTriangleConeT(k)],
        settings,
    )
    found = solver.solve()
    x, s = np.zeros(m), np.zeros(m)
    x[theirs], s[theirs] = np.asarray(found.x), np.asarray(found.z)
    return x, s, int(found.iterations)


def least_norm(b: Floats, x: Floats, free: Floats, *, steps: int = 50) -> Floats:
    """Return the ``X >= 0`` of least Frobenius norm with ``B X`` as given and range within ``free``.

    Newton's method on the dual of the projection, ``A (A'y)_+ = Bx`` (Qi and Sun, SIAM J. Matrix Anal. 28, 2006).

    Args:
        b: Shape ``(m, m)``, singular.
        x: Some solution, packed.
        free: Orthonormal columns, shape ``(k, r)``, that span the range which X may have.
        steps: Budget.

    Returns:
        The packed solution; ``x`` itself where the iteration does not reach it.
    """
    r = free.shape[1]
    embed = svec(free @ _units(r) @ free.T).T  # (m, r(r+1)/2): svec(M) -> svec(V M V')
    left, values, right = np.linalg.svd(b @ embed)
    rank = int(np.sum(values > 1e-11 * max(float(values[0]), float(np.linalg.norm(b)) * 1e-3)))
    if rank == 0:
        return np.zeros_like(x)
    rows = right[:rank]  # orthonormal: the equations are rows @ M = target
    target = left[:, :rank].T @ (b @ x) / values[:rank]
    y = target.copy()
    split = Split.of(rows.T @ y)
    gap = target - rows @ split.positive
    for _ in range(steps):
        if np.linalg.norm(gap) <= 8 * EPS * np.linalg.norm(target):
            break
        jacobian = rows @ split.derivative @ rows.T
        step = np.linalg.lstsq(jacobian, gap, rcond=1e-13)[0]
        length = 1.0
        while length > 1e-6:
            trial = Split.of(rows.T @ (y + length * step))
            next_gap = target - rows @ trial.positive
            if np.linalg.norm(next_gap) <= (1 - 1e-4 * length) * np.linalg.norm(gap):
                break
            length /= 2
        else:
            break
        y, split, gap = y + length * step, trial, next_gap
    if np.linalg.norm(gap) > 1e-12 * np.linalg.norm(target):
        return x
    found: Floats = embed @ split.positive
    return found


@lru_cache(maxsize=32)
def _units(k: int) -> Floats:
    """The orthonormal basis of symmetric matrices in the order of svec, shape ``(m, k, k)``."""
    found: Floats = smat(np.eye(k * (k + 1) // 2))
    return found
