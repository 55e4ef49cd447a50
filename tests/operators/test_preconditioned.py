"""The preconditioned operator: its spectrum, and diagonals that have no inverse root."""

import pytest
import torch

from operator_suite import OperatorSuite
from thalweg.errors import InvalidInput
from thalweg.operators import from_dense, preconditioned


def parts():
    draw = torch.Generator().manual_seed(5)
    a = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    return a + a.T, torch.rand(6, generator=draw, dtype=torch.float64) + 0.1


class TestPreconditioned(OperatorSuite):
    def make(self):
        matrix, diagonal = parts()
        return preconditioned(from_dense(matrix), diagonal)

    def dense(self):
        matrix, diagonal = parts()
        root = torch.diag(diagonal**-0.5)
        return root @ matrix @ root


class TestOneNumber(OperatorSuite):
    def make(self):
        return preconditioned(from_dense(parts()[0]), 4.0)

    def dense(self):
        return parts()[0] / 4


def test_the_spectrum_is_that_of_the_quotient():
    matrix, diagonal = parts()
    expected = torch.linalg.eigvals(torch.diag(1 / diagonal) @ matrix).real.sort().values
    found = torch.linalg.eigvalsh(preconditioned(from_dense(matrix), diagonal).dense())
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_entries_without_an_inverse_root_are_refused(bad):
    matrix, diagonal = parts()
    diagonal[2] = bad
    with pytest.raises(InvalidInput, match="preconditioner"):
        preconditioned(from_dense(matrix), diagonal)


@pytest.mark.parametrize("shape", [(5,), (6, 6), (1, 6)])
def test_shapes_that_are_no_diagonal_are_refused(shape):
    with pytest.raises(InvalidInput, match="diagonal"):
        preconditioned(from_dense(parts()[0]), torch.ones(shape))


def test_a_diagonal_with_history_leaves_no_graph():
    matrix, diagonal = parts()
    made = preconditioned(from_dense(matrix), diagonal.requires_grad_())
    assert not made.matvec(torch.ones(6, dtype=torch.float64)).requires_grad
