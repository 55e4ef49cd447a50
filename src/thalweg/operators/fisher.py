"""The empirical Fisher matrix of a problem at a point, as an operator: second moments of single gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.operators.gauss_newton import check_chunk, dependent, evaluated, replaced
from thalweg.operators.output_matrices import LastLayerOuter, Outer, OutputMatrix, cross_entropy, is_squared_error
from thalweg.operators.sandwich import Cut, LayoutName, SandwichOperator
from thalweg.problem.batches import map_tensors
from thalweg.problem.heads import LanguageModelLoss
from thalweg.problem.losses import OneHotSquares, leading_size
from thalweg.problem.problem import Problem

Unit = Literal["term", "sample"]


class FisherOperator(SandwichOperator):
    """``v -> F(w) v`` with ``F`` the empirical Fisher matrix over all data; see `empirical_fisher`."""


def empirical_fisher(
    problem: Problem,
    w: Tensor | None = None,
    *,
    per: Unit = "term",
    chunk: int | None = None,
    layout: LayoutName = "auto",
    memory_limit: int | None = None,
) -> FisherOperator:
    r"""Return ``F(w) = \sum_i c_i g_i g_i'``, the weighted second moment of the gradients of single losses.

    The mean loss is ``L = \sum_i c_i l_i`` with weights ``c_i`` that sum to one, all ``1/N`` unless the loss has class
    weights, and ``g_i = \nabla l_i``. So ``F - g g'`` with ``g = \nabla L`` is the covariance of the gradient noise of
    a batch of one. No ``g_i`` is formed: with ``J`` the Jacobian of the vector of losses, ``F v = J' (c * (J v))``.

    What ``i`` counts is a choice where a sample holds several predictions. ``per="term"`` takes each term of the
    mean that the loss is: every predicted token of a language model. ``per="sample"`` takes each entry of the batch's
    first dimension, a whole sequence: ``l_i`` is then the mean over its tokens and ``c_i`` its share of all tokens.
    Losses other than cross-entropy have one term per sample, so both are the same.

    Args:
        problem: Model, loss and data. Its loss must be a mean over samples of ``loss(output, target)``, or
            `language_model_loss`. A loss that torch does not know is evaluated sample by sample.
        w: The point, shape ``(P,)``; default ``problem.initial``. It is copied.
        per: Whose gradients are taken: of each ``"term"`` or of each ``"sample"``.
        chunk: Tokens whose logits exist at a time, for `language_model_loss`; default its own.
        layout: As for `gauss_newton`; costs are about the same.
        memory_limit: Bytes that ``layout="auto"`` may keep; default a quarter of what is free now.

    Returns:
        A `FisherOperator`. Use it in a ``with`` block, or drop it, to free what is kept.

    Raises:
        InvalidInput: ``w`` has another shape, a name is unknown, the loss calls the model itself, or is no mean over
            samples.
        NotDifferentiable: An operation cannot be differentiated.

    Source: Kunstner, Balles & Hennig 2019 (arXiv 1905.12558), eq. 3, with weights.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> torch.nn.init.zeros_(model.weight)
        Parameter containing:
        tensor([[0.]], dtype=torch.float64, requires_grad=True)
        >>> x, y = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[3.0], [1.0]], dtype=torch.float64)
        >>> F = empirical_fisher(Problem(model, torch.nn.MSELoss(), (x, y)))
        >>> F.matvec(torch.ones(1, dtype=torch.float64)).item()  # mean of (2 x y)^2
        26.0
    """
    check_chunk(chunk)
    if per not in get_args(Unit):
        raise InvalidInput(
            explain(f"per is {per!r}", "it says whose gradients are taken", f"Choose among {', '.join(get_args(Unit))}")
        )
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype, copy=True)
    return FisherOperator(problem, point, partial(_cut, per, chunk), layout, memory_limit, f"fisher_bytes {per}")


def _cut(per: Unit, chunk: int | None, model: nn.Module, loss: Callable[..., Any], batch: Any) -> Cut:
    if isinstance(loss, LanguageModelLoss):
        last = loss.last_layer(model, batch)
        count = len(last.target)
        rows = torch.arange(count, device=last.row.device) if per == "term" else last.row
        group = torch.unique(rows, return_inverse=True)[1]
        beta = 1 / (count * torch.bincount(group).to(last.hidden.dtype))
        return last.dependent(), lambda: LastLayerOuter(last, chunk, group, beta)
    output, target = evaluated(model, loss, batch)
    return dependent(output), partial(_outer, per, loss, output, target)


def _outer(per: Unit, loss: Callable[..., Any], output: Any, target: Any) -> OutputMatrix:
    """From ``L = sum_i t_i / D`` and weights ``c_i``: ``l_i = t_i / (D c_i)``, so ``beta_i = 1 / (D^2 c_i)``."""
    settings = cross_entropy(loss)
    outputs = dependent(output)
    if settings is not None and isinstance(output, Tensor):
        _, weight, total = settings.shares(output.detach(), target)
        terms: Callable[..., Tensor] = partial(_cross_entropy_terms, per, settings, target)
        weight = weight.reshape(len(weight), -1).sum(1) if per == "sample" and output.ndim > 1 else weight
        return Outer(terms, outputs, torch.where(weight > 0, 1 / (total * weight.clamp_min(1e-300)), 0))
    count = leading_size(output)
    beta = outputs[0].new_ones(count or 1) / (count or 1)
    if is_squared_error(loss) and isinstance(output, Tensor) and output.shape == target.shape:
        return Outer(lambda z: (z - target).square().reshape(len(z), -1).mean(1), outputs, beta)
    if isinstance(loss, OneHotSquares):
        return Outer(lambda z: loss.terms(z, target), outputs, beta)

    def singly(*z: Tensor) -> Tensor:
        return _one_by_one(loss, replaced(output, z), target, count)

    return Outer(singly, outputs, beta)


def _cross_entropy_terms(per: Unit, settings: Any, target: Tensor, logits: Tensor) -> Tensor:
    terms: Tensor = settings.terms(logits, target)
    return terms.reshape(len(terms), -1).sum(1) if per == "sample" and logits.ndim > 1 else terms


def _one_by_one(loss: Callable[..., Any], output: Any, target: Any, count: int | None) -> Tensor:
    """The loss of each sample as a batch of one; their mean must be the loss of the batch."""

    def part(tree: Any, i: int) -> Any:
        return map_tensors(lambda t: t[i : i + 1] if t.ndim and t.shape[0] == count else t, tree)

    if count is None:
        raise _no_mean("The output has no first dimension")
    losses = torch.stack([loss(part(output, i), part(target, i)).reshape(()) for i in range(count)])
    with torch.no_grad():
        whole, mean = float(loss(output, target)), float(losses.detach().mean())
    if whole != whole or mean != mean:
        raise NonFinite(
            explain("The loss is NaN", "no second moment is defined", "Look for what makes it so at this point")
        )
    if abs(whole - mean) > 1e4 * torch.finfo(losses.dtype).eps * max(abs(whole), float(losses.detach().abs().max())):
        raise _no_mean(f"The loss of a batch is {whole:.6g}, the mean over its samples {mean:.6g}")
    return losses


def _no_mean(found: str) -> InvalidInput:
    return InvalidInput(
        explain(
            found,
            "the Fisher matrix is made of the losses of single samples",
            "Use a loss that is the mean over the first dimension",
        )
    )
