"""Matrices with prescribed eigenvalues, and which of them a solver is asked for."""

import numpy as np
import torch


def symmetric(eigenvalues, seed=0):
    """A random rotation of a diagonal matrix."""
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    stream = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=stream))
    matrix = turn @ (values[:, None] * turn.T)
    return (matrix + matrix.T) / 2


def expected(matrix, k, which):
    """The wanted eigenvalues by LAPACK, descending."""
    values = torch.linalg.eigvalsh(matrix).flip(0)
    if which == "largest":
        return values[:k]
    if which == "smallest":
        return values[-k:]
    if which == "both":
        return torch.cat([values[:k], values[-k:]]) if 2 * k < len(values) else values
    return values[values.abs().argsort(descending=True)[:k]].sort(descending=True).values


_rng = np.random.default_rng(0)
SPECTRA = {
    "outliers": np.r_[[10, 8, 5, 4, 3.9], _rng.uniform(-0.3, 0.7, 195)],
    "repeated": np.r_[[5, 5, 5, 3, 3], _rng.uniform(-0.3, 0.7, 195)],
    "clustered": np.r_[1 + 1e-4 * np.arange(6), _rng.uniform(-0.5, 0.9, 194)],
    "rank deficient": np.r_[[4, 4, 2, 1], np.zeros(196)],
    "negative": np.r_[[-9, -4, -1.5, -1.2, -1, -0.8, -0.5], _rng.uniform(-3, -2, 193)],
    "both signs": np.r_[[6, 5], [-7, -5.5], _rng.uniform(-0.5, 0.5, 196)],
    "identity": np.ones(30),
    "zero": np.zeros(20),
    "two values": np.r_[np.ones(20), -np.ones(20)],
    "tiny": np.array([2.0, -1.0, 0.5]),
}
