"""Trajectory maps to draw and tell of, from processes whose shape is known."""

from types import SimpleNamespace

import numpy as np

from thalweg.trajectories.map import trajectory_map


def mapped(points, *, groups=None, steps=None, schedule=None, quantum=0.0, decay=None, **fields):
    """The map of ``{name: (T, P)}`` or of one array."""
    tensors = points if isinstance(points, dict) else {"w": points}
    moved = {name: np.diff(rows, axis=0) for name, rows in tensors.items()}
    count = len(next(iter(tensors.values())))
    grams = SimpleNamespace(
        steps=np.arange(count) * 100 if steps is None else np.asarray(steps),
        names=tuple(tensors),
        shapes=tuple(rows.shape[1:] for rows in tensors.values()),
        G=np.stack([u @ u.T for u in moved.values()]),
        c=np.stack([moved[name] @ rows[0] for name, rows in tensors.items()]),
        m=np.array([rows[0] @ rows[0] for rows in tensors.values()]),
        unchanged=np.stack([(u == 0).mean(axis=1) for u in moved.values()]),
        quantum=np.full(len(tensors), quantum),
        schedule={},
        **fields,
    )
    return trajectory_map(grams, groups=groups, schedule=schedule, decay=decay)


def walk(count=60, size=8000, spread=2.0, seed=0):
    """A random walk that ends at ``spread`` times its first norm."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((count - 1, size)) * spread / np.sqrt(count - 1)
    return rng.standard_normal(size) + np.concatenate([np.zeros((1, size)), np.cumsum(steps, axis=0)])


def line(count=60, size=500, spread=2.0, seed=0):
    """A straight line, at right angles to its start."""
    rng = np.random.default_rng(seed)
    start, way = rng.standard_normal((2, size))
    way -= start * (way @ start) / (start @ start)
    return start + spread * np.linspace(0, 1, count)[:, None] * way


def draws(count=60, size=8000, seed=0):
    """Independent draws around zero."""
    return np.random.default_rng(seed).standard_normal((count, size))
