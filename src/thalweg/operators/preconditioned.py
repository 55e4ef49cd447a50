"""The Hessian as a preconditioned optimizer sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator


class Preconditioned(Operator):
    """``P^-1/2 A P^-1/2`` for a positive diagonal ``P``; it has the eigenvalues of ``P^-1 A``."""

    def __init__(self, inner: Operator, diagonal: Tensor) -> None:
        super().__init__(inner.size, inner.dtype, inner.device, inner.space)
        self.inner = inner
        self.inverse_root = diagonal.to(inner.device, inner.dtype).rsqrt()

    def _matvec(self, v: Tensor) -> Tensor:
        return self.inverse_root * self.inner.matvec(self.inverse_root * v)

    def _matmat(self, block: Tensor) -> Tensor:
        root = self.inverse_root.reshape(-1, 1)
        return root * self.inner.matmat(root * block)


def preconditioned(operator: Operator, diagonal: Tensor | float) -> Preconditioned:
    """Return ``P^-1/2 A P^-1/2``, symmetric, with the spectrum of ``P^-1 A``.

    An optimizer that steps by ``-lr P^-1 g`` is stable along an eigenvector of this operator while its eigenvalue
    stays below the rule's ``stability_threshold``. If ``q`` is an eigenvector of the returned operator, then
    ``P^-1/2 q`` is the direction in weight space.

    Args:
        operator: ``A``, shape ``(P, P)``.
        diagonal: The diagonal of ``P``, shape ``(P,)``, or one positive number for all coordinates. In the units
            of the gradient for Adam-like rules, so that eigenvalues are in units of 1 / learning rate.

    Returns:
        An operator whose every product costs one product of ``A``.

    Raises:
        InvalidInput: The diagonal has another shape, or an entry that is not positive and finite.

    Example:
        >>> from thalweg.operators.base import from_dense
        >>> A = from_dense(torch.diag(torch.tensor([4.0, 16.0], dtype=torch.float64)))
        >>> preconditioned(A, torch.tensor([4.0, 1.0], dtype=torch.float64)).dense().diagonal().tolist()
        [1.0, 16.0]
    """
    diagonal = torch.as_tensor(diagonal, dtype=operator.dtype).detach()
    if diagonal.ndim > 1 or diagonal.numel() not in (1, operator.space.length):
        raise InvalidInput(
            explain(
                f"The preconditioner has shape {tuple(diagonal.shape)}",
                f"it is the diagonal of a matrix of size {operator.size}",
                f"Pass a vector of shape ({operator.space.length},) or one number",
            )
        )
    if not bool((torch.isfinite(diagonal) & (diagonal > 0)).all()):
        raise InvalidInput(
            explain(
                f"The smallest entry of the preconditioner is {float(diagonal.min()):.3g}",
                "its inverse square root must exist",
                "Add the rule's eps, or take at least one step before you measure",
            )
        )
    return Preconditioned(operator, diagonal)
