"""Cross-entropy of a linear head as a function that is differentiable twice, over `LinearHead`'s formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from thalweg.errors import InvalidInput, NotDifferentiable, explain
from thalweg.problem.linear_head import LinearHead, Triple, default_chunk


def _is_batched(argument: Any) -> bool:
    return isinstance(argument, Tensor) and torch._C._functorch.is_legacy_batchedtensor(argument)


class _Looped(torch.autograd.Function):
    """Under ``vmap`` the entries go one by one: a batch of chunks would be more blocks than are allowed."""

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """``apply``, also within ``autograd.grad(is_grads_batched=True)``, whose tensors are of an older kind."""
        dims = [0 if _is_batched(a) else None for a in arguments]
        if all(d is None for d in dims):
            return cls.apply(*arguments)  # type: ignore[no-untyped-call]
        plain = [a if d is None else torch._remove_batch_dim(a, 1, 1, 0) for a, d in zip(arguments, dims)]
        columns = cls._loop(plain, dims)
        if isinstance(columns, Tensor):
            return torch._add_batch_dim(columns, 0, 1)
        return tuple(None if column is None else torch._add_batch_dim(column, 0, 1) for column in columns)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        """``vmap``, as torch calls it."""
        columns = cls._loop(arguments, in_dims)
        if isinstance(columns, Tensor):
            return columns, 0
        return columns, tuple(None if column is None else 0 for column in columns)

    @classmethod
    def _loop(cls, arguments: Sequence[Any], dims: Sequence[Any]) -> Any:
        size = next(a.shape[d] for a, d in zip(arguments, dims) if isinstance(d, int))
        rows = []
        for i in range(size):
            one = [a.select(d, i) if isinstance(d, int) else a for a, d in zip(arguments, dims)]
            rows.append(cls.call(*one))
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return tuple(None if column[0] is None else torch.stack(column) for column in zip(*rows))


class _Losses(_Looped):
    """``(h, W, b) -> l``, and the normaliser that both derivatives need."""

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        return LinearHead(hidden, weight, bias, target, chunk).losses()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        hidden, weight, bias, target, ctx.chunk = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, target, output[1])
        ctx.save_for_forward(hidden, weight, bias, target, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Tensor | None) -> Any:
        if g is None:
            return (None,) * 5
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        return *_Gradient.call(g, hidden, weight, bias, normaliser, target, ctx.chunk, needs), None, None

    @staticmethod
    def jvp(ctx: Any, u: Tensor | None, U: Tensor | None, c: Tensor | None, *_: Any) -> Any:
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        return _Rates.call(hidden, weight, bias, normaliser, target, ctx.chunk, u, U, c), None


class _Gradient(_Looped):
    """``(g, h, W, b) -> `` the derivatives of ``sum_i g_i l_i`` by ``h``, ``W`` and ``b``."""

    @staticmethod
    def forward(
        g: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        normaliser: Tensor,
        target: Tensor,
        chunk: int,
        needs: tuple[bool, bool, bool],
    ) -> Triple:
        return LinearHead(hidden, weight, bias, target, chunk).gradient(normaliser, g, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        *tensors, ctx.chunk, ctx.needs = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        if all(direction is None for direction in directions):
            return (None,) * 8
        needs = tuple(ctx.needs_input_grad[:4])
        return *_Product.call(*ctx.saved_tensors, ctx.chunk, needs, *directions), *(None,) * 4

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, u: Tensor | None, U: Tensor | None, c: Tensor | None, *_: Any) -> Any:
        g, hidden, weight, bias, normaliser, target = ctx.saved_tensors
        parts = _Product.call(g, hidden, weight, bias, normaliser, target, ctx.chunk, (False, *ctx.needs), u, U, c)[1:]
        if dg is None:
            return parts
        more = _Gradient.call(dg, hidden, weight, bias, normaliser, target, ctx.chunk, ctx.needs)
        return tuple(a if b is None else b if a is None else a + b for a, b in zip(parts, more))


class _Final(_Looped):
    """A function with no derivative of its own, which says so."""

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: nothing can be asked of it."""

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        raise _no_third_derivative()

    @staticmethod
    def jvp(ctx: Any, *directions: Tensor | None) -> Any:
        raise _no_third_derivative()


class _Product(_Final):
    """The Hessian of ``sum_i g_i l_i`` times a direction, led by the derivative by ``g``."""

    @staticmethod
    def forward(
        g: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        normaliser: Tensor,
        target: Tensor,
        chunk: int,
        needs: tuple[bool, bool, bool, bool],
        *direction: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        head = LinearHead(hidden, weight, bias, target, chunk)
        rates = torch.empty_like(g) if needs[0] else None
        u, U, c = direction
        return rates, *head.product(normaliser, g, (u, U, c), needs[1:], rates=rates)


class _Rates(_Final):
    """The derivative of every ``l_i`` along a direction."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        normaliser: Tensor,
        target: Tensor,
        chunk: int,
        *direction: Tensor | None,
    ) -> Tensor:
        u, U, c = direction
        return LinearHead(hidden, weight, bias, target, chunk).rates(normaliser, (u, U, c))


def _no_third_derivative() -> NotDifferentiable:
    return NotDifferentiable(
        explain(
            "The third derivative of linear_cross_entropy was asked for",
            "its first two are written out, and the second is no recorded operation",
            "Take torch.nn.functional.cross_entropy(hidden @ weight.T, target), or differences of Hessian products",
        )
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_index: int = -100,
) -> Tensor:
    r"""Return the cross-entropy ``mean_i (logsumexp(W h_i + b) - (W h_i + b)_{y_i})`` of a linear head.

    The value is that of ``torch.nn.functional.cross_entropy(hidden @ weight.T + bias, target)``. Its first and second
    derivatives are written out and computed, as the value is, one chunk of tokens at a time from logits that are
    made anew: never more than two blocks of chunk x V numbers are alive, and none is kept for a later derivative. A
    Hessian product costs seven matrix products of the size of the head, of which one makes the logits again.

    Args:
        hidden: Last hidden states, shape ``(N, d)``. Half precision is computed in float32.
        weight: The head, shape ``(V, d)``; it may be tied to an embedding, and need not require a gradient.
        target: Class indices, shape ``(N,)``.
        bias: Shape ``(V,)``.
        chunk: Tokens at a time; default as many as make a block of 2^23 numbers. Results do not depend on it.
        reduction: ``"mean"`` over tokens that are not ignored, their ``"sum"``, or ``"none"`` for all ``N`` values.
        ignore_index: The target of tokens that do not count.

    Returns:
        The loss in nats, 0-dim, or shape ``(N,)`` for ``"none"``. Differentiable twice, in reverse and forward mode.

    Raises:
        InvalidInput: Shapes do not fit, or a target is no class.
        NotDifferentiable: A third derivative is taken.

    Example:
        >>> hidden, weight = torch.randn(5, 3), torch.randn(7, 3)
        >>> target = torch.tensor([0, 6, -100, 2, 2])
        >>> loss = linear_cross_entropy(hidden, weight, target, chunk=2)
        >>> bool(torch.isclose(loss, torch.nn.functional.cross_entropy(hidden @ weight.T, target)))
        True
    """
    _check(hidden, weight, target, bias, chunk, reduction)
    kept = (target != ignore_index).nonzero()[:, 0]
    every = len(kept) == len(target)
    chosen, classes = (hidden, target) if every else (hidden[kept], target[kept])
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < len(weight):
        raise InvalidInput(
            explain(
                f"The targets reach from {int(classes.min())} to {int(classes.max())}",
                f"the head has {len(weight)} classes",
                f"Mark what does not count with ignore_index={ignore_index}",
            )
        )
    half = hidden.dtype in (torch.float16, torch.bfloat16)
    if half:
        chosen, weight, bias = chosen.float(), weight.float(), None if bias is None else bias.float()
    losses: Tensor = _Losses.call(chosen, weight, bias, classes, chunk or default_chunk(len(weight)))[0]
    if reduction == "mean":
        return losses.sum() / len(classes)  # nan where nothing counts, as torch has it
    if reduction == "sum":
        return losses.sum()
    return losses if every else losses.new_zeros(len(target)).index_put((kept,), losses)


def _check(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, chunk: int | None, reduction: str
) -> None:
    fits = (
        hidden.ndim == 2
        and weight.ndim == 2
        and hidden.shape[1] == weight.shape[1]
        and target.shape == hidden.shape[:1]
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        shapes = [None if t is None else tuple(t.shape) for t in (hidden, weight, target, bias)]
        raise InvalidInput(
            explain(
                "The shapes of hidden, weight, target and bias are {}, {}, {} and {}".format(*shapes),
                "they must be (N, d), (V, d), (N,) and (V,)",
                "Flatten batch and time into one dimension of tokens",
            )
        )
    if chunk is not None and chunk < 1:
        raise InvalidInput(explain(f"chunk is {chunk}", "a chunk holds at least one token", "Pass None for a default"))
    if reduction not in ("mean", "sum", "none"):
        raise InvalidInput(explain(f"reduction is {reduction!r}", "it is unknown", "Choose mean, sum or none"))
