"""The protocol itself, and the two operators made from what a user has at hand."""

import numpy as np
import pytest
import torch

from operator_suite import OperatorSuite
from thalweg._vectors import Layout
from thalweg.errors import InvalidInput
from thalweg.operators import from_dense, from_function


def symmetric(size=7, dtype=torch.float64, seed=3):
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T).to(dtype)


class TestFromDense(OperatorSuite):
    def make(self):
        return from_dense(symmetric())

    def dense(self):
        return symmetric()


class TestFromFunction(OperatorSuite):
    def make(self):
        matrix = symmetric()
        return from_function(lambda v: matrix @ v, len(matrix))

    def dense(self):
        return symmetric()


class TestIdentityThatReturnsItsInput(OperatorSuite):
    """A function may hand back the very vector that it was given; nothing composed may then write to it."""

    def make(self):
        return from_function(lambda v: v, 4)

    def dense(self):
        return torch.eye(4, dtype=torch.float64)


class TestFloat32(OperatorSuite):
    tolerance = 2e-6

    def make(self):
        return from_dense(symmetric(dtype=torch.float32))

    def dense(self):
        return symmetric(dtype=torch.float32).double()


def test_a_function_with_the_wrong_shape_is_refused():
    for function in (lambda v: v[:, None], lambda v: v.float(), lambda v: 1.0):
        with pytest.raises(InvalidInput, match="The function returned"):
            from_function(function, 3).matvec(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.zeros(2, 3), "shape"),
        (torch.zeros(4), "shape"),
        (torch.eye(2, dtype=torch.int64), "int64"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "transpose"),
        (torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]), "NaN"),
    ],
)
def test_matrices_that_are_no_operator(matrix, message):
    with pytest.raises(InvalidInput, match=message):
        from_dense(matrix)


def test_bfloat16_reaches_scipy_as_float32():
    wrapped = from_dense(torch.eye(3, dtype=torch.bfloat16)).to_scipy()
    assert wrapped.dtype == np.float32
    assert (wrapped @ np.ones(3)).tolist() == [1, 1, 1]


def test_a_numpy_scalar_multiplies_from_either_side():
    v = torch.ones(7, dtype=torch.float64)
    operator = from_dense(symmetric())
    for made in (operator * np.float64(2), 2 * operator, operator * torch.tensor(2.0)):
        assert torch.allclose(made.matvec(v), 2 * symmetric() @ v)


def test_restriction_by_name():
    layout = Layout(("a", "b"), (torch.Size([3]), torch.Size([2, 2])))
    block = from_dense(symmetric()).restrict(layout, "b")
    assert torch.allclose(block.dense(), symmetric()[3:, 3:])
    with pytest.raises(InvalidInput, match="matches no parameter"):
        from_dense(symmetric()).restrict(layout, "c")
    with pytest.raises(InvalidInput, match="layout has 7 entries"):
        from_dense(symmetric(6)).restrict(layout, "b")


def test_sums_need_operators_alike():
    with pytest.raises(InvalidInput, match="size 7"):
        from_dense(symmetric()) + from_dense(symmetric(5))
    with pytest.raises(InvalidInput, match="float32"):
        from_dense(symmetric()) + from_dense(symmetric(dtype=torch.float32))
