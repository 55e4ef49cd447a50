r"""Three ways to compute ``T[u_i, u_j] = grad_w (u_i' H(w) u_j)``, each a function of problem, point and directions.

All take directions of length one as columns, and return one row for each wanted pair, of the mean loss over all data.
Steps are lengths in weight space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor

from thalweg._vectors import Layout
from thalweg.errors import NotDifferentiable, explain
from thalweg.operators.hessian import hessian
from thalweg.problem.graphs import linearise
from thalweg.problem.guards import no_autocast
from thalweg.problem.norms import decomposed_norms
from thalweg.problem.problem import Problem

Pairs = Sequence[tuple[int, int]]

Many = Callable[[Tensor], Tensor]
"""Gradients at several points at once, ``(R, P)`` to ``(R, P)``, new tensors."""

LINEARISATION, PRODUCT, THIRD = 1.75, 1.5, 4.0
"""Costs in gradients: recording a gradient's graph, one backward through it, one more through that (docs/third.md)."""


def exact(problem: Problem, w: Tensor, U: Tensor, wanted: Pairs) -> tuple[Tensor, float]:
    """Differentiate ``u_i' (H u_j)`` in reverse, through the graph of the product.

    One linearisation per batch serves all pairs. Norms whose fused kernels have wrong third derivatives are computed
    from primitives.

    Args:
        problem: Model, loss and data.
        w: Shape ``(P,)``.
        U: Shape ``(P, k)``, columns of length one.
        wanted: The m pairs ``(i, j)``.

    Returns:
        Rows of shape ``(m, P)``, and the cost in gradients.

    Raises:
        NotDifferentiable: An operation on the way has no third derivative.
    """
    rows = w.new_zeros(len(wanted), len(w))
    directions = [problem.layout.split(u) for u in U.T.contiguous()]
    rights = sorted({j for _, j in wanted})
    for batch, weight in problem.batches():
        with decomposed_norms(problem.model):
            leaves, grads = linearise(problem, w, batch)
        for right in rights:
            with _third(), no_autocast(problem.device), torch.enable_grad():
                product = _pull(grads, directions[right], leaves, create_graph=True)
                for number, (i, j) in enumerate(wanted):
                    if j == right:
                        found = _pull(product, directions[i], leaves, create_graph=False)
                        rows[number].add_(Layout.join(found), alpha=weight)
    return rows, LINEARISATION + PRODUCT * len(rights) + THIRD * len(wanted)


def products(problem: Problem, w: Tensor, U: Tensor, wanted: Pairs, h: float) -> tuple[Tensor, float]:
    """Central differences of Hessian products, ``(H(w + h u_i) u_j - H(w - h u_i) u_j) / 2h``.

    Of a mixed pair both orders are computed and averaged, so that rows are symmetric whatever the step.

    Returns:
        As `exact`, with an error of order ``h^2``, and of rounding over ``h``.
    """
    rows, cost = w.new_zeros(len(wanted), len(w)), 0.0
    for i in range(U.shape[1]):
        needed = sorted({a if b == i else b for a, b in wanted if i in (a, b)})
        if not needed:
            continue
        cost += 2 * (LINEARISATION + PRODUCT * len(needed))
        for sign in (1.0, -1.0):
            operator = hessian(problem, w + sign * h * U[:, i], layout="double_backward")
            block = operator.matmat(U[:, needed])
            for number, (a, b) in enumerate(wanted):
                if i in (a, b):
                    share = 1.0 if a == b else 0.5
                    column = needed.index(a if b == i else b)
                    rows[number].add_(block[:, column], alpha=sign * share / (2 * h))
    return rows, cost


def gradients(
    problem: Problem,
    w: Tensor,
    U: Tensor,
    wanted: Pairs,
    h: float,
    gradient: Tensor | None = None,
    many: Many | None = None,
) -> tuple[Tensor, float]:
    """Second central differences of gradients, ``(g(w + h u) - 2 g(w) + g(w - h u)) / h^2``.

    A mixed pair needs the sum of its directions, too: ``T[u, v] = T[d, d] - (T[u, u] + T[v, v]) / 2`` with
    ``d = (u + v) / sqrt 2``, which has length one where ``u`` and ``v`` are orthogonal, so that one step suits all.

    Returns:
        As `exact`, with an error of order ``h^2``, and of rounding over ``h^2``.
    """
    here, cost = (problem.gradient(w), 1.0) if gradient is None else (gradient, 0.0)

    def along(u: Tensor) -> Tensor:
        if many is None:
            ahead, behind = problem.gradient(w + h * u), problem.gradient(w - h * u)
        else:
            ahead, behind = many(torch.stack([w + h * u, w - h * u]))
        ahead.sub_(here)  # differences first: the small ones keep their digits
        behind.sub_(here)
        return ahead.add_(behind).div_(h * h)

    diagonal = {i: along(U[:, i]) for i in sorted({i for pair in wanted for i in pair})}
    rows = w.new_empty(len(wanted), len(w))
    for number, (i, j) in enumerate(wanted):
        if i == j:
            rows[number] = diagonal[i]
        else:
            rows[number] = along((U[:, i] + U[:, j]) / sqrt(2)).sub_(diagonal[i] + diagonal[j], alpha=0.5)
    mixed = sum(i != j for i, j in wanted)
    return rows, cost + 2.0 * (len(diagonal) + mixed)


def _pull(
    tensors: Sequence[Tensor], vectors: list[Tensor], leaves: list[Tensor], *, create_graph: bool
) -> tuple[Tensor, ...]:
    """Gradient of ``sum_i <tensor_i, vector_i>``, zero where nothing was recorded; the graph is kept."""
    known = [(t, v) for t, v in zip(tensors, vectors) if t.requires_grad]
    if not known:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    outputs, weights = zip(*known)
    return torch.autograd.grad(
        outputs,
        leaves,
        weights,
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


@contextmanager
def _third() -> Iterator[None]:
    """Say what a failure inside means, unless memory ran out."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
            raise
        raise NotDifferentiable(
            explain(
                f"Differentiating a Hessian product failed: {str(error).splitlines()[0]}",
                "an exact third derivative needs one of every operation",
                'Use method="gradients" or "products", which take differences',
            )
        ) from error
