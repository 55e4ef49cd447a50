"""The two-layer linear model of one example, step by step on its weights, with the Hessian written out."""

import numpy as np


def descend(u, v, x, y, lr, steps):
    """Return the weights after each step of gradient descent, and the outputs."""
    a = x / np.sqrt(len(u))
    path = [(u, v)]
    for _ in range(steps):
        residual = a * u @ v - y
        u, v = u - lr * a * residual * v, v - lr * a * residual * u
        path.append((u, v))
    return path


def hessian(u, v, x, y):
    """All second derivatives of (a u.v - y)^2 / 2."""
    w = len(u)
    a = x / np.sqrt(w)
    residual = a * u @ v - y
    slope = a * np.concatenate([v, u])
    bend = np.zeros((2 * w, 2 * w))
    bend[:w, w:] = bend[w:, :w] = a * np.eye(w)
    return np.outer(slope, slope) + residual * bend
