"""The front door: leading eigenpairs of any operator, by whichever method suits."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.operators.base import Operator
from thalweg.spectra.certificate import Certificate, certify
from thalweg.spectra.choice import Choice, choose
from thalweg.spectra.results import Eigenpairs
from thalweg.spectra.subspace import Subspace
from thalweg.spectra.task import Method, Task, Which, tolerance
from thalweg.spectra.thick_restart import Lanczos as Lanczos


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float | None = None,
    method: Method | None = None,
    start: Tensor | None = None,
    deflate: Tensor | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Eigenpairs:
    r"""Return ``k`` extreme eigenpairs, ``A v_i = \theta_i v_i``, to a residual.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        k: How many (from each end for ``which="both"``). At most P are returned.
        which: ``"largest"`` or ``"smallest"`` by algebraic value, ``"both"`` ends in one run, or the largest
            ``"magnitude"``.
        tol: Relative residual, ``|A v - theta v| <= tol max(|theta|, 1e-3 |A|)``; default the method's.
        method: `Lanczos` or `LOBPCG` with budget and basis; None lets `choose` decide, and ``result.why``
            says on what grounds.
        start: Guesses, shape ``(P,)`` or ``(P, l)``, such as old eigenvectors. A block method uses each column;
            Lanczos starts from their sum. A bad guess costs products, not correctness.
        deflate: Known eigenvectors, shape ``(P, l)``: pairs are sought in the complement of their span.
        seed: Seed of the random vectors. The result does not depend on it beyond the tolerance.
        strict: Raise where the tolerance is not met; False returns what there is, with its residuals and stop reason.

    Returns:
        `Eigenpairs`, values in descending order, residuals confirmed by fresh products.

    Raises:
        InvalidInput: ``k``, ``which``, ``start`` or ``deflate`` makes no sense.
        NotConverged: The budget ran out, residuals stagnated, or fresh products contradict them (``strict=True``);
            ``error.result`` holds the best so far.
        NonFinite: A product is NaN or infinite; the message has its number.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.tensor([5.0, 3.0, 3.0, -7.0], dtype=torch.float64)))
        >>> [round(v, 9) for v in top_eigenpairs(A, k=3).values.tolist()]
        [5.0, 3.0, 3.0]
        >>> [round(v, 9) for v in top_eigenpairs(A, which="both").values.tolist()]
        [5.0, -7.0]
        >>> first = top_eigenpairs(A)
        >>> [round(v, 9) for v in top_eigenpairs(A, deflate=first.vectors).values.tolist()]
        [3.0]
    """
    if k < 1 or which not in get_args(Which) or operator.size < 1:
        raise InvalidInput(
            explain(
                f"top_eigenpairs got k={k}, which={which!r}, size {operator.size}",
                "k counts eigenpairs from an end of a spectrum that is not empty",
                f"Pass k >= 1 and one of {', '.join(get_args(Which))}",
            )
        )
    against = None if deflate is None else _orthonormal(operator, _columns(operator, "deflate", deflate))
    room = operator.size - (0 if against is None else len(against))
    if room < 1:
        raise InvalidInput(explain("deflate spans the whole space", "nothing is left to find", "Pass fewer columns"))
    rows = None if start is None else _columns(operator, "start", start)
    if tol is not None and not 0 < tol < 1:
        raise InvalidInput(explain(f"tol is {tol}", "it is a relative residual", "Pass a number between 0 and 1"))
    choice = choose(operator, k, start, which=which, tol=tol) if method is None else Choice(method, "asked for")
    chosen = choice.method
    budget = chosen.max_products or min(20 * operator.size + 100, 10_000)
    relative = tolerance(chosen.tol if tol is None else tol, operator.dtype)
    task = Task(
        operator=operator, k=min(k, room), which=which, tol=relative,
        budget=max(budget - chosen.certify, 1), seed=seed, start=rows, against=against, first=operator.products,
    )  # fmt: skip
    found = chosen.solve(task)
    proof = certify(task, found) if chosen.certify else Certificate(found.residuals, found.stop, "")
    residuals = np.maximum(proof.residuals, task.rounding(found.norm))
    order = np.argsort(-found.values, kind="stable")
    result = Eigenpairs(
        values=torch.from_numpy(found.values[order].copy()).to(operator.dtype),
        vectors=found.rows[torch.from_numpy(order.copy()).to(found.rows.device)].T,
        residuals=torch.from_numpy(residuals[order].copy()).to(operator.dtype),
        products=task.spent,
        stop=proof.stop,
        method=chosen.name,
        why="; ".join(filter(None, [choice.why, *found.notes, proof.note])),
        certified=chosen.certify,
    )
    if strict and not result.stop.converged:
        raise NotConverged(
            explain(
                f"After {result.products} products the largest residual is {float(result.residuals.max()):.2e}",
                result.stop.value.split(": ")[0],
                f"To go on, {result.stop.value.split(': ')[1].rstrip('.')}; strict=False returns the unfinished result",
            ),
            result,
        )
    return result


def _columns(operator: Operator, name: str, given: Tensor) -> Tensor:
    """Return the columns of ``given`` as rows in the operator's dtype, after a look at them."""
    length = operator.space.length
    block = given[:, None] if given.ndim == 1 else given
    if block.ndim != 2 or block.shape[0] != length or not bool(torch.isfinite(block).all()):
        flaw = "" if bool(torch.isfinite(given).all()) else " with NaN or infinite entries"
        raise InvalidInput(
            explain(
                f"{name} has shape {tuple(given.shape)}{flaw}",
                f"it holds finite vectors of length {length} as columns",
                f"Pass shape ({length},) or ({length}, l)",
            )
        )
    return block.detach().to(operator.device, operator.dtype).T


def _orthonormal(operator: Operator, rows: Tensor) -> Tensor | None:
    """Return an orthonormal basis of the span of ``rows``."""
    basis = Subspace(operator, 0).orthonormal(rows)
    return basis if len(basis) else None
