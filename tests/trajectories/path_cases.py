"""Paths to measure: simulated processes, and their inner products taken directly in float64."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class PlainGrams:
    """The sufficient statistics of a list of tensors, each (T, P_g) float64: what the streaming pass must equal."""

    steps: np.ndarray
    names: tuple
    G: np.ndarray
    c: np.ndarray
    m: np.ndarray
    unchanged: np.ndarray
    quantum: np.ndarray
    sketch: object = None
    schedule: dict = field(default_factory=dict)


def plain_grams(tensors, steps=None, schedule=None, quantum=0.0):
    """Inner products of increments of ``{name: (T, P) array}``."""
    moved = {name: np.diff(points.astype(np.float64), axis=0) for name, points in tensors.items()}
    first = {name: points[0].astype(np.float64) for name, points in tensors.items()}
    count = len(next(iter(tensors.values())))
    return PlainGrams(
        steps=np.arange(count) if steps is None else np.asarray(steps),
        names=tuple(tensors),
        G=np.stack([u @ u.T for u in moved.values()]),
        c=np.stack([moved[n] @ first[n] for n in tensors]),
        m=np.array([first[n] @ first[n] for n in tensors]),
        unchanged=np.stack([(u == 0).mean(axis=1) for u in moved.values()]),
        quantum=np.full(len(tensors), quantum),
        schedule=schedule or {},
    )


def points_of_line(rng, count, size):
    start, way = rng.standard_normal(size), rng.standard_normal(size)
    way -= start * (way @ start) / (start @ start)
    way *= np.linalg.norm(start) / np.linalg.norm(way)
    return start + np.linspace(0, 1, count)[:, None] * way


def points_of_walk(rng, count, size, spread):
    """Ends at a distance of ``spread`` times the start norm."""
    start = rng.standard_normal(size)
    steps = rng.standard_normal((count - 1, size)) * spread / np.sqrt(count - 1)
    return start + np.concatenate([np.zeros((1, size)), np.cumsum(steps, axis=0)])


def points_of_mixing(rng, count, size, rate):
    """Stationary noise of unit variance with correlation ``exp(-rate |t - s|)``."""
    keep = np.exp(-rate)
    points = [rng.standard_normal(size)]
    for _ in range(count - 1):
        points.append(keep * points[-1] + np.sqrt(1 - keep**2) * rng.standard_normal(size))
    return np.stack(points)
