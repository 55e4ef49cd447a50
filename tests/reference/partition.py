"""Partitions by trying every cut: the formula as it stands."""

import itertools

import numpy as np


def separate(x, y, penalty, min_points):
    """Return the least penalised cost over all cuts, by recursion on the first piece."""
    if len(x) == 0:
        return 0.0
    best = np.inf
    for size in range(min_points, len(x) + 1):
        design = np.stack([x[:size], np.ones(size)], axis=1)
        fit = design @ np.linalg.lstsq(design, y[:size], rcond=None)[0]
        rest = separate(x[size:], y[size:], penalty, min_points)
        best = min(best, float(((y[:size] - fit) ** 2).sum()) + penalty + rest)
    return best


def joined(x, y, penalty, min_points):
    """Return the least penalised cost over all sets of inner knots, each fitted by least squares."""
    n, best = len(x), np.inf
    for count in range(n - 1):
        for inner in itertools.combinations(range(1, n - 1), count):
            knots = [0, *inner, n - 1]
            if min(np.diff(knots)) < min_points - 1:
                continue
            hats = np.stack([np.interp(x, x[knots], unit) for unit in np.eye(len(knots))], axis=1)
            residual = y - hats @ np.linalg.lstsq(hats, y, rcond=None)[0]
            best = min(best, float(residual @ residual) + penalty * (count + 1))
    return best
