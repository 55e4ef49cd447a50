r"""Positive semidefinite matrices in the space of a model's outputs, as products.

A loss ``L = l(z)`` of outputs ``z`` brings two: its Hessian, for the Gauss-Newton operator, and a weighted sum of
outer products of the gradients of its terms, for the Fisher. Each is met only as ``M t`` for a change ``t`` of the
outputs, at the outputs of one batch and for the mean over that batch.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.errors import NotDifferentiable, explain
from thalweg.problem.graphs import second_derivative
from thalweg.problem.heads import LastLayer
from thalweg.problem.linear_head import BLOCK, LinearHead, default_chunk

Changes = Sequence["Tensor | None"]
"""One change for each output; None is zero."""


class OutputMatrix(ABC):
    """``M`` at the outputs of one batch."""

    @abstractmethod
    def product(self, changes: Changes) -> Changes:
        """Return ``M t``, in the shapes of the outputs. ``changes`` may be written over."""

    @property
    def bytes(self) -> int:
        """What is kept for later products."""
        return 0


class Squares(OutputMatrix):
    r"""Hessian of ``\frac1n \sum (z - y)^2`` over all ``n`` entries: ``M = (2 / n) I``."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def product(self, changes: Changes) -> Changes:
        """Multiply by ``2 / n``."""
        return [None if t is None else t * self.scale for t in changes]


class Softmax(OutputMatrix):
    r"""Hessian of cross-entropy: ``M t = s (p * t - p (p' t))`` for each term, with ``p = softmax(z)``.

    With targets ``q`` (one-hot, smoothed or given as probabilities) and class weights ``c``, a term is
    ``-sum_k c_k q_k log p_k``. It is linear in ``z`` but for ``s logsumexp(z)`` with ``s = sum_k c_k q_k``, so only
    ``s`` enters the Hessian.
    """

    def __init__(self, logits: Tensor, scale: Tensor) -> None:
        self.axis = 1 if logits.ndim > 1 else 0
        self.probabilities = torch.softmax(logits.detach(), self.axis)
        self.scale = scale.unsqueeze(self.axis)

    def product(self, changes: Changes) -> Changes:
        """Take two passes over one block: ``t`` is overwritten, so logits are held once, as ``p``."""
        (t,) = changes
        if t is None:
            return [None]
        size = max(1, BLOCK * len(t) // max(t.numel(), 1)) if self.axis else len(t)
        for block, p, s in zip(*(torch.split(x, size) for x in (t, self.probabilities, self.scale))):
            mean = (p * block).sum(self.axis, keepdim=True)
            block.sub_(mean).mul_(p).mul_(s)
        return [t]

    @property
    def bytes(self) -> int:
        """Those of the probabilities."""
        return self.probabilities.numel() * self.probabilities.element_size()


class Curved(OutputMatrix):
    """Hessian of any loss, by automatic differentiation with respect to the outputs alone."""

    def __init__(self, loss: Callable[..., Tensor], outputs: Sequence[Tensor]) -> None:
        with torch.enable_grad(), second_derivative():
            self.at = [z.detach().requires_grad_() for z in outputs]
            self.slopes = torch.autograd.grad(loss(*self.at), self.at, create_graph=True, allow_unused=True)
        if not any(g is not None and g.requires_grad for g in self.slopes):
            raise linear_loss()

    def product(self, changes: Changes) -> Changes:
        """Take one backward pass through the recorded gradient of the loss."""
        live = [(g, t) for g, t in zip(self.slopes, changes) if g is not None and g.requires_grad and t is not None]
        if not live:
            return [None] * len(self.at)
        slopes, vectors = zip(*live)
        with second_derivative():
            return torch.autograd.grad(slopes, self.at, vectors, retain_graph=True, allow_unused=True)


class Outer(OutputMatrix):
    r"""``M = \sum_i \beta_i a_i a_i'`` with ``a_i`` the gradient of the i-th term of a loss by the outputs.

    Neither ``a_i`` nor any per-sample gradient is formed: with ``J`` the Jacobian of all terms, a product is
    ``J' (beta * (J t))``, and ``J t`` is a derivative of ``u -> J' u``.
    """

    def __init__(self, terms: Callable[..., Tensor], outputs: Sequence[Tensor], beta: Tensor) -> None:
        self.beta = beta
        with torch.enable_grad(), second_derivative():
            self.at = [z.detach().requires_grad_() for z in outputs]
            self.terms = terms(*self.at)
            self.dummy = torch.zeros_like(self.terms).requires_grad_()
            pulled = torch.autograd.grad(self.terms, self.at, self.dummy, create_graph=True, allow_unused=True)
        self.pulled = pulled

    def product(self, changes: Changes) -> Changes:
        """Push forward to the terms, weigh, pull back."""
        live = [(s, t) for s, t in zip(self.pulled, changes) if s is not None and t is not None]
        if not live:
            return [None] * len(self.at)
        pulled, vectors = zip(*live)
        with second_derivative():
            (rates,) = torch.autograd.grad(pulled, self.dummy, vectors, retain_graph=True)
            return torch.autograd.grad(self.terms, self.at, rates * self.beta, retain_graph=True, allow_unused=True)


@dataclass(frozen=True)
class CrossEntropy:
    """What torch's cross-entropy was told."""

    weight: Tensor | None
    ignore_index: int
    smoothing: float

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        """Every term, unreduced."""
        return F.cross_entropy(
            logits,
            target,
            self._own(logits),
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.smoothing,
        )

    def shares(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return ``s`` of each term, its part of the batch's weight, and the sum that the mean divides by."""
        axis = 1 if logits.ndim > 1 else 0
        classes, c = logits.shape[axis], self._own(logits)
        uniform = float(classes if c is None else c.sum()) * self.smoothing / classes
        if target.is_floating_point():
            given = target.to(logits.dtype)
            shape = [-1 if d == axis else 1 for d in range(logits.ndim)]
            mass = (given if c is None else given * c.view(shape)).sum(axis)
            weight = torch.ones_like(mass)
        else:
            kept = target != self.ignore_index
            weight = kept.to(logits.dtype) if c is None else c[target.where(kept, 0)] * kept
            mass, uniform = weight, uniform * kept.to(logits.dtype)  # type: ignore[assignment]
        return (1 - self.smoothing) * mass + uniform, weight, float(weight.sum())

    def _own(self, logits: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight.to(logits)


def cross_entropy(loss: Callable[..., Any]) -> CrossEntropy | None:
    """Read the settings of torch's cross-entropy; None for any other loss."""
    if type(loss) is nn.CrossEntropyLoss:
        return CrossEntropy(loss.weight, loss.ignore_index, loss.label_smoothing)
    keywords: dict[str, Any] = {}
    function: Any = loss
    while isinstance(function, functools.partial) and not function.args:
        keywords = {**function.keywords, **keywords}
        function = function.func
    if function is not F.cross_entropy:
        return None
    return CrossEntropy(
        keywords.get("weight"), keywords.get("ignore_index", -100), keywords.get("label_smoothing", 0.0)
    )


def is_squared_error(loss: Callable[..., Any]) -> bool:
    """Whether ``loss`` is torch's mean squared error."""
    return type(loss) is nn.MSELoss or loss is F.mse_loss


def linear_in_outputs(loss: Callable[..., Any]) -> bool:
    """Whether ``loss`` is torch's negative log-likelihood, whose gradient torch records as if it were curved."""
    return isinstance(loss, nn.NLLLoss) or loss is F.nll_loss


def linear_loss() -> NotDifferentiable:
    """Build the error for a loss whose Hessian by the outputs is zero."""
    return NotDifferentiable(
        explain(
            "The loss is linear in the outputs of the model",
            "its Hessian there is zero, and with it the Gauss-Newton matrix",
            "Leave the nonlinearity to the loss: CrossEntropyLoss of logits, not NLLLoss of log-probabilities",
        )
    )


class LastLayerMatrix(OutputMatrix):
    """The head of a language model as part of the outputs: the logits are only made in chunks.

    The outputs are the hidden states, the weight and the bias; what they do to the logits to first order is
    multiplied with the matrix of cross-entropy in the space of logits and pulled back, chunk by chunk.
    """

    def __init__(self, last: LastLayer, chunk: int | None) -> None:
        bias = None if last.bias is None else last.bias.detach()
        size = chunk or last.chunk or default_chunk(len(last.weight))
        self.head = LinearHead(last.hidden.detach(), last.weight.detach(), bias, last.target, size)
        self.needs = last.needs
        self.normaliser = self.head.losses()[1]

    def _triple(self, changes: Changes) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        given = iter(changes)
        hidden, weight, bias = (next(given) if need else None for need in self.needs)
        return hidden, weight, bias

    def _chosen(self, triple: Changes) -> Changes:
        return [part for part, need in zip(triple, self.needs) if need]


class LastLayerHessian(LastLayerMatrix):
    """``M = (1/n) sum_i Z_i' (diag(p_i) - p_i p_i') Z_i`` with ``Z_i`` the Jacobian of the logits of token i."""

    def product(self, changes: Changes) -> Changes:
        """Make each chunk's logits once, in two blocks."""
        g = torch.full_like(self.normaliser, 1 / max(len(self.normaliser), 1))
        direction = self._triple(changes)
        return self._chosen(self.head.product(self.normaliser, g, direction, self.needs, bilinear=False))


class LastLayerOuter(LastLayerMatrix):
    """``M = sum_r beta_r a_r a_r'`` with ``a_r`` the gradient of the losses of group r of the tokens."""

    def __init__(self, last: LastLayer, chunk: int | None, group: Tensor, beta: Tensor) -> None:
        super().__init__(last, chunk)
        self.group, self.beta = group, beta

    def product(self, changes: Changes) -> Changes:
        """Make each chunk's logits twice: for the rates of the losses, and to pull them back."""
        rates = self.head.rates(self.normaliser, self._triple(changes))
        together = torch.zeros_like(self.beta).index_add_(0, self.group, rates)
        g = (together * self.beta)[self.group]
        return self._chosen(self.head.gradient(self.normaliser, g, self.needs))
