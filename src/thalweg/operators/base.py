"""The protocol of a symmetric, matrix-free operator, with a counter of its products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.space import Space

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from thalweg._vectors import Layout, Pattern


class Operator(ABC):
    """A symmetric linear map ``v -> A v`` on vectors of length ``P``.

    A subclass gives ``_matvec`` (and ``_matmat`` if it has something faster than a loop). `matvec` and `matmat`
    check the input and count.

    Attributes:
        size: Length ``P`` of the vectors.
        space: How they are held; whole by this process unless an operator says otherwise.
        dtype: Their dtype.
        device: Their device.
        products: Matrix-vector products done so far. A block of k vectors counts k.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str, space: Space | None = None) -> None:
        self.size = size
        self.space = space or Space(size)
        self.dtype = dtype
        self.device = torch.device(device)
        self.products = 0

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, P)``."""
        return (self.size, self.size)

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """Multiply one vector of shape ``(P,)``."""

    def _matmat(self, block: Tensor) -> Tensor:
        """Multiply the columns of ``block``, shape ``(P, k)``, one by one."""
        return torch.stack([self._matvec(v) for v in block.T.contiguous()], dim=1)

    def matvec(self, v: Tensor) -> Tensor:
        """Return ``A v``.

        Args:
            v: Vector of shape ``(P,)``.

        Returns:
            A new vector of shape ``(P,)``.

        Raises:
            InvalidInput: Shape, dtype or device of ``v`` differ from the operator's.
        """
        self._check(v, (self.space.length,))
        self.products += 1
        return self._matvec(v.detach()).detach()

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``A V`` for the columns of ``block``.

        Args:
            block: Matrix of shape ``(P, k)``.

        Returns:
            A new matrix of shape ``(P, k)``.

        Raises:
            InvalidInput: Shape, dtype or device of ``block`` differ from the operator's.
        """
        self._check(block, (self.space.length, block.shape[-1] if block.ndim == 2 else -1))
        if block.shape[1] == 0:
            return torch.empty_like(block)
        self.products += block.shape[1]
        return self._matmat(block.detach()).detach()

    def dense(self) -> Tensor:
        """Return the matrix, shape ``(P, P)``, by P products. For small P: tests and references."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))

    def to_scipy(self) -> LinearOperator:
        """Return the same map as a ``scipy.sparse.linalg.LinearOperator`` on NumPy arrays."""
        from scipy.sparse.linalg import LinearOperator

        def to_tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(self.device, self.dtype)

        host = torch.float32 if self.dtype == torch.bfloat16 else self.dtype  # NumPy has no bfloat16
        dtype = torch.empty(0, dtype=host).numpy().dtype

        def to_numpy(y: Tensor) -> np.ndarray:
            return y.detach().to("cpu", host).numpy()

        return LinearOperator(
            shape=self.shape,
            dtype=dtype,
            matvec=lambda x: to_numpy(self.matvec(to_tensor(x.reshape(-1)))),
            rmatvec=lambda x: to_numpy(self.matvec(to_tensor(x.reshape(-1)))),
            matmat=lambda x: to_numpy(self.matmat(to_tensor(x))),
        )

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def __add__(self, other: Operator) -> Operator:
        from thalweg.operators import algebra

        return algebra.Sum(self, other)

    def __mul__(self, factor: float) -> Operator:
        from thalweg.operators import algebra

        return algebra.Scaled(self, float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return self * -1.0

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)

    def shift(self, sigma: float) -> Operator:
        """Return ``A + sigma I``."""
        from thalweg.operators import algebra

        return algebra.Shifted(self, float(sigma))

    def restrict(self, layout: Layout, pattern: Pattern) -> Operator:
        """Return the principal block ``S' A S`` on the parameters whose names match ``pattern``."""
        from thalweg.operators import algebra

        if layout.size != self.size:
            raise InvalidInput(
                explain(
                    f"The layout has {layout.size} entries",
                    f"the operator has size {self.size}",
                    "Pass the layout of the problem that the operator was built from",
                )
            )
        return algebra.Restricted(self, layout.indices(pattern).to(self.device))

    def _check(self, v: Tensor, shape: tuple[int, ...]) -> None:
        if v.shape != shape or v.dtype != self.dtype or v.device.type != self.device.type:
            whole = self.space.length == self.size
            pieces = f"Pass pieces, or use gathered(operator), which takes whole vectors of length {self.size}"
            raise InvalidInput(
                explain(
                    f"The vector has shape {tuple(v.shape)}, dtype {v.dtype}, device {v.device}",
                    f"this operator takes shape {shape}, dtype {self.dtype}, device {self.device}",
                    "Convert the vector with .to(operator.device, operator.dtype), columns as (P, k)"
                    if whole
                    else pieces,
                )
            )


class _FromFunction(Operator):
    def __init__(
        self, function: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(size, dtype, device)
        self._function = function

    def _matvec(self, v: Tensor) -> Tensor:
        out = self._function(v)
        if not isinstance(out, Tensor) or out.shape != v.shape or out.dtype != v.dtype:
            found = f"{tuple(out.shape)} in {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise InvalidInput(
                explain(
                    f"The function returned {found}",
                    f"the product of this operator has shape {tuple(v.shape)} in {v.dtype}",
                    "Return one flat vector of the dtype that came in",
                )
            )
        return out


class _FromDense(Operator):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matrix @ v

    def _matmat(self, block: Tensor) -> Tensor:
        return self._matrix @ block


def from_function(
    function: Callable[[Tensor], Tensor],
    size: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Operator:
    """Wrap a symmetric map ``v -> A v`` as an `Operator`.

    Args:
        function: Takes and returns a vector of shape ``(P,)``. Its symmetry is the caller's promise.
        size: Length ``P``.
        dtype: Dtype of the vectors.
        device: Device of the vectors.

    Returns:
        An operator that counts its products.

    Example:
        >>> double = from_function(lambda v: 2 * v, size=3)
        >>> double.matvec(torch.ones(3, dtype=torch.float64)).tolist(), double.products
        ([2.0, 2.0, 2.0], 1)
    """
    return _FromFunction(function, size, dtype, device)


def from_dense(matrix: Tensor) -> Operator:
    """Wrap a symmetric matrix of shape ``(P, P)`` as an `Operator`.

    Args:
        matrix: ``A``, shape ``(P, P)``, in the dtype and on the device that the operator will have.

    Returns:
        An operator that counts its products.

    Raises:
        InvalidInput: The matrix is not square, not finite, or not symmetric to rounding.

    Example:
        >>> from_dense(torch.eye(2)).matvec(torch.tensor([1.0, 3.0])).tolist()
        [1.0, 3.0]
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidInput(
            explain(f"The matrix has shape {tuple(matrix.shape)}", "an operator is square", "Pass (P, P)")
        )
    if not matrix.is_floating_point():
        raise InvalidInput(
            explain(f"The matrix is {matrix.dtype}", "products are taken in floating point", "Pass matrix.double()")
        )
    if not torch.isfinite(matrix).all():
        raise InvalidInput(
            explain("The matrix has NaN or infinite entries", "no product is defined", "Look where it is made")
        )
    tolerance = 100 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()) if matrix.numel() else 0.0
    if not torch.allclose(matrix, matrix.T, rtol=0.0, atol=tolerance):
        raise InvalidInput(
            explain(
                f"The matrix differs from its transpose by {float((matrix - matrix.T).abs().max()):.3g}",
                "every solver here assumes symmetry",
                "Pass (A + A.T) / 2 if that is what you mean",
            )
        )
    return _FromDense(matrix)
