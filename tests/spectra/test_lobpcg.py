"""What LOBPCG promises beyond right values: how many products, what starts and preconditioners are worth."""

import numpy as np
import pytest
import torch
from spectra_of_all_kinds import SPECTRA, expected, symmetric

from thalweg.errors import InvalidInput
from thalweg.operators import from_dense
from thalweg.operators.base import Operator
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs
from thalweg.spectra.lobpcg import LOBPCG
from thalweg.spectra.subspace import Subspace


class Logged(Operator):
    """A matrix that writes down the width of every block it multiplies."""

    def __init__(self, matrix):
        super().__init__(len(matrix), matrix.dtype, "cpu")
        self.matrix, self.widths = matrix, []

    def _matvec(self, v):
        self.widths.append(1)
        return self.matrix @ v

    def _matmat(self, block):
        self.widths.append(block.shape[1])
        return self.matrix @ block


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("name", ["outliers", "both signs", "negative"])
def test_an_iteration_costs_at_most_one_product_per_pair(name, k):
    operator = Logged(symmetric(SPECTRA[name]))
    pairs = top_eigenpairs(operator, k, method=LOBPCG(tol=1e-8))
    iterations, certificate = operator.widths[:-1], operator.widths[-1]
    assert iterations[0] == k, "the random block"
    assert max(iterations) == k, "never more than one product per pair, however many vectors are recombined"
    assert certificate == 1
    assert pairs.products == sum(operator.widths) == operator.products


def test_converged_pairs_cost_nothing_more():
    """Soft locking: the outliers converge first, and iterations get cheaper one by one."""
    operator = Logged(symmetric(SPECTRA["outliers"]))
    top_eigenpairs(operator, 6, method=LOBPCG())
    widths = operator.widths[:-1]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 1
    assert len(set(widths)) >= 3


def test_steps_are_worth_their_place():
    """Without the third block (P) this would be steepest ascent; a wide basis needs fewer products still."""
    matrix = symmetric(np.r_[[3, 2.9, 2.8], np.linspace(0, 2.5, 397)])
    counts = {}
    for name, method in {"three blocks": LOBPCG(), "wide": LOBPCG(basis=60)}.items():
        counts[name] = top_eigenpairs(from_dense(matrix), 3, method=method).products
    steepest = _steepest(matrix, 3)
    assert counts["three blocks"] < 0.7 * steepest
    assert counts["wide"] < counts["three blocks"]


def _steepest(matrix, k, tol=1e-7):
    """Block steepest ascent with a Rayleigh-Ritz step: LOBPCG without P. Counts products of new directions."""
    stream = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(len(matrix), k, dtype=torch.float64, generator=stream)).Q
    products = k
    for _ in range(1000):
        values, turn = torch.linalg.eigh(x.T @ matrix @ x)
        x = x @ turn
        residual = matrix @ x - x * values
        active = residual.norm(dim=0) > tol * values.abs()
        if not bool(active.any()):
            break
        products += int(active.sum())
        basis = torch.linalg.qr(torch.cat([x, residual[:, active]], dim=1)).Q
        x = basis @ torch.linalg.eigh(basis.T @ matrix @ basis).eigenvectors[:, -k:]
    return products


def test_a_good_start_saves_most_of_the_products():
    matrix = symmetric(SPECTRA["outliers"])
    vectors = torch.linalg.eigh(matrix).eigenvectors[:, -4:]
    stream = torch.Generator().manual_seed(2)
    near = vectors + 1e-7 * torch.randn(vectors.shape, dtype=torch.float64, generator=stream)
    lanczos, cold = (top_eigenpairs(from_dense(matrix), 4, method=m) for m in (Lanczos(), LOBPCG()))
    warm = top_eigenpairs(from_dense(matrix), 4, start=near, method=LOBPCG(basis=28))
    assert warm.products < 0.5 * cold.products
    assert warm.products < 0.9 * lanczos.products
    torch.testing.assert_close(warm.values, expected(matrix, 4, "largest"), rtol=1e-10, atol=0)


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("place", ["bottom", "middle", "below the top"])
def test_exact_eigenvectors_of_other_values_cannot_mislead(place, which):
    matrix = symmetric(SPECTRA["both signs"])
    vectors = torch.linalg.eigh(matrix).eigenvectors
    start = {"bottom": vectors[:, :3], "middle": vectors[:, 90:93], "below the top": vectors[:, -4:-1]}[place]
    pairs = top_eigenpairs(from_dense(matrix), 2, which=which, method=LOBPCG(), start=start)
    torch.testing.assert_close(pairs.values, expected(matrix, 2, which), rtol=1e-9, atol=0)


def test_the_look_for_what_was_missed_is_what_saves_it():
    matrix = symmetric(SPECTRA["both signs"])
    start = torch.linalg.eigh(matrix).eigenvectors[:, -3:-1]
    blind = top_eigenpairs(from_dense(matrix), 2, method=LOBPCG(check_missed=False), start=start)
    assert float((blind.values - expected(matrix, 2, "largest")).abs().max()) > 0.5
    seeing = top_eigenpairs(from_dense(matrix), 2, method=LOBPCG(), start=start)
    assert "missed" in seeing.why


def test_a_preconditioner_saves_products():
    diagonal = torch.linspace(1, 1e4, 400, dtype=torch.float64)
    matrix = torch.diag(diagonal) + symmetric(np.linspace(-1, 1, 400))
    plain = top_eigenpairs(from_dense(matrix), 3, which="smallest", method=LOBPCG(tol=1e-6, basis=30))
    inverse = LOBPCG(tol=1e-6, basis=30, preconditioner=lambda r: r / diagonal[:, None])
    helped = top_eigenpairs(from_dense(matrix), 3, which="smallest", method=inverse)
    truth = expected(matrix, 3, "smallest")
    for found in (plain, helped):
        assert float((found.values - truth).abs().max()) < 1e-6 * 1e4
    assert helped.products < 0.5 * plain.products


def test_an_indefinite_preconditioner_is_refused_with_a_remedy():
    matrix = symmetric(SPECTRA["outliers"])
    flips = torch.where(torch.arange(200) % 3 == 0, 1.0, -1.0).double()[:, None]
    with pytest.raises(InvalidInput, match=r"indefinite.*absolute"):
        top_eigenpairs(from_dense(matrix), 3, method=LOBPCG(preconditioner=lambda r: flips * r))


def test_a_preconditioner_that_points_nowhere_is_passed_over():
    """Positive definite, but nearly blind to most of the space: the plain residual steps in."""
    matrix = symmetric(SPECTRA["outliers"])
    blind = torch.full((200, 1), 1e-12, dtype=torch.float64)
    blind[:3] = 1.0
    pairs = top_eigenpairs(from_dense(matrix), 3, method=LOBPCG(preconditioner=lambda r: blind * r))
    torch.testing.assert_close(pairs.values, expected(matrix, 3, "largest"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrong", [lambda r: r[:-1], lambda r: r * torch.nan], ids=["shape", "nan"])
def test_a_preconditioner_that_is_none_is_refused(wrong):
    with pytest.raises(InvalidInput, match="preconditioner gave"):
        top_eigenpairs(from_dense(symmetric(SPECTRA["outliers"])), 2, method=LOBPCG(preconditioner=wrong))


@pytest.mark.parametrize("field", ["tol", "max_products", "basis", "block"])
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(InvalidInput, match=field):
        LOBPCG(**{field: 0})


def test_a_basis_without_room_for_three_blocks_is_refused():
    with pytest.raises(InvalidInput, match="basis=8"):
        top_eigenpairs(from_dense(symmetric(SPECTRA["outliers"])), 3, method=LOBPCG(basis=8))


@pytest.mark.parametrize("spread", [1e-3, 1e-7, 1e-11])
def test_the_basis_stays_orthonormal_on_nearly_dependent_blocks(spread):
    matrix = symmetric(SPECTRA["outliers"])
    stream = torch.Generator().manual_seed(3)
    space = Subspace(from_dense(matrix), 40)
    first = torch.randn(4, 200, dtype=torch.float64, generator=stream)
    space.add(first)
    near = first + spread * torch.randn(4, 200, dtype=torch.float64, generator=stream)
    assert space.add(torch.cat([near, near[:2], torch.zeros(1, 200, dtype=torch.float64)])) == 4
    rows = space.rows[: space.size]
    torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64), atol=1e-13, rtol=0)
    torch.testing.assert_close(space.images[:8], rows @ matrix, atol=1e-12, rtol=0)


def test_recombined_products_stay_products():
    """After many restarts, stored products still are products: what the certificate relies on, checked by hand."""
    matrix = symmetric(np.linspace(0, 1, 150))
    quick = top_eigenpairs(from_dense(matrix), 2, method=LOBPCG(certify=False))
    explicit = (matrix @ quick.vectors - quick.vectors * quick.values).norm(dim=0)
    torch.testing.assert_close(quick.residuals, explicit, rtol=1e-3, atol=1e-13)


def test_lanczos_remains_cheaper_from_nothing():
    """Why the automatic choice takes it without a start."""
    matrix = symmetric(SPECTRA["outliers"])
    lanczos = top_eigenpairs(from_dense(matrix), 5, method=Lanczos())
    block = top_eigenpairs(from_dense(matrix), 5, method=LOBPCG(basis=45))
    assert lanczos.products < block.products
