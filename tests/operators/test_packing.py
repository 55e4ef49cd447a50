"""svec is an isometry, smat its inverse, and operators commute with both."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import InvalidInput
from thalweg.operators.packing import order, pairs, smat, svec, svec_operator

KINDS = ["torch", "numpy"]


def symmetric(k, lead=(), seed=0):
    a = torch.randn(*lead, k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a + a.mT


def as_kind(tensor, kind):
    return tensor.numpy() if kind == "numpy" else tensor


@pytest.mark.parametrize("kind", KINDS)
@given(k=st.integers(1, 9), lead=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_isometry_and_round_trip(kind, k, lead, seed):
    a, b = symmetric(k, lead, seed), symmetric(k, lead, seed + 1)
    u, v = svec(as_kind(a, kind)), svec(as_kind(b, kind))
    assert tuple(u.shape) == (*lead, k * (k + 1) // 2)
    assert type(u) is type(as_kind(a, kind))
    np.testing.assert_allclose((u * v).sum(-1), (a * b).sum((-1, -2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(smat(u), a, rtol=1e-15, atol=1e-15)
    w = as_kind(torch.randn(*lead, k * (k + 1) // 2, dtype=torch.float64), kind)
    np.testing.assert_allclose(svec(smat(w)), w, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_pairs_are_the_order(kind, k):
    assert list(pairs(k)) == [(i, j) for i in range(k) for j in range(k) if i <= j]
    matrix = symmetric(k)
    vector = svec(as_kind(matrix, kind))
    for number, (i, j) in enumerate(pairs(k)):
        factor = 1.0 if i == j else 2**0.5
        assert float(vector[number]) == pytest.approx(factor * float(matrix[i, j]), rel=1e-15)
    assert order(len(vector)) == k


def test_the_adjoint_of_smat_on_matrices_that_are_not_symmetric():
    matrix = torch.randn(4, 4, dtype=torch.float64)
    vector = torch.randn(10, dtype=torch.float64)
    assert float(svec(matrix) @ vector) == pytest.approx(float((matrix * smat(vector)).sum()), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_operators(kind, k):
    tensor = torch.randn(2, k, k, k, k, dtype=torch.float64)
    tensor = tensor + tensor.transpose(-1, -2)
    tensor = tensor + tensor.transpose(-3, -4)
    x = symmetric(k, (2,))
    image = torch.einsum("bijlm,blm->bij", tensor, x)
    packed = svec_operator(as_kind(tensor, kind))
    found = packed @ svec(as_kind(x, kind))[..., None]
    np.testing.assert_allclose(found[..., 0], svec(image), rtol=1e-11, atol=1e-11)


def test_a_gram_matrix_of_packed_rows_is_the_operator():
    """The use in flows: rows T_ij with svec weights give the operator X -> <T_ij, sum_lm T_lm X_lm>."""
    k = 3
    full = torch.randn(k, k, 7, dtype=torch.float64)
    full = full + full.transpose(0, 1)
    rows = svec(full.movedim(-1, 0)).T
    tensor = torch.einsum("ijp,lmp->ijlm", full, full)
    torch.testing.assert_close(rows @ rows.T, svec_operator(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_stay_and_gradients_flow(dtype):
    matrix = symmetric(3).to(dtype).requires_grad_()
    vector = svec(matrix)
    assert vector.dtype == dtype
    assert smat(vector.detach().numpy()).dtype == np.dtype(str(dtype).removeprefix("torch."))
    smat(vector).square().sum().backward()
    torch.testing.assert_close(matrix.grad, 2 * matrix.detach())


def test_wrong_shapes_are_refused():
    with pytest.raises(InvalidInput, match="square"):
        svec(torch.zeros(2, 3))
    with pytest.raises(InvalidInput, match="square"):
        svec(np.zeros(3))
    with pytest.raises(InvalidInput, match="cannot have 4"):
        smat(torch.zeros(4))
    with pytest.raises(InvalidInput, match="cannot have"):
        smat(np.zeros(()))
    with pytest.raises(InvalidInput, match="four equal axes"):
        svec_operator(torch.zeros(2, 2, 2, 3))
