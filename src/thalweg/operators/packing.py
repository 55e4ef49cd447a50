"""Symmetric matrices as vectors: `svec` keeps inner products, `smat` undoes it.

``svec(M)`` lists the upper triangle row by row, ``(1,1), (1,2), ..., (1,k), (2,2), ...``, with off-diagonal entries
times ``sqrt 2``. Then ``<svec A, svec B> = tr(A B)`` for symmetric ``A, B``, so norms, Gram matrices and operators on
symmetric matrices are the usual ones, and no factor 2 for off-diagonal entries has to be remembered anywhere.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt, sqrt
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.errors import InvalidInput, explain

Array = TypeVar("Array", Tensor, NDArray[Any])


@lru_cache(maxsize=64)
def pairs(k: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs ``(i, j)``, ``i <= j < k``, in the order of `svec`: ``m = k (k + 1) / 2`` of them.

    Example:
        >>> pairs(2)
        ((0, 0), (0, 1), (1, 1))
    """
    return tuple((i, j) for i in range(k) for j in range(i, k))


def svec(matrix: Array) -> Array:
    r"""Return the vector ``v`` with ``v_{ii} = M_{ii}`` and ``v_{ij} = (M_{ij} + M_{ji}) / \sqrt 2``.

    For symmetric matrices this is an isometry. Of any other the symmetric part is packed: `svec` is the adjoint of
    `smat` on all square matrices.

    Args:
        matrix: Shape ``(..., k, k)``, floating; a torch tensor (differentiable) or a NumPy array.

    Returns:
        Shape ``(..., k (k + 1) / 2)``, same kind, dtype and device.

    Raises:
        InvalidInput: The last two axes differ.

    Example:
        >>> vector = svec(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        >>> round(float(vector @ vector), 5)  # 1 + 4 + 4 + 9
        18.0
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InvalidInput(
            explain(
                f"The matrix has shape {tuple(matrix.shape)}",
                "a symmetric matrix is square",
                "Pass (k, k), or a batch of them along leading axes",
            )
        )
    rows, columns, _, halves, _ = _table(matrix.shape[-1])
    found: Array = (matrix[..., rows, columns] + matrix[..., columns, rows]) * _like(halves, matrix)
    return found


def smat(vector: Array) -> Array:
    """Return the symmetric matrix whose `svec` is ``vector``.

    Args:
        vector: Shape ``(..., m)`` with ``m = k (k + 1) / 2``, floating; torch (differentiable) or NumPy.

    Returns:
        Shape ``(..., k, k)``, same kind, dtype and device.

    Raises:
        InvalidInput: No ``k`` has that many pairs.

    Example:
        >>> smat(np.array([1.0, 0.0, 3.0])).tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """
    length = vector.shape[-1] if vector.ndim else -1
    k = order(length)
    _, _, where, _, scale = _table(k)
    found: Array = vector[..., where] * _like(scale, vector)
    return found


def svec_operator(tensor: Array) -> Array:
    r"""Return the matrix ``B`` with ``svec(T[X]) = B svec(X)`` for ``T[X]_{ij} = \sum_{lm} T_{ijlm} X_{lm}``.

    ``B`` is symmetric where ``T`` is self-adjoint in the Frobenius inner product.

    Args:
        tensor: Shape ``(..., k, k, k, k)``, torch or NumPy. It is symmetrised in ``ij`` and in ``lm``.

    Returns:
        Shape ``(..., m, m)`` with ``m = k (k + 1) / 2``.

    Raises:
        InvalidInput: The last four axes differ.

    Example:
        >>> eye = torch.eye(2)
        >>> svec_operator(torch.einsum("il,jm->ijlm", eye, eye)).diagonal()  # X -> X
        tensor([1.0000, 1.0000, 1.0000])
    """
    if tensor.ndim < 4 or len(set(tensor.shape[-4:])) != 1:
        raise InvalidInput(
            explain(
                f"The tensor has shape {tuple(tensor.shape)}",
                "an operator on symmetric matrices has four equal axes",
                "Pass (k, k, k, k), or a batch of them along leading axes",
            )
        )
    move: Any = torch.moveaxis if isinstance(tensor, Tensor) else np.moveaxis
    columns_first = svec(move(svec(tensor), -1, -3))
    found: Array = move(columns_first, -1, -2)
    return found


def order(length: int) -> int:
    """Return the ``k`` with ``k (k + 1) / 2 = length``.

    Raises:
        InvalidInput: There is none.

    Example:
        >>> order(6)
        3
    """
    k = (isqrt(8 * length + 1) - 1) // 2 if length >= 0 else 0
    if k * (k + 1) // 2 != length:
        raise InvalidInput(
            explain(
                f"A packed matrix cannot have {length} entries",
                "k (k + 1) / 2 are needed for some k: 1, 3, 6, 10, ...",
                "Pack it with svec",
            )
        )
    return k


@lru_cache(maxsize=64)
def _table(k: int) -> tuple[NDArray[np.int64], ...]:
    """Rows, columns, position of each entry in the vector, and the factors of both directions."""
    rows, columns = np.triu_indices(k)
    where = np.zeros((k, k), dtype=np.int64)
    where[rows, columns] = where[columns, rows] = np.arange(len(rows))
    halves: Any = np.where(rows == columns, 0.5, 1 / sqrt(2))
    scale: Any = np.where(np.eye(k, dtype=bool), 1.0, 1 / sqrt(2))
    return rows, columns, where, halves, scale


def _like(factors: NDArray[Any], array: Array) -> Any:
    if isinstance(array, Tensor):
        return torch.from_numpy(factors).to(array.device, array.dtype)
    return factors.astype(array.dtype, copy=False)


__all__ = ["order", "pairs", "smat", "svec", "svec_operator"]
