"""Semidefinite complementarity the naive way: ADMM on full matrices, no packing, no scaling, no cleverness."""

import numpy as np


def admm(alpha, operator, steps=20000, tolerance=1e-12):
    """Minimise ``1/2 <X, operator X> + <alpha, X>`` over ``X >= 0``; ``operator`` acts on row-major ``vec X``."""
    k = len(alpha)
    values = np.linalg.eigvalsh(operator)
    rho = np.sqrt(max(values[0], 1e-3 * values[-1]) * values[-1])
    inverse = np.linalg.inv(operator + rho * np.eye(k * k))
    z, u = np.zeros(k * k), np.zeros(k * k)
    for _ in range(steps):
        x = inverse @ (rho * (z - u) - alpha.reshape(-1))
        w = (x + u).reshape(k, k)
        values, vectors = np.linalg.eigh((w + w.T) / 2)
        new = ((vectors * np.maximum(values, 0)) @ vectors.T).reshape(-1)
        moved, apart = np.linalg.norm(new - z), np.linalg.norm(x - new)
        z, u = new, u + x - new
        if max(moved, apart) <= tolerance * max(1e-300, np.linalg.norm(z)):
            break
    return z.reshape(k, k)


def full_operator(k, weights, matrices):
    """``X -> sum_p weights_p <M_p, X> M_p`` as a ``(k^2, k^2)`` matrix, plus a multiple of the antisymmetric part.

    Without that part it would be singular on matrices that do not matter, and ADMM slow.
    """
    out = sum(w * np.outer(m.reshape(-1), m.reshape(-1)) for w, m in zip(weights, matrices))
    swap = np.eye(k * k).reshape(k, k, k, k).transpose(1, 0, 2, 3).reshape(k * k, k * k)
    return out + (np.eye(k * k) - swap) / 2 * np.mean(weights)
