"""Every solver on every kind of spectrum, and on the fifteen real Hessians: values, residuals, vectors, counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra_of_all_kinds import SPECTRA, expected, symmetric

import cases
from reference import dense
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, from_function
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs
from thalweg.spectra.lobpcg import LOBPCG
from thalweg.spectra.results import Stop

METHODS = {
    "Lanczos": lambda count, size: Lanczos(),
    "short Lanczos": lambda count, size: Lanczos(basis=count + 12),
    "LOBPCG": lambda count, size: LOBPCG(),
    "wide LOBPCG": lambda count, size: LOBPCG(basis=6 * count),
    "one at a time": lambda count, size: LOBPCG(basis=3 * count + 30, block=1),
}


def check(matrix, operator, pairs, k, which, start=0):
    """Everything that a result promises."""
    truth = expected(matrix, min(k, len(matrix)), which)
    norm = max(float(torch.linalg.matrix_norm(matrix, 2)), 1e-300)
    assert pairs.values.shape == truth.shape
    found = pairs.values
    if which == "magnitude":  # ties between +x and -x may be resolved either way
        found, truth = found.abs().sort().values, truth.abs().sort().values
    # An eigenvalue lies within a residual of each value; of two that are closer, either may be the one.
    assert bool(((found - truth).abs() <= 2 * pairs.residuals.max() + 1e-9 * norm).all())
    assert float(pairs.residuals.max()) <= 1.1e-7 * norm
    assert pairs.products == operator.products - start
    explicit = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((explicit <= 1.01 * pairs.residuals + 1e-14 * norm).all()), "residuals are honest"
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-10, rtol=0)
    assert bool((pairs.values.diff() <= 0).all())
    assert pairs.certified
    assert pairs.stop.converged
    assert pairs.why


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_every_solver_on_every_spectrum(method, name, k, which):
    matrix = symmetric(SPECTRA[name])
    operator = from_dense(matrix)
    count = min(2 * k if which == "both" else k, len(matrix))
    pairs = top_eigenpairs(operator, k, which=which, method=METHODS[method](count, len(matrix)))
    check(matrix, operator, pairs, k, which)


@pytest.fixture(scope="module")
def exact():
    """Dense Hessians, each computed once, by code that calls none of ours."""
    kept = {}

    def get(name):
        if name not in kept:
            case = cases.make(name)
            matrix = dense.hessian(case.model, case.whole)
            kept[name] = (matrix + matrix.T) / 2
        return kept[name]

    return get


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "Lanczos"])
@pytest.mark.parametrize("name", cases.NAMES)
def test_every_solver_on_real_hessians(exact, name, method, k, which):
    matrix = exact(name)
    operator = from_dense(matrix)
    count = min(2 * k if which == "both" else k, len(matrix))
    pairs = top_eigenpairs(operator, k, which=which, method=METHODS[method](count, len(matrix)))
    check(matrix, operator, pairs, k, which)


@given(
    values=st.lists(
        # Nothing closer than a tolerance, which a residual cannot tell apart.
        st.sampled_from([-4.0, -1.0, 0.0, 0.0, 0.5, 0.50001, 2.0, 7.0, 1e3])
        | st.integers(-99, 99).map(lambda i: i / 33),
        min_size=1,
        max_size=30,
    ),
    k=st.integers(1, 5),
    which=st.sampled_from(["largest", "smallest", "both"]),
    method=st.sampled_from([Lanczos(), LOBPCG(), LOBPCG(basis=40, block=1)]),
    seed=st.integers(0, 3),
    known=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_any_spectrum_any_solver_with_and_without_start(values, k, which, method, seed, known):
    matrix = symmetric(values, seed)
    start = None
    if known:  # exact eigenvectors of whatever place: the worst guess there is
        start = torch.linalg.eigh(matrix).eigenvectors[:, : min(known, len(values))]
    operator = from_dense(matrix)
    pairs = top_eigenpairs(operator, k, which=which, method=method, seed=seed, start=start)
    check(matrix, operator, pairs, k, which)


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("method", [Lanczos(), LOBPCG(), None], ids=["Lanczos", "LOBPCG", "chosen"])
@pytest.mark.parametrize("name", ["outliers", "repeated", "both signs", "rank deficient"])
def test_deflation_gives_what_comes_next(name, method, which):
    matrix = symmetric(SPECTRA[name])
    values, vectors = torch.linalg.eigh(matrix)
    known = vectors[:, -2:] @ torch.tensor([[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)  # a bad basis
    rest = torch.linalg.multi_dot([vectors[:, :-2], torch.diag(values[:-2]), vectors[:, :-2].T])
    operator = from_dense(matrix)
    pairs = top_eigenpairs(operator, 3, which=which, method=method, deflate=known)
    least = float(values.min()) - 1
    truth = expected(rest + least * (vectors[:, -2:] @ vectors[:, -2:].T), len(values), "largest")[:-2]
    truth = truth[:3] if which == "largest" else torch.cat([truth[:3], truth[-3:]])
    assert float((pairs.values - truth).abs().max()) < 1e-8 * float(values.abs().max())
    assert float((pairs.vectors.T @ vectors[:, -2:]).abs().max()) < 1e-10
    assert pairs.stop.converged


def test_deflating_what_is_no_eigenvector_is_said():
    matrix = symmetric(SPECTRA["outliers"])
    vectors = torch.linalg.eigh(matrix).eigenvectors
    crooked = vectors[:, -1] + 0.05 * vectors[:, -2]
    with pytest.raises(NotConverged, match="no invariant space") as caught:
        top_eigenpairs(from_dense(matrix), 2, deflate=crooked)
    result = caught.value.result
    assert result.stop is Stop.LEAKS
    explicit = (matrix @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert float(result.residuals.max()) > 1e-3
    assert bool((explicit <= 1.01 * result.residuals).all())


def test_deflating_everything_but_one_leaves_one():
    matrix = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    eye = torch.eye(5, dtype=torch.float64)
    for method in (Lanczos(), LOBPCG()):
        left = top_eigenpairs(from_dense(matrix), 3, deflate=eye[:, 1:], method=method)
        assert left.values.tolist() == pytest.approx([1.0])
    with pytest.raises(InvalidInput, match="Nothing is left"):
        top_eigenpairs(from_dense(matrix), deflate=eye)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-7])
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", [Lanczos(), LOBPCG()], ids=["Lanczos", "LOBPCG"])
def test_a_wrong_start_misleads_nobody_even_at_a_loose_tolerance(method, k, which, tol):
    """Exact eigenvectors of what was not asked for have no residual: something else must find out."""
    matrix = symmetric(SPECTRA["both signs"])
    vectors = torch.linalg.eigh(matrix).eigenvectors
    for places in ([0], [100], [-2], [-4, -3], [1, 100], [-3, 2]):
        pairs = top_eigenpairs(from_dense(matrix), k, which=which, tol=tol, method=method, start=vectors[:, places])
        torch.testing.assert_close(pairs.values, expected(matrix, k, which), rtol=tol, atol=0)


@pytest.mark.parametrize("tol", [0, -1.0, 2.0])
def test_a_tolerance_out_of_range_is_refused(tol):
    with pytest.raises(InvalidInput, match="relative residual"):
        top_eigenpairs(from_dense(torch.eye(3)), tol=tol)


@pytest.mark.parametrize("name", ["start", "deflate"])
@pytest.mark.parametrize(
    "given", [torch.ones(4), torch.ones(3, 2, 2), torch.full((3,), torch.nan)], ids=["long", "deep", "nan"]
)
def test_guesses_of_the_wrong_shape_are_refused(name, given):
    with pytest.raises(InvalidInput, match=f"(?i){name} has shape"):
        top_eigenpairs(from_dense(torch.eye(3)), **{name: given})


@pytest.mark.parametrize("method", [Lanczos(), LOBPCG(), LOBPCG(block=1)], ids=["Lanczos", "LOBPCG", "one at a time"])
@pytest.mark.parametrize("bad", [1, 3, 6])
def test_a_nan_product_is_named(method, bad):
    matrix, calls = symmetric(SPECTRA["outliers"]), []

    def product(v):
        calls.append(1)
        return matrix @ v if len(calls) != bad else torch.full_like(v, torch.nan)

    with pytest.raises(NonFinite, match=f"Product number {bad} is not finite"):
        top_eigenpairs(from_function(product, len(matrix)), 2, method=method)


@pytest.mark.parametrize("method", [Lanczos, LOBPCG])
def test_not_converged_carries_the_best_so_far(method):
    matrix = symmetric(np.linspace(0, 1, 300))
    operator = from_dense(matrix)
    with pytest.raises(NotConverged, match="max_products") as caught:
        top_eigenpairs(operator, 3, method=method(max_products=24))
    result = caught.value.result
    assert result.stop is Stop.BUDGET
    assert result.products == operator.products == 24
    explicit = (matrix @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert bool((explicit <= 1.01 * result.residuals).all())
    assert float(result.values[0]) > 0.8
    again = top_eigenpairs(operator, 3, start=result.vectors)
    torch.testing.assert_close(again.values, expected(matrix, 3, "largest"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("k", [1, 4])
def test_an_operator_that_is_not_symmetric_is_found_out(k):
    matrix = symmetric(SPECTRA["outliers"])
    stream = torch.Generator().manual_seed(1)
    crooked = matrix + 0.02 * torch.randn(matrix.shape, dtype=torch.float64, generator=stream).triu(1)
    with pytest.raises(NotConverged, match="not symmetric, changes") as caught:
        top_eigenpairs(from_function(lambda v: crooked @ v, len(matrix)), k)
    result = caught.value.result
    explicit = (crooked @ result.vectors - result.vectors * result.values).norm(dim=0)
    torch.testing.assert_close(result.residuals, explicit, rtol=1e-6, atol=1e-12)
    with pytest.raises(NotConverged):  # its residuals are explicit, and cannot reach the tolerance
        top_eigenpairs(from_function(lambda v: crooked @ v, len(matrix)), k, method=LOBPCG(max_products=200))


@pytest.mark.parametrize("method", [Lanczos(), LOBPCG()], ids=["Lanczos", "LOBPCG"])
def test_float32_on_its_own_terms(method):
    matrix = symmetric(SPECTRA["outliers"]).float()
    pairs = top_eigenpairs(from_dense(matrix), 5, method=method)
    truth = torch.linalg.eigvalsh(matrix.double()).flip(0)[:5]
    torch.testing.assert_close(pairs.values.double(), truth, rtol=1e-5, atol=0)


def test_without_a_certificate_nothing_is_spent_on_one():
    matrix = symmetric(SPECTRA["outliers"])
    sure = top_eigenpairs(from_dense(matrix), 3)
    quick = top_eigenpairs(from_dense(matrix), 3, method=Lanczos(certify=False))
    assert sure.products == quick.products + 1
    assert sure.certified
    assert not quick.certified
    assert torch.equal(sure.values, quick.values)
