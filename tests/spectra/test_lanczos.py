"""Lanczos against dense eigenvalues: repeated, clustered, negative, wide, zero; both ends; what it refuses."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, from_function
from thalweg.spectra import Lanczos, Stop, top_eigenpairs


def symmetric(eigenvalues, seed=0):
    values = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    stream = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=stream))
    matrix = turn @ (values[:, None] * turn.T)
    return (matrix + matrix.T) / 2


def expected(matrix, k, which):
    values = torch.linalg.eigvalsh(matrix).flip(0)
    if which == "largest":
        return values[:k]
    if which == "smallest":
        return values[-k:]
    if which == "both":
        return torch.cat([values[:k], values[-k:]]) if 2 * k < len(values) else values
    chosen = values[values.abs().argsort(descending=True)[:k]]
    return chosen.sort(descending=True).values


rng = np.random.default_rng(0)
SPECTRA = {
    "outliers": np.r_[[10, 8, 5, 4, 3.9], rng.uniform(-0.3, 0.7, 295)],
    "repeated": np.r_[[5, 5, 5, 3, 3], rng.uniform(-0.3, 0.7, 295)],
    "cluster": np.r_[1 + 1e-6 * np.arange(6), rng.uniform(-0.5, 0.9, 294)],
    "linear": np.linspace(-1, 1, 300),
    "wide": 10.0 ** np.linspace(2, -1, 300),
    "identity": np.ones(60),
    "two values": np.r_[np.ones(50), -np.ones(50)],
    "zero": np.zeros(40),
    "tiny": np.array([2.0, -1.0, 0.5]),
    "one": np.array([-3.0]),
}


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_match_dense(name, k, which):
    matrix = symmetric(SPECTRA[name])
    operator = from_dense(matrix)
    pairs = top_eigenpairs(operator, k, which=which)
    truth = expected(matrix, min(k, len(matrix)), which)
    assert pairs.values.shape == truth.shape
    norm = float(torch.linalg.eigvalsh(matrix).abs().max())
    if which == "magnitude":  # ties between +x and -x may be resolved either way
        assert float((pairs.values.abs().sort().values - truth.abs().sort().values).abs().max()) <= 1e-9 * norm
        truth = pairs.values
    assert float((pairs.values - truth).abs().max()) <= 1e-8 * max(float(truth.abs().min()), 1e-3 * norm)
    assert pairs.products == operator.products
    explicit = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((explicit <= 1.01 * pairs.residuals + 50 * 2.2e-16 * max(norm, 1e-300)).all()), "residuals are honest"
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-10, rtol=0)


@given(
    values=st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 0.5000001, 2.0, 7.0, 1e3]), min_size=1, max_size=40),
    k=st.integers(1, 6),
    which=st.sampled_from(["largest", "smallest", "both", "magnitude"]),
    seed=st.integers(0, 5),
)
@example(values=[0.5, 0.5000001], k=1, which="largest", seed=0)  # closer than a residual
@settings(max_examples=80, deadline=None)
def test_any_spectrum_with_repeats(values, k, which, seed):
    matrix = symmetric(values, seed)
    pairs = top_eigenpairs(from_dense(matrix), k, which=which, seed=seed)
    truth = expected(matrix, min(k, len(values)), which)
    norm = max(abs(v) for v in values)
    if which == "magnitude":  # ties in magnitude may be resolved either way
        torch.testing.assert_close(
            pairs.values.abs().sort().values, truth.abs().sort().values, atol=1e-8 * max(norm, 1e-300), rtol=0
        )
    else:
        # Two eigenvalues closer than a residual cannot be told apart; each value is within its residual of one.
        error = (pairs.values - truth).abs()
        assert bool((error <= pairs.residuals + 1e-8 * max(norm, 1e-300)).all())


def test_default_k1_is_right_where_two_steps_are_not():
    """A peer's default stops after two Lanczos steps and returns a quarter of the top eigenvalue."""
    values = np.r_[[0.526], 0.4 * rng.random(2000) ** 6]
    pairs = top_eigenpairs(from_dense(symmetric(values)))
    assert pairs.values.item() == pytest.approx(0.526, rel=1e-8)


def test_float32_reaches_its_own_tolerance():
    matrix = symmetric(SPECTRA["outliers"]).float()
    pairs = top_eigenpairs(from_dense(matrix), 5)
    truth = torch.linalg.eigvalsh(matrix.double()).flip(0)[:5]
    torch.testing.assert_close(pairs.values.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["outliers", "linear", "wide"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_products_are_not_many_more_than_arpack_needs(name, k):
    matrix = symmetric(SPECTRA[name])
    ours, theirs = from_dense(matrix), from_dense(matrix)
    pairs = top_eigenpairs(ours, k, method=Lanczos(tol=1e-6))
    basis = max(3 * k + 30, 2 * k + 1)
    scipy.sparse.linalg.eigsh(theirs.to_scipy(), k, which="LA", tol=1e-6, ncv=min(basis, 299))
    assert ours.products <= 1.3 * theirs.products + 12  # the 12: the probe for repeated eigenvalues
    assert pairs.stop.converged


def test_start_speeds_up_but_cannot_mislead():
    matrix = symmetric(SPECTRA["outliers"])
    vectors = torch.linalg.eigh(matrix).eigenvectors
    wrong = top_eigenpairs(from_dense(matrix), start=vectors[:, 0])  # an exact eigenvector of the other end
    assert wrong.values.item() == pytest.approx(10, rel=1e-8)
    right = top_eigenpairs(from_dense(matrix), start=vectors[:, -1])
    assert right.products <= top_eigenpairs(from_dense(matrix)).products


def test_seed_does_not_change_the_answer_and_the_same_seed_repeats_it():
    operator = from_dense(symmetric(SPECTRA["cluster"]))
    a, b, c = (top_eigenpairs(operator, 3, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.values, b.values)
    torch.testing.assert_close(a.values, c.values, rtol=1e-9, atol=0)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    top_eigenpairs(from_dense(symmetric(SPECTRA["tiny"])), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_not_converged_is_an_error_that_carries_what_there_is():
    operator = from_dense(symmetric(np.linspace(0, 1, 300)))
    with pytest.raises(NotConverged, match="max_products") as caught:
        top_eigenpairs(operator, 2, method=Lanczos(max_products=10))
    assert caught.value.result.stop is Stop.BUDGET
    loose = top_eigenpairs(operator, 2, method=Lanczos(max_products=10), strict=False)
    assert loose.products == 10
    assert float(loose.residuals.max()) > 1e-7


def test_without_the_probe_copies_are_missed():
    """The probe is what finds them: this is the failure it exists for."""
    matrix = symmetric(SPECTRA["identity"])
    matrix[:10, :10] += 1e-3 * torch.eye(10)
    method = Lanczos(check_multiplicity=False, tol=1e-4)
    missed = top_eigenpairs(from_dense(matrix), 3, method=method).values
    found = top_eigenpairs(from_dense(matrix), 3).values
    truth = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=0)
    assert float((missed - truth).abs().max()) > 1e-5


def test_nan_products_are_named():
    operator = from_function(lambda v: v * float("nan"), 5)
    with pytest.raises(NonFinite, match="Product number 1"):
        top_eigenpairs(operator)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 1, "which": "top"}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InvalidInput):
        top_eigenpairs(from_dense(torch.eye(3)), **arguments)


def test_bad_method_is_refused():
    with pytest.raises(InvalidInput, match="tol=0"):
        Lanczos(tol=0)


def test_result_draws_itself():
    figure = top_eigenpairs(from_dense(symmetric(SPECTRA["tiny"])), 2).plot()
    assert figure.layout.yaxis.title.text == "eigenvalue"
