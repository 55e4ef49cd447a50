"""Glass written out plainly: loops, definitions, simulated layouts of jumps, and the law of one hidden layer."""

from __future__ import annotations

import itertools
import math

import numpy as np


def jump_paths(draws, rate, half, points, law, rng):
    """Gradients of a 1-D compound Poisson loss at ``points`` in ``[-half, half]``, shape (draws, points), W(0) = 0."""
    counts = rng.poisson(2 * half * rate, size=draws)
    owner = np.repeat(np.arange(draws), counts)
    place = rng.uniform(-half, half, size=len(owner))
    size = jumps(law, len(owner), rng)
    found = np.zeros((draws, len(points)))
    for column, s in enumerate(points):
        # a jump between the centre and s counts with the sign of s
        inside = (place > 0) & (place <= s) if s > 0 else (place <= 0) & (place > s)
        found[:, column] = np.sign(s) * np.bincount(owner[inside], size[inside], minlength=draws)
    return found


def jumps(law, count, rng):
    """Draw jumps of mean square one (``mean``: of mean one half)."""
    if law == "gaussian":
        return rng.normal(size=count)
    if law == "signs":
        return rng.choice([-1.0, 1.0], size=count)
    if law == "laplace":
        return rng.laplace(scale=math.sqrt(0.5), size=count)
    return 0.5 + rng.normal(size=count) * math.sqrt(0.75)


KURTOSIS = {"gaussian": 3.0, "signs": 1.0, "laplace": 6.0}


def integrated(draws, rate, length, law, rng):
    """``X = int_0^length W ds`` of many layouts: every jump at s adds ``J (length - s)``."""
    counts = rng.poisson(length * rate, size=draws)
    owner = np.repeat(np.arange(draws), counts)
    place = rng.uniform(0, length, size=len(owner))
    return np.bincount(owner, jumps(law, len(owner), rng) * (length - place), minlength=draws)


def three_point(minus, centre, plus, sigma):
    """The estimators as they are printed, entry by entry."""
    h = [(b - a) / (2 * sigma) for a, b in zip(minus, plus)]
    rho = [2 / sigma * (0.5 * (a + b) - c) ** 2 for a, b, c in zip(minus, plus, centre)]
    return h, rho


def density_by_hand(problem, w, sigma, parts, all_signs):
    """Mean over batches of the three-point estimates, one batch and coordinate after the other."""
    total_rho, total_square = np.zeros(problem.dimension), np.zeros(problem.dimension)
    for part, z in zip(parts, all_signs):
        minus, centre, plus = (part.gradient(w + s * sigma * z).double().tolist() for s in (-1, 0, 1))
        h, rho = three_point(minus, centre, plus, sigma)
        total_rho += np.array(rho)
        total_square += np.square(h)
    return total_rho / len(parts), total_square / len(parts)


def one_hidden_layer(x, weights, biases, out, target):
    """Preactivations, their gradients by input weight and bias, and loss derivatives, for half the squared error.

    The loss is the mean over samples of ``(f - y)^2 / 2`` with ``f = out' relu(W x + b)``.
    """
    y = x @ weights.T + biases  # (samples, units)
    f = np.maximum(y, 0) @ out
    chi = np.outer(f - target, out) / len(x)  # d loss / d unit output
    return y, chi


def predicted_density(x, weights, biases, out, target, width):
    """Formula (2) for the hidden layer and one sample: ``sum_k f_k E|q_k . z| chi_k^2 q_ki^2`` over all signs ``z``.

    ``q_k`` of sample n and unit j is ``(x_n, 1)`` in the rows of unit j; the density of a preactivation at zero is
    taken with a Gaussian kernel of ``width``. For batches of B divide by B. Returns (units, inputs + 1).
    """
    y, chi = one_hidden_layer(x, weights, biases, out, target)
    chi = chi * len(x)
    q = np.column_stack([x, np.ones(len(x))])
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=q.shape[1])))
    moved = np.abs(q @ signs.T).mean(axis=1)
    found = np.zeros((weights.shape[0], q.shape[1]))
    for j in range(weights.shape[0]):
        kernel = np.exp(-0.5 * np.square(y[:, j] / width)) / (width * math.sqrt(2 * math.pi))
        found[j] = ((kernel * moved * np.square(chi[:, j]))[:, None] * np.square(q)).mean(axis=0)
    return found
