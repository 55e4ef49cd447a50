"""The stationary preconditioner by a general solver of convex programs."""

import math

import clarabel
import numpy as np
from scipy import sparse


def stationary(H, g, eta):
    """Minimise ``sum p_i + (g_i / eta)^2 / p_i`` over diagonal ``P = diag(p)`` with ``2 P - H >= 0``.

    With ``t_i p_i >= (g_i / eta)^2`` as cones, and the matrix in columns of its upper triangle.
    """
    n = len(g)
    rows, cols, values, b = [], [], [], []
    for i, c in enumerate(np.abs(g) / eta):  # |(2 c, p - t)| <= p + t
        for j, (row, sign) in enumerate(((1.0, 1.0), (0.0, 0.0), (1.0, -1.0))):
            if row:
                rows += [3 * i + j] * 2
                cols += [i, n + i]
                values += [-row, -sign * row]
            b.append(2 * c if j == 1 else 0.0)
    at = 3 * n
    for j in range(n):
        for i in range(j + 1):
            if i == j:
                rows.append(at)
                cols.append(i)
                values.append(-2.0)
            b.append(-H[i, j] * (1.0 if i == j else math.sqrt(2)))
            at += 1
    matrix = sparse.csc_matrix((values, (rows, cols)), shape=(at, 2 * n))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.SecondOrderConeT(3)] * n + [clarabel.PSDTriangleConeT(n)]
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((2 * n, 2 * n)), np.ones(2 * n), matrix, np.array(b), cones, settings
    )
    found = solver.solve()
    assert "olved" in str(found.status), found.status
    return np.array(found.x[:n])
