"""SciPy's operators and curvlinops' as ours, ours as theirs, and their Kronecker factors at work."""

import sys

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

import cases
from operator_suite import OperatorSuite
from thalweg.errors import InvalidInput, MissingExtra
from thalweg.operators import from_dense, hessian
from thalweg.operators.adapters import curvlinops_arguments, from_curvlinops, from_scipy, to_curvlinops
from thalweg.operators.fisher import empirical_fisher
from thalweg.operators.gauss_newton import gauss_newton
from thalweg.problem import Problem
from thalweg.spectra import top_eigenpairs


def symmetric(n=7):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = torch.randn(n, n, dtype=torch.float64)
    return a + a.T


class Duck:
    """What we need of curvlinops' interface, and nothing else."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, block):
        return self.matrix @ block


class TestFromSciPy(OperatorSuite):
    def make(self):
        return from_scipy(self.dense().numpy())

    def dense(self):
        return symmetric()


class TestFromDuck(OperatorSuite):
    def make(self):
        return from_curvlinops(Duck(self.dense()))

    def dense(self):
        return symmetric()


class TestThereAndBack(OperatorSuite):
    def make(self):
        return from_scipy(hessian(cases.make("mlp_ce").problem()).to_scipy())

    def dense(self):
        return hessian(cases.make("mlp_ce").problem()).dense()


@pytest.mark.parametrize("make", [np.asarray, csr_matrix, lambda a: LinearOperator(a.shape, matvec=lambda x: a @ x)])
def test_whatever_scipy_takes(make):
    a = symmetric()
    assert torch.allclose(from_scipy(make(a.numpy())).dense(), a)


def test_a_product_that_shares_memory_with_its_input_is_copied():
    identity = from_scipy(LinearOperator((3, 3), matvec=lambda x: x, matmat=lambda x: x, dtype=np.float64))
    duck = from_curvlinops(Duck(torch.eye(3, dtype=torch.float64)))
    duck._inner.__class__ = type("Same", (Duck,), {"__matmul__": lambda self, block: block})
    for operator in (identity, duck):
        v = torch.ones(3, dtype=torch.float64)
        operator.matvec(v).zero_()
        assert float(v.sum()) == 3


def test_dtypes():
    a = symmetric().numpy()
    assert from_scipy(a.astype(np.float32)).dtype == torch.float32
    assert from_scipy(a, dtype=torch.float32).dtype == torch.float32
    assert from_scipy(a, dtype=torch.bfloat16).matvec(torch.ones(7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_is_not_symmetric_or_square_or_real():
    upper = torch.triu(symmetric())
    for wrap, made in ((from_scipy, upper.numpy()), (from_curvlinops, Duck(upper))):
        with pytest.raises(InvalidInput, match="assumes symmetry"):
            wrap(made)
        assert torch.allclose(wrap(made, check=False).dense(), upper)
    with pytest.raises(InvalidInput, match="square"):
        from_scipy(np.ones((2, 3)))
    with pytest.raises(InvalidInput, match="real"):
        from_scipy(np.eye(2) * 1j)
    with pytest.raises(InvalidInput, match="Pass dtype= and device="):
        from_curvlinops(object())


def test_the_check_is_not_counted():
    assert from_scipy(symmetric().numpy()).products == 0


def test_without_curvlinops_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops._torch_base", None)
    with pytest.raises(MissingExtra, match="--no-deps"):
        to_curvlinops(from_dense(symmetric()))


def test_arguments_that_curvlinops_could_not_honour():
    with pytest.raises(InvalidInput, match="calls the model itself"):
        curvlinops_arguments(cases.make("dict_batches").problem())
    with pytest.raises(InvalidInput, match="Convert the model"):
        curvlinops_arguments(cases.make("mlp_ce").problem(dtype=torch.float32))


class WithCurvlinops:
    @pytest.fixture
    def curvlinops(self):
        return pytest.importorskip("curvlinops")


class TestTheirs(WithCurvlinops):
    @pytest.mark.parametrize(
        ("kind", "ours", "name"),
        [
            ("GGNLinearOperator", gauss_newton, "mlp_mse"),
            ("GGNLinearOperator", gauss_newton, "mlp_ce"),
            ("GGNLinearOperator", gauss_newton, "layer_norm"),
            ("HessianLinearOperator", hessian, "mlp_mse"),
            ("EFLinearOperator", empirical_fisher, "mlp_ce"),
        ],
    )
    def test_agree_with_ours(self, curvlinops, kind, ours, name):
        """Two codes that share nothing. (Under MSE they do not call the same thing the loss of one sample.)"""
        problem = cases.make(name).problem()
        theirs = from_curvlinops(getattr(curvlinops, kind)(**curvlinops_arguments(problem)))
        right = ours(problem).dense()
        assert float((theirs.dense() - right).norm()) < 1e-12 * float(right.norm())

    def test_a_wrong_product_of_theirs_is_refused_here(self, curvlinops):
        """Torch 2.13 loses terms of fused norms under squared error, forward over reverse; the check sees it."""
        problem = cases.make("layer_norm").problem()
        try:
            theirs = from_curvlinops(curvlinops.HessianLinearOperator(**curvlinops_arguments(problem)))
        except InvalidInput as error:
            assert "assumes symmetry" in str(error)  # noqa: PT017
            return
        right = hessian(problem).dense()  # a repaired torch would be as good
        assert float((theirs.dense() - right).norm()) < 1e-12 * float(right.norm())

    def test_kronecker_factors_are_exact_for_one_linear_layer_with_squared_error(self, curvlinops):
        model, x, y = nn.Linear(3, 2, bias=False).double(), torch.randn(20, 3).double(), torch.randn(20, 2).double()
        problem = Problem(model, nn.MSELoss(), (x, y))
        kfac = curvlinops.KFACLinearOperator(**curvlinops_arguments(problem), fisher_type="type-2")
        right = hessian(problem).dense()
        assert torch.allclose(from_curvlinops(kfac).dense(), right, atol=1e-12)
        inverse = from_curvlinops(curvlinops.KFACInverseLinearOperator(kfac, damping=0.0))
        assert torch.allclose(inverse.dense(), torch.linalg.inv(right), atol=1e-9)

    def test_our_solver_on_their_factors(self, curvlinops):
        problem = cases.make("mlp_ce").problem()
        arguments = curvlinops_arguments(problem)
        kfac = curvlinops.KFACLinearOperator(**arguments, fisher_type="type-2")
        ours = top_eigenpairs(from_curvlinops(kfac), k=2)
        dense = torch.linalg.eigvalsh(from_curvlinops(kfac).dense())
        assert torch.allclose(ours.values, dense.flip(0)[:2], rtol=1e-6)


class TestOurs(WithCurvlinops):
    def test_as_theirs_in_every_format(self, curvlinops):
        problem = cases.make("mlp_ce").problem()
        operator = hessian(problem)
        matrix, theirs = operator.dense(), to_curvlinops(operator, problem.layout)
        block = torch.randn(problem.dimension, 3, dtype=torch.float64)
        assert torch.allclose(theirs @ block, matrix @ block, atol=1e-13)
        assert torch.allclose(theirs @ block[:, 0], matrix @ block[:, 0], atol=1e-13)
        parts = [part.clone() for part in problem.layout.split(block[:, 0].contiguous())]
        joined = torch.cat([part.reshape(-1) for part in theirs @ parts])
        assert torch.allclose(joined, matrix @ block[:, 0], atol=1e-13)
        assert torch.allclose((theirs + 2 * theirs) @ block, 3 * matrix @ block, atol=1e-13)
        assert theirs.adjoint() is theirs
        largest = eigsh(theirs.to_scipy(), k=1, which="LA", return_eigenvectors=False)
        assert abs(largest[0] - float(torch.linalg.eigvalsh(matrix)[-1])) < 1e-10

    def test_in_their_inverse(self, curvlinops):
        operator = from_dense(symmetric() @ symmetric()).shift(1.0)
        before = operator.products
        inverse = curvlinops.CGInverseLinearOperator(to_curvlinops(operator), tolerance=1e-12, max_iter=100)
        v = torch.randn(7, dtype=torch.float64)
        assert torch.allclose(operator @ (inverse @ v), v, atol=1e-8)
        assert operator.products > before + 1

    def test_another_layout(self, curvlinops):
        with pytest.raises(InvalidInput, match="operator has size 7"):
            to_curvlinops(from_dense(symmetric()), cases.make("mlp_ce").problem().layout)
