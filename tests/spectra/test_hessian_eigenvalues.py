"""The main promise: eigenvalues of real Hessians against dense float64 ones, from a random start, with defaults."""

import pytest
import torch

from cases import NAMES, make
from reference import dense
from thalweg import hessian, top_eigenpairs


@pytest.fixture(scope="module")
def exact():
    """Dense Hessians and their spectra, each computed once, by code that calls none of ours."""
    kept = {}

    def get(name):
        if name not in kept:
            case = make(name)
            matrix = dense.hessian(case.model, case.whole)
            kept[name] = matrix, torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)
        return kept[name]

    return get


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("name", NAMES)
def test_both_ends(exact, name, k):
    matrix, values = exact(name)
    norm = float(values.abs().max())
    with hessian(make(name).problem()) as operator:
        pairs = top_eigenpairs(operator, k, which="both")
        assert pairs.products == operator.products
    k = min(k, len(values))
    truth = torch.cat([values[:k], values[-k:]]) if 2 * k < len(values) else values
    error = (pairs.values - truth).abs() / truth.abs().clamp_min(1e-3 * norm)
    assert float(error.max()) < 1e-8
    explicit = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((explicit <= 1.5 * pairs.residuals + 1e-13 * norm).all()), "residuals are honest"


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("name", NAMES)
def test_one_end(exact, name, k, which):
    _, values = exact(name)
    norm = float(values.abs().max())
    pairs = top_eigenpairs(hessian(make(name).problem()), k, which=which, seed=3)
    k = min(k, len(values))
    truth = values[:k] if which == "largest" else values[-k:]
    error = (pairs.values - truth).abs() / truth.abs().clamp_min(1e-3 * norm)
    assert float(error.max()) < 1e-8
