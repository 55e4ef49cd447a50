"""Which solver is chosen, and that the reason is on the record."""

import pytest
import torch
from spectra_of_all_kinds import SPECTRA, expected, symmetric

from thalweg.operators import from_dense
from thalweg.problem import memory
from thalweg.spectra.choice import choose
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs
from thalweg.spectra.lobpcg import LOBPCG


def test_from_nothing_and_from_one_vector_lanczos():
    operator = from_dense(symmetric(SPECTRA["outliers"]))
    for start in (None, torch.ones(200).double(), torch.ones(200, 1).double()):
        choice = choose(operator, 3, start)
        assert choice.method.name == "Lanczos"
        pairs = top_eigenpairs(operator, 3, start=start)
        assert pairs.method == "Lanczos"
        assert pairs.why.startswith(choice.why)


@pytest.mark.parametrize(("tol", "method"), [(1e-3, "LOBPCG(basis=14)"), (1e-6, "Lanczos")])
def test_from_a_block_whichever_needs_fewer_products(tol, method):
    matrix = symmetric(SPECTRA["outliers"])
    stream = torch.Generator().manual_seed(0)
    vectors = torch.linalg.eigh(matrix).eigenvectors[:, -2:]
    near = vectors + 1e-4 * torch.randn(vectors.shape, dtype=torch.float64, generator=stream)
    counts = {
        name: top_eigenpairs(from_dense(matrix), 2, tol=tol, method=asked, start=near).products
        for name, asked in {"LOBPCG(basis=14)": LOBPCG(basis=14), "Lanczos": Lanczos()}.items()
    }
    chosen = top_eigenpairs(from_dense(matrix), 2, tol=tol, start=near)
    assert chosen.method == method == min(counts, key=lambda name: counts[name])
    assert "2 vectors" in chosen.why
    assert method in repr(chosen)
    assert chosen.products < top_eigenpairs(from_dense(matrix), 2, tol=tol).products


def test_a_basis_that_does_not_fit_is_cut(monkeypatch):
    matrix = symmetric(SPECTRA["outliers"])
    operator = from_dense(matrix)
    monkeypatch.setattr(memory, "available", lambda device: 2 * 25 * 200 * 8)
    choice = choose(operator, 3)
    assert choice.method.basis == 25
    assert "cut to 25 vectors" in choice.why
    torch.testing.assert_close(top_eigenpairs(operator, 3).values, expected(matrix, 3, "largest"), rtol=1e-8, atol=0)
    monkeypatch.setattr(memory, "available", lambda device: 0)
    least = choose(operator, 3, torch.eye(200)[:, :3], tol=1e-3).method
    assert isinstance(least, LOBPCG)
    assert least.basis == 9, "what the method cannot do without"
    assert choose(operator, 3).method.basis == 5


def test_limits_are_passed_on():
    operator = from_dense(symmetric(SPECTRA["outliers"]))
    for start in (None, torch.eye(200)[:, :3]):
        method = choose(operator, 3, start, tol=1e-3, max_products=77).method
        assert (method.tol, method.max_products) == (1e-3, 77)


def test_what_was_asked_for_is_used_and_named():
    operator = from_dense(symmetric(SPECTRA["outliers"]))
    pairs = top_eigenpairs(operator, 2, method=LOBPCG(basis=20, block=1))
    assert pairs.method == "LOBPCG(basis=20, block=1)"
    assert pairs.why.startswith("asked for")


@pytest.mark.parametrize("which", ["largest", "both"])
def test_a_small_operator_is_no_special_case(which):
    operator = from_dense(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    pairs = top_eigenpairs(operator, 2, which=which, start=torch.eye(2, dtype=torch.float64))
    assert pairs.values.tolist() == pytest.approx([3.0, 1.0])
