"""Which eigensolver, with the reason written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thalweg.operators.base import Operator
from thalweg.problem import memory
from thalweg.spectra.lobpcg import LOBPCG
from thalweg.spectra.task import Method, Which, tolerance
from thalweg.spectra.thick_restart import Lanczos

ROUNDS = 4
"""Blocks of residuals that a warm block method keeps beyond what it needs: past that, more saves few products."""
LOOSE = 1e-4
"""Residual from which on a warm block pays: below, one chain from the sum of its vectors gets there sooner."""
SHARE = 0.5
"""Share of free memory that the vectors of a solver may take."""


@dataclass(frozen=True)
class Choice:
    """A method and why."""

    method: Method
    why: str


def choose(
    operator: Operator,
    k: int,
    start: Tensor | None = None,
    *,
    which: Which = "largest",
    tol: float | None = None,
    max_products: int | None = None,
) -> Choice:
    """Return the method that needs fewest products for this task, within the memory there is.

    From a random vector that is Lanczos: among all methods that see the operator through one product at a time, its
    space holds the best approximations. It makes good use of a block of guesses, too: the Krylov space of their sum
    holds all of them after as many products, and goes on converging for all at once. A block method keeps them apart,
    which costs a product per pair and digit, and pays if few digits are missing. Where memory does not hold the basis
    that saves products, the basis shrinks, down to what the method needs.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        k: Pairs from an end.
        start: Guesses, shape ``(P,)`` or ``(P, l)``.
        which: The end or ends.
        tol: Relative residual, passed on.
        max_products: Passed on.

    Returns:
        A `Choice`.

    Example:
        >>> import torch
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.arange(9.0)))
        >>> choose(A, 2).method.name
        'Lanczos'
        >>> choose(A, 2, torch.eye(9)[:, 6:], tol=1e-3).method.name
        'LOBPCG(basis=21)'
    """
    count = min(2 * k if which == "both" else k, operator.size)
    itemsize = operator.dtype.itemsize
    room = int(SHARE * memory.available(operator.device)) // max(itemsize * operator.space.length, 1)
    guesses = 0 if start is None or start.ndim == 1 else start.shape[1]
    limits: dict[str, Any] = {"tol": tol, "max_products": max_products}
    if guesses > 1 and tolerance(tol, operator.dtype) >= LOOSE:
        basis = max(min((3 + ROUNDS) * max(count, guesses), room // 2), 3 * count)
        why = f"from {guesses} vectors to a loose tolerance a block method needs fewest products"
        return Choice(LOBPCG(basis=basis, **limits), why)
    origin = "a random vector" if start is None else "one vector" if guesses < 2 else f"the sum of {guesses} vectors"
    full = 3 * count + 30
    if room < full:
        basis = max(room, count + 2)
        why = f"from {origin} Lanczos needs fewest products; its basis is cut to {basis} vectors to fit in memory"
        return Choice(Lanczos(basis=basis, **limits), why)
    return Choice(Lanczos(**limits), f"from {origin} Lanczos needs fewest products")
