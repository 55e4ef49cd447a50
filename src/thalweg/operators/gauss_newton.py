"""The Gauss-Newton matrix of a problem at a point, as an operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.operators.output_matrices import (
    Curved,
    LastLayerHessian,
    OutputMatrix,
    Softmax,
    Squares,
    cross_entropy,
    is_squared_error,
    linear_in_outputs,
    linear_loss,
)
from thalweg.operators.sandwich import Cut, LayoutName, SandwichOperator
from thalweg.problem.batches import map_tensors, tensors_in
from thalweg.problem.heads import LanguageModelLoss
from thalweg.problem.losses import calls_the_model
from thalweg.problem.problem import Problem


class GaussNewtonOperator(SandwichOperator):
    """``v -> G(w) v`` with ``G`` the Gauss-Newton matrix of the mean loss over all data; see `gauss_newton`."""


def gauss_newton(
    problem: Problem,
    w: Tensor | None = None,
    *,
    chunk: int | None = None,
    layout: LayoutName = "auto",
    memory_limit: int | None = None,
) -> GaussNewtonOperator:
    r"""Return ``G(w) = \sum_b \frac{n_b}{N} J_b' (\nabla_z^2 L_b) J_b``, the Gauss-Newton matrix, shape ``(P, P)``.

    ``z`` are the outputs of the model, ``J_b`` their Jacobian by the parameters, ``L_b`` the mean loss of batch b as
    a function of ``z``. ``G`` is the Hessian without the curvature of the model: symmetric, positive semidefinite
    for a loss that is convex in ``z``, equal to the Hessian where the model is linear in ``w``, and for cross-entropy
    equal to the Fisher matrix. The loss's Hessian is analytic for torch's ``CrossEntropyLoss`` (class weights, label
    smoothing, ignored and probability targets included), ``MSELoss`` and `language_model_loss` (the logits in chunks
    of tokens), and by automatic differentiation for any other ``loss(output, target)``.

    Args:
        problem: Model, loss and data. Its loss must be ``loss(output, target)`` or `language_model_loss`.
        w: The point, shape ``(P,)``; default ``problem.initial``. It is copied.
        chunk: Tokens whose logits exist at a time, for `language_model_loss`; default its own.
        layout: ``"linearised"`` records each batch once and keeps it: a product costs 1 to 2 gradients, most for
            convolutions. ``"forward"`` keeps nothing and takes ``J v`` in forward mode: least memory, 2.3 to 3
            gradients. ``"rebuilt"`` records anew for each block of vectors. ``"auto"`` takes the first if it fits in
            memory, else the second, and the third where an operation has no forward mode; see ``operator.record``.
        memory_limit: Bytes that ``"auto"`` may keep; default a quarter of what is free now.

    Returns:
        A `GaussNewtonOperator`. Use it in a ``with`` block, or drop it, to free what is kept.

    Raises:
        InvalidInput: ``w`` has another shape, the layout's name is unknown, or where the model ends and the loss
            begins cannot be seen.
        NotDifferentiable: The loss is linear in the outputs, or an operation cannot be differentiated.

    Source: Schraudolph 2002 (Neural Computation 14, 1723), section 3; Martens 2020 (JMLR 21, 146), section 8.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> G = gauss_newton(Problem(model, torch.nn.MSELoss(), (x, 0 * x)))
        >>> G.matvec(torch.ones(1, dtype=torch.float64)).item()  # 2 mean(x^2)
        10.0
    """
    check_chunk(chunk)
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype, copy=True)
    return GaussNewtonOperator(problem, point, partial(_cut, chunk), layout, memory_limit, "gauss_newton_bytes")


def _cut(chunk: int | None, model: nn.Module, loss: Callable[..., Any], batch: Any) -> Cut:
    if isinstance(loss, LanguageModelLoss):
        last = loss.last_layer(model, batch)
        return last.dependent(), lambda: LastLayerHessian(last, chunk)
    output, target = evaluated(model, loss, batch)
    return dependent(output), partial(_hessian, loss, output, target)


def _hessian(loss: Callable[..., Any], output: Any, target: Any) -> OutputMatrix:
    settings = cross_entropy(loss)
    if settings is not None and isinstance(output, Tensor):
        share, _, total = settings.shares(output.detach(), target)
        return Softmax(output, share / total)
    if is_squared_error(loss) and isinstance(output, Tensor) and output.shape == target.shape:
        return Squares(2 / output.numel())
    if linear_in_outputs(loss):
        raise linear_loss()
    return Curved(lambda *z: loss(replaced(output, z), target), dependent(output))


def check_chunk(chunk: int | None) -> None:
    """Raise InvalidInput for a chunk of no token."""
    if chunk is not None and chunk < 1:
        raise InvalidInput(explain(f"chunk is {chunk}", "a chunk holds at least one token", "Pass None for a default"))


def evaluated(model: nn.Module, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """Return the model's output on a batch, and the target.

    Raises:
        InvalidInput: The loss calls the model itself.
    """
    if calls_the_model(loss):
        raise InvalidInput(
            explain(
                "The loss calls the model itself",
                "where the model's outputs end and the loss begins cannot be seen",
                "Give the Problem a loss(output, target), or language_model_loss() for a causal language model",
            )
        )
    inputs, target = batch
    return model(inputs), target


def dependent(output: Any) -> list[Tensor]:
    """List the tensors of an output that depend on the parameters."""
    return [z for z in tensors_in(output) if z.requires_grad]


def replaced(output: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Return ``output`` with those tensors in the places of `dependent` ones."""
    given = iter(tensors)
    return map_tensors(lambda z: next(given) if z.requires_grad else z, output)
