"""Everything an operator must do. A new one supplies ``make()`` and ``dense()`` and inherits the tests.

class TestMine(OperatorSuite):
    def make(self): return MyOperator(...)
    def dense(self): return the same map as a matrix, computed in some other way
"""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator

from thalweg.errors import InvalidInput
from thalweg.operators import Operator, preconditioned
from thalweg.operators.algebra import Restricted


class OperatorSuite:
    tolerance = 1e-12
    """Relative to the largest entry of the dense matrix times the length of the vector."""

    def make(self) -> Operator:
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        raise NotImplementedError

    @pytest.fixture
    def operator(self):
        return self.make()

    @pytest.fixture
    def matrix(self):
        return self.dense()

    def vector(self, operator, columns=None):
        shape = (operator.size,) if columns is None else (operator.size, columns)
        return torch.randn(shape, dtype=operator.dtype, device=operator.device)

    def assert_close(self, found, expected, matrix, size=1.0):
        error = float((found.to(expected.dtype) - expected).abs().max())
        assert error <= self.tolerance * max(float(matrix.abs().max()), 1e-300) * size * len(matrix) ** 0.5

    def test_attributes(self, operator, matrix):
        assert operator.shape == (operator.size, operator.size) == tuple(matrix.shape)
        assert operator.products == 0

    def test_matvec(self, operator, matrix):
        v = self.vector(operator)
        kept = v.clone()
        out = operator.matvec(v)
        assert out.shape == v.shape
        assert out.dtype == operator.dtype
        assert not out.requires_grad
        assert torch.equal(v, kept), "the vector was changed"
        self.assert_close(out, matrix @ v.to(matrix.dtype), matrix, float(v.norm()))

    def test_matmul_sign(self, operator, matrix):
        v, block = self.vector(operator), self.vector(operator, 2)
        self.assert_close(operator @ v, matrix @ v.to(matrix.dtype), matrix, float(v.norm()))
        self.assert_close(operator @ block, matrix @ block.to(matrix.dtype), matrix, float(block.norm()))

    def test_matmat_of_several_widths(self, operator, matrix):
        for width in (1, 3, 11):
            block = self.vector(operator, width)
            kept = block.clone()
            out = operator.matmat(block)
            assert out.shape == block.shape
            assert torch.equal(block, kept), "the block was changed"
            self.assert_close(out, matrix @ block.to(matrix.dtype), matrix, float(block.norm()))

    def test_columns_of_a_block_are_products_of_the_columns(self, operator, matrix):
        block = self.vector(operator, 4)
        columns = torch.stack([operator.matvec(block[:, j].contiguous()) for j in range(4)], dim=1)
        self.assert_close(operator.matmat(block), columns.to(matrix.dtype), matrix, float(block.norm()))

    def test_a_block_need_not_be_contiguous(self, operator, matrix):
        block = self.vector(operator, 6)[:, ::2]
        self.assert_close(operator.matmat(block), matrix @ block.to(matrix.dtype), matrix, float(block.norm()))

    def test_dense(self, operator, matrix):
        self.assert_close(operator.dense(), matrix, matrix)

    def test_symmetry(self, operator, matrix):
        u, v = self.vector(operator), self.vector(operator)
        gap = float(u @ operator.matvec(v) - v @ operator.matvec(u))
        size = float(u.norm() * v.norm()) * max(float(matrix.abs().max()), 1e-300)
        assert abs(gap) <= self.tolerance * size * len(matrix)

    def test_linearity(self, operator, matrix):
        u, v = self.vector(operator), self.vector(operator)
        joint = operator.matvec(2.5 * u - v)
        apart = 2.5 * operator.matvec(u) - operator.matvec(v)
        self.assert_close(joint, apart.to(matrix.dtype), matrix, 4 * float(u.norm() + v.norm()))

    def test_zero_goes_to_zero(self, operator):
        assert float(operator.matvec(torch.zeros_like(self.vector(operator))).abs().max()) == 0

    def test_repeated_products_agree(self, operator):
        v = self.vector(operator)
        assert torch.equal(operator.matvec(v), operator.matvec(v))

    def test_counter(self, operator):
        operator.matvec(self.vector(operator))
        assert operator.products == 1
        operator.matmat(self.vector(operator, 3))
        assert operator.products == 4
        operator.matmat(self.vector(operator, 0))
        assert operator.products == 4
        operator.to_scipy() @ np.ones(operator.size)
        assert operator.products == 5

    def test_to_scipy(self, operator, matrix):
        wrapped = operator.to_scipy()
        assert isinstance(wrapped, LinearOperator)
        v, block = self.vector(operator), self.vector(operator, 2)
        expected = matrix @ v.to(matrix.dtype)
        self.assert_close(torch.from_numpy(wrapped @ v.numpy()), expected, matrix, float(v.norm()))
        self.assert_close(torch.from_numpy(wrapped.T @ v.numpy()), expected, matrix, float(v.norm()))
        expected = matrix @ block.to(matrix.dtype)
        self.assert_close(torch.from_numpy(wrapped @ block.numpy()), expected, matrix, float(block.norm()))

    @pytest.mark.parametrize("wrong", ["longer", "matrix", "dtype", "scalar"])
    def test_wrong_vectors_are_refused_and_not_counted(self, operator, wrong):
        vectors = {
            "longer": torch.zeros(operator.size + 1, dtype=operator.dtype),
            "matrix": torch.zeros(operator.size, 1, dtype=operator.dtype),
            "dtype": torch.zeros(operator.size, dtype=torch.int64),
            "scalar": torch.zeros((), dtype=operator.dtype),
        }
        with pytest.raises(InvalidInput, match="takes shape"):
            operator.matvec(vectors[wrong])
        assert operator.products == 0

    def test_wrong_blocks_are_refused(self, operator):
        for shape in [(operator.size,), (3, operator.size + 1), (operator.size, 2, 2)]:
            with pytest.raises(InvalidInput, match="takes shape"):
                operator.matmat(torch.zeros(shape, dtype=operator.dtype))
        assert operator.products == 0

    def test_algebra(self, operator, matrix):
        eye = torch.eye(len(matrix), dtype=matrix.dtype)
        indices = torch.tensor([len(matrix) - 1, 0])
        diagonal = torch.linspace(0.5, 2.0, len(matrix), dtype=matrix.dtype)
        root = diagonal.rsqrt()
        composed = {
            "sum": (operator + operator, 2 * matrix),
            "difference": (operator - 0.5 * operator, 0.5 * matrix),
            "multiple": (operator * 3, 3 * matrix),
            "negative": (-operator, -matrix),
            "shift": (operator.shift(0.7), matrix + 0.7 * eye),
            "restriction": (Restricted(operator, indices), matrix[indices][:, indices]),
            "preconditioned": (
                preconditioned(operator, diagonal.to(operator.dtype)),
                root[:, None] * matrix * root[None, :],
            ),
        }
        for name, (made, expected) in composed.items():
            v = torch.randn(made.size, dtype=made.dtype)
            kept, before = v.clone(), operator.products
            out = made.matvec(v)
            assert torch.equal(v, kept), name
            size = float(v.norm()) * (3 + 1 / max(float(matrix.abs().max()), 1e-300))
            self.assert_close(out, expected @ v.to(expected.dtype), matrix, size)
            assert made.products == 1, name
            assert operator.products - before == (2 if name in ("sum", "difference") else 1), name
