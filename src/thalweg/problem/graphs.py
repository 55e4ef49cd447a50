"""The graph of a gradient: recorded once, multiplied with vectors as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from thalweg.errors import NotDifferentiable, explain
from thalweg.problem.culprits import dead_end, once_only
from thalweg.problem.guards import no_autocast

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem

Graph = tuple[list[Tensor], Sequence["Tensor | GradientEdge | None"]]
"""Leaves, and the gradient at them with its own graph: the tensors, or only where they hang in it (None: nowhere)."""

BATCHED_COLUMNS = 8
"""Columns per batched backward on a GPU; on the CPU a loop is faster (measured: blocks cost 1.8-3.9 a vector)."""


def linearise(
    problem: Problem, w: Tensor, batch: Any, values: list[Tensor] | None = None
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return leaves at ``w`` and the gradient of the batch's mean loss with its graph; append the loss to ``values``.

    Raises:
        NotDifferentiable: An operation on the way has no second derivative.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in problem.layout.split(w)]
    try:
        value, grads = _gradient(problem, leaves, batch)
        if values is not None:
            values.append(value.detach())
        return leaves, grads
    except NotDifferentiable as error:
        raise _blamed(error, problem, leaves, batch) from error


def _gradient(problem: Problem, leaves: list[Tensor], batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad(), no_autocast(problem.device):
        value = problem.loss(leaves, batch)
        with second_derivative():
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    if not any(g.requires_grad for g in grads):
        raise no_second_derivative(None)
    if not problem.notes.get("walked"):
        refuse_dead_ends(grads)
        problem.notes["walked"] = True
    return value, grads


def _blamed(error: NotDifferentiable, problem: Problem, leaves: list[Tensor], batch: Any) -> NotDifferentiable:
    """The error with the modules that fail alone, if the search for them does not fail itself."""
    try:
        names = once_only(problem, leaves, batch)
    except Exception:  # whatever a user's module does when it is called alone, the first error is what matters
        return error
    return NotDifferentiable(f"{error} Found in: {', '.join(names)}.") if names else error


def refuse_dead_ends(grads: Sequence[Tensor]) -> None:
    """Raise where the gradient's graph has a node of an operation that is marked as differentiable only once."""
    if dead_end(grads):
        raise no_second_derivative(RuntimeError("an operation is marked with @once_differentiable"))


@contextmanager
def second_derivative(passing: str = "allocate") -> Iterator[None]:
    """Say what a failure inside means, unless memory ran out or its text has ``passing`` in it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError) or any(t in str(error) for t in ("allocate", passing)):
            raise
        raise no_second_derivative(error) from error


def no_second_derivative(error: Exception | None) -> NotDifferentiable:
    """Build the error for a loss that cannot be differentiated twice."""
    if error is None:
        found = "The gradient of the loss does not depend on the weights through recorded operations"
        why = "its Hessian is zero, or a custom backward hides it"
    else:
        found = f"Differentiating the gradient failed: {str(error).splitlines()[0]}"
        why = "a Hessian product needs a second derivative of every operation"
    return NotDifferentiable(
        explain(
            found,
            why,
            'Use layout="difference", or replace the operation (attention: attn_implementation="eager")',
        )
    )


def forget_values(graph: Graph) -> Graph:
    """Keep of the gradient only where each part hangs in the graph: products need no more, and it is a vector long."""
    leaves, grads = graph
    return leaves, [get_gradient_edge(g) if isinstance(g, Tensor) and g.requires_grad else None for g in grads]


def accumulate(out: Tensor, graph: Graph, block: Tensor, weight: float, batched: bool | None = None) -> None:
    """Add ``weight H V`` of one batch to ``out``; rows are vectors, shape ``(k, P)``.

    Each parameter's part goes straight to its place and is dropped there: joining them first would hold one more
    vector.
    """
    batched = block.is_cuda and len(block) > 1 if batched is None else batched
    leaves, grads = forget_values(graph) if any(isinstance(g, Tensor) for g in graph[1]) else graph
    recorded = [i for i, g in enumerate(grads) if g is not None]
    outputs = [grads[i] for i in recorded]
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.numel() for leaf in leaves]

    def backward(rows: Tensor, target: Tensor, lead: tuple[int, ...]) -> None:
        cut = torch.split(rows, sizes, dim=-1)
        vectors = [cut[i].reshape(lead + tuple(shapes[i])) for i in recorded]
        with second_derivative():
            found = torch.autograd.grad(
                outputs,  # type: ignore[arg-type]
                leaves,
                grad_outputs=vectors,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=bool(lead),
            )
        parts: list[Tensor | None] = list(found)
        del found
        for i, place in enumerate(torch.split(target, sizes, dim=-1)):
            part, parts[i] = parts[i], None
            if part is not None:
                place.add_(part.reshape((*lead, sizes[i])), alpha=weight)

    if batched:
        for start in range(0, len(block), BATCHED_COLUMNS):
            rows = block[start : start + BATCHED_COLUMNS]
            backward(rows, out[start : start + len(rows)], (len(rows),))
    else:
        for row, v in zip(out, block):
            backward(v, row, ())
