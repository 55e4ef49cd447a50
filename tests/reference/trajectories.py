"""Trajectories by brute force: everything in memory, everything in float64, and a source that counts what is read."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Info:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Memory:
    """Checkpoints in memory with the interface of a trajectory; counts the reads of every element."""

    def __init__(self, points, steps=None, schedule=None):
        self.points = list(points)
        self.steps = tuple(steps) if steps is not None else tuple(range(len(self.points)))
        first = self.points[0]
        self.tensors = tuple(Info(name, tuple(t.shape), t.dtype) for name, t in first.items())
        self.schedule = schedule or {}
        self.bytes_read = 0
        self.reads = []
        self.prints = [f"print {step}" for step in self.steps]
        self.lock = threading.Lock()

    def __len__(self):
        return len(self.points)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, lock=threading.Lock())

    def read(self, index, name, start, stop):
        found = self.points[index][name].flatten()[start:stop].clone()
        with self.lock:
            self.reads.append((index, name, start, stop))
            self.bytes_read += found.numel() * found.itemsize
        return found

    def fingerprint(self, index):
        return self.prints[index]

    def times_read(self):
        """How often each element was read: the set of counts over all elements."""
        found = set()
        for index in range(len(self)):
            for tensor in self.tensors:
                counts = np.zeros(tensor.numel, dtype=int)
                for i, name, start, stop in self.reads:
                    if (i, name) == (index, tensor.name):
                        counts[start:stop] += 1
                found |= set(counts.tolist())
        return found

    def checkpoint_reads(self):
        """How often each checkpoint was read from its first to its last byte."""
        total = Counter()
        for index, _, start, stop in self.reads:
            total[index] += stop - start
        size = sum(t.numel for t in self.tensors)
        return {index: count / size for index, count in total.items()}


def walk(shapes, count, *, dtype=torch.float16, scale=1e-3, drift=0.5, seed=0):
    """A random walk with drift from a random start; ``scale`` is the size of an increment relative to the start."""
    stream = torch.Generator().manual_seed(seed)
    now = {name: 0.05 * torch.randn(shape, generator=stream, dtype=torch.float64) for name, shape in shapes.items()}
    way = {name: torch.randn(shape, generator=stream, dtype=torch.float64) for name, shape in shapes.items()}
    points = []
    for _ in range(count):
        points.append({name: w.to(dtype) for name, w in now.items()})
        for name, w in now.items():
            noise = torch.randn(w.shape, generator=stream, dtype=torch.float64)
            now[name] = w + 0.05 * scale * (noise + drift * way[name])
    return points


def exact(points, name=None, elements=None) -> tuple[np.ndarray, np.ndarray, float]:
    """``(G, c, m)`` of the stored numbers in float64, all at once."""
    names = [name] if name else list(points[0])
    x = torch.stack([torch.cat([p[n].flatten().double() for n in names]) for p in points])
    if elements is not None:
        x = x[:, elements]
    u = x[1:] - x[:-1]
    return (u @ u.T).numpy(), (u @ x[0]).numpy(), float(x[0] @ x[0])


def kernel(points) -> np.ndarray:
    """``K`` of the stored numbers in float64."""
    x = torch.stack([torch.cat([t.flatten().double() for t in p.values()]) for p in points])
    return (x @ x.T).numpy()


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    """Largest error of an inner product relative to the product of the two lengths."""
    length = np.sqrt(np.diag(right))
    return float(np.max(np.abs(found - right) / np.outer(length, length)))


def cosines(g: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.diag(g))
    return g / np.outer(length, length)


def kernel_only(points, block=2**18) -> np.ndarray:
    """``G`` the way that loses digits: products of the points in float32 tiles, subtracted afterwards."""
    x = torch.stack([torch.cat([t.flatten().float() for t in p.values()]) for p in points])
    k = np.zeros((len(points), len(points)))
    for at in range(0, x.shape[1], block):
        tile: Tensor = x[:, at : at + block]
        k += (tile @ tile.T).double().numpy()
    return k[1:, 1:] - k[1:, :-1] - k[:-1, 1:] + k[:-1, :-1]
