"""Descent that settles on a measure and on no point: f = 100 sin(x) sin(y), where |Hessian| <= 100.

At a rate of 0.01 the iterates stop at a minimum, loss -100. At 0.04 they go round twelve small spots for ever: the loss
averages -18.2 from every start, and the gradient norm 66.7 from two starts in three. The others end on one of two more
cycles of the kind, where it is 64.0 or 64.4: there is more than one invariant measure. The map and its picture are from
arXiv 2110.06256.

python examples/synthetic_map.py
"""

import numpy as np

from thalweg.stationarity.measures import Invariance, empirical_measure, invariance_residual

TOP = 100.0


def loss(point: np.ndarray) -> np.ndarray:
    return TOP * np.sin(point[..., 0]) * np.sin(point[..., 1])


def gradient(point: np.ndarray) -> np.ndarray:
    x, y = point[..., 0], point[..., 1]
    return TOP * np.stack([np.cos(x) * np.sin(y), np.sin(x) * np.cos(y)], axis=-1)


def descend(rate: float, starts: np.ndarray, steps: int) -> np.ndarray:
    """Return the path of every start, shape (steps + 1, starts, 2)."""
    path = [starts]
    for _ in range(steps):
        path.append(path[-1] - rate * gradient(path[-1]))
    return np.stack(path)


def spots(points: np.ndarray, width: float = 0.01) -> int:
    """Count groups of points that chain together on a grid of this width: cells that touch are one group.

    The loss has period 2 pi in both directions, and so does the map: points are taken within one period.
    """
    cells = {tuple(cell) for cell in np.floor(np.mod(points, 2 * np.pi) / width).astype(int)}
    found = 0
    while cells:
        found += 1
        border = [cells.pop()]
        while border:
            i, j = border.pop()
            for near in [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if near in cells:
                    cells.remove(near)
                    border.append(near)
    return found


def cells(points: np.ndarray) -> int:
    """Count the different points after rounding to two decimals: a spot across a border counts twice or more."""
    return len(np.unique(np.round(points, 2), axis=0))


def descent_ratio(rate: float, path: np.ndarray) -> np.ndarray:
    """Return Q = (loss at the start - loss at the end) / sum of rate |gradient|^2, for each start."""
    spent = rate * (gradient(path[:-1]) ** 2).sum(-1).sum(0)
    return (loss(path[0]) - loss(path[-1])) / spent


def curvature_share(rate: float, path: np.ndarray, points: int = 16) -> np.ndarray:
    """Return the curvature term over sum of rate |gradient|^2, with the Hessian averaged over each step.

    L(p - rate g) = L(p) - rate |g|^2 + rate^2 int_0^1 (1 - s) g' H(p - s rate g) g ds, so that with Q it makes one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    at, g = path[:-1], gradient(path[:-1])
    total = np.zeros(at.shape[1])
    for s, weight in zip((nodes + 1) / 2, weights / 2):
        x, y = np.moveaxis(at - s * rate * g, -1, 0)
        diagonal, off = -TOP * np.sin(x) * np.sin(y), TOP * np.cos(x) * np.cos(y)
        total += weight * (1 - s) * (diagonal * (g**2).sum(-1) + 2 * off * g[..., 0] * g[..., 1]).sum(0)
    return rate * total / (g**2).sum(-1).sum(0)


def main(starts: int = 48, steps: int = 6000) -> dict[str, object]:
    rng = np.random.default_rng(0)
    begin = rng.uniform(0, 2 * np.pi, (starts, 2))

    calm = descend(0.01, begin, 2000)[-1]
    print(f"rate 0.01: loss {loss(calm).min():.6f} to {loss(calm).max():.6f}, gradient norm at most", end=" ")
    print(f"{np.linalg.norm(gradient(calm), axis=-1).max():.1e}: a stationary point")

    path = descend(0.04, begin, steps)[2000:]
    losses = loss(path).mean(0)
    norms = np.linalg.norm(gradient(path), axis=-1).mean(0)
    last = [path[-500:, start] for start in range(starts)]
    groups, rounded = [spots(points) for points in last], [cells(points) for points in last]
    ratio, share = descent_ratio(0.04, path), curvature_share(0.04, path)
    print(f"rate 0.04, {starts} starts: time averages of the loss {losses.min():.2f} to {losses.max():.2f}")
    usual = np.abs(norms - 66.7) < 0.1
    print(
        f"of the gradient norm {norms[usual].min():.2f} to {norms[usual].max():.2f} for {usual.sum()} starts,", end=" "
    )
    print(f"{norms[~usual].min():.2f} to {norms[~usual].max():.2f} for {(~usual).sum()}")
    print(f"the last 500 iterates lie on {sorted(set(groups))} spots, {min(rounded)} to {max(rounded)} rounded points")
    print(f"descent ratio Q {np.abs(ratio).max():.1e} at most, curvature share {share.min():.6f} to {share.max():.6f}")

    observables = {
        "loss": lambda p: float(loss(p)),
        "gradient norm": lambda p: float(np.linalg.norm(gradient(p))),
        "sin x": lambda p: float(np.sin(p[0])),
    }
    one = path[:4000, 0]
    print(empirical_measure(one, observables))
    residual: Invariance = invariance_residual(
        one,
        lambda p: p - 0.04 * gradient(p),
        observables,
        deterministic=True,
        bounds={"loss": TOP, "gradient norm": TOP, "sin x": 1.0},
    )
    print(residual)
    return {
        "calm loss": loss(calm),
        "calm norm": np.linalg.norm(gradient(calm), axis=-1),
        "loss": losses,
        "norm": norms,
        "spots": groups,
        "cells": rounded,
        "ratio": ratio,
        "share": share,
        "residual": residual,
    }


if __name__ == "__main__":
    main()
