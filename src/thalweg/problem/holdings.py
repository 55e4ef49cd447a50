"""How many vectors of length P each job holds, beside what a product or a gradient takes by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Job = Literal["value", "gradient", "product", "eigenpairs", "density", "critical_sharpness"]
Line = tuple[str, float, str]
"""Name, number of vectors, reason."""

COLUMNS = 1 << 16
"""Columns of the basis that a restart combines at a time, as ``spectra/krylov.py`` has it."""


@dataclass(frozen=True)
class Holdings:
    """Vectors alive during a product (or gradient, or value), and at moments outside of it that may be worse."""

    during: tuple[Line, ...]
    outside: tuple[tuple[Line, ...], ...] = ()


DEFAULT_BASIS: dict[Job, Callable[[int], int | None]] = {
    "value": lambda k: None,
    "gradient": lambda k: None,
    "product": lambda k: None,
    "eigenpairs": lambda k: 3 * k + 30,
    "density": lambda k: 40,
    "critical_sharpness": lambda k: None,
}
"""Vectors of a Krylov basis where nothing is asked."""

DEFAULT_PRODUCTS: dict[Job, Callable[[int, int | None], int]] = {
    "value": lambda k, basis: 0,
    "gradient": lambda k, basis: 0,
    "product": lambda k, basis: 1,
    "eigenpairs": lambda k, basis: 20 + 15 * k,
    "density": lambda k, basis: 10 * (basis or 1),
    "critical_sharpness": lambda k, basis: 8,
}
"""Products (forward passes for the critical sharpness) that a job is taken to need where nothing is known."""


def holdings(job: Job, order: str, k: int, basis: int | None, dtype: torch.dtype, dimension: int) -> Holdings:
    """Count the vectors of ``job`` while it takes derivatives of ``order``, and outside of that.

    Args:
        job: The job.
        order: ``"value"``, ``"gradient"`` or ``"product"``.
        k: Eigenpairs wanted.
        basis: Vectors of the Krylov basis.
        dtype: Of the vectors; random ones are drawn in float64 and rounded.
        dimension: Length of a vector.
    """
    point: Line = ("point", 1, "the weights as one vector")
    if job in ("value", "gradient"):
        return Holdings((point, ("gradient", int(job == "gradient"), "the sum over batches")))
    if job == "critical_sharpness":
        gradient: Line = ("gradient", 1, "the direction")
        trial: Line = ("trial points", 1, "a step along the direction")
        return Holdings((point, gradient)) if order == "gradient" else Holdings((point, gradient, trial))
    result: Line = ("product", 1, "the sum over batches")
    if job == "product":
        return Holdings((point, ("vector", 1, "what is multiplied"), result))
    size = basis or 0
    rows: Line = ("basis", size + 1, f"Krylov vectors, basis={basis}")
    drawn = 8 // torch.empty(0, dtype=dtype).element_size()
    first: Line = ("start", drawn + 1, "a random vector, drawn in float64")
    if job == "density":
        return Holdings((point, rows, result), ((point, rows, first),))
    kept = min(k + max((size - k) * 2 // 5, 1), size - 1) + 1
    piece: Line = ("restart", kept * min(COLUMNS / dimension, 1.0), "a piece of the new basis beside the old one")
    if k == 1:
        found: Line = ("found", 1, "the eigenvector")
        return Holdings((point, rows, result), ((point, rows, first), (point, rows, piece), (point, rows, found)))
    found = ("found", k + 1, "eigenvectors and their residual")
    second: Line = ("second look", min(size, 64) + 1, "Krylov vectors for repeated eigenvalues")
    return Holdings((point, rows, found, second, result), ((point, rows, found, second, first), (point, rows, piece)))
