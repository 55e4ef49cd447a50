"""The tracker on matrices that turn, cross, alternate and grow; and its resume."""

import numpy as np
import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.operators import from_dense
from thalweg.spectra import EigenTracker, top_eigenpairs

N = 120


def frame(seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=stream))[0]


BULK = np.linspace(-0.2, 1.0, N)


def matrix(top, turn=0.0, basis=None):
    """Leading values ``top`` on a frame whose first vectors are turned a little against the bulk."""
    basis = frame() if basis is None else basis
    values = torch.as_tensor(BULK.copy())
    values[: len(top)] = torch.as_tensor(top, dtype=torch.float64)
    generator = torch.zeros(N, N, dtype=torch.float64)
    for i in range(len(top)):
        generator[i, N - 1 - i], generator[N - 1 - i, i] = turn, -turn
    rotated = basis @ torch.linalg.matrix_exp(generator)
    full = rotated @ (values[:, None] * rotated.T)
    return (full + full.T) / 2


def check(pairs, full, tol=1e-3):
    truth = torch.linalg.eigvalsh(full).flip(0)[: len(pairs.values)]
    torch.testing.assert_close(pairs.values, truth, rtol=tol, atol=tol * float(truth[0]))
    explicit = (full @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(explicit, pairs.residuals, rtol=1e-6, atol=1e-12)
    assert float(explicit.max()) <= tol * float(truth.abs().max())


def test_slow_rotation_costs_few_products():
    tracker = EigenTracker(k=3)
    products = []
    for step in range(30):
        full = matrix([5 + 0.02 * step, 4, 3], turn=0.01 * step)
        pairs = tracker.update(from_dense(full))
        check(pairs, full)
        products.append(pairs.products)
    assert np.mean(products[5:]) < 12
    cold = top_eigenpairs(from_dense(full), 3).products
    assert np.mean(products[5:]) < cold / 1.5
    assert tracker.tracks == (0, 1, 2)


def test_alternation_with_period_two():
    tracker = EigenTracker(k=2)
    products = []
    for step in range(20):
        full = matrix([5, 4], turn=0.4 * (step % 2))
        pairs = tracker.update(from_dense(full))
        check(pairs, full)
        products.append(pairs.products)
    assert np.mean(products[4:]) <= 4, "vectors of two steps ago are exact"


def test_crossing_keeps_identities():
    tracker = EigenTracker(k=2)
    for step in range(21):
        full = matrix([5 - 0.1 * step, 4 + 0.013 * step])
        pairs = tracker.update(from_dense(full))
        check(pairs, full)
    assert tracker.tracks == (1, 0)
    assert [e.kind for e in tracker.events] == ["birth", "birth"]


def test_signs_follow_the_last_call():
    tracker = EigenTracker(k=2)
    last = None
    for step in range(10):
        pairs = tracker.update(from_dense(matrix([5, 4], turn=0.02 * step)))
        if last is not None:
            assert bool(((last * pairs.vectors).sum(0) > 0).all())
        last = pairs.vectors


def test_an_eigenvalue_rising_from_the_bulk_is_noticed():
    tracker = EigenTracker(k=2)
    late = 0
    for step in range(60):
        full = matrix([5, 4, 0.5 + 0.1 * step])
        pairs = tracker.update(from_dense(full))
        truth = torch.linalg.eigvalsh(full).flip(0)[:2]
        late += int(float((pairs.values - truth).abs().max()) > 1e-2)
    assert late <= 1
    assert [e.kind for e in tracker.events].count("death") == 1
    assert 2 in tracker.tracks


def test_the_number_grows_to_hold_all_above_the_threshold():
    tracker = EigenTracker(k=1, threshold=0.9)
    full = matrix([10, 9.5, 9.2, 5, 3])
    pairs = tracker.update(from_dense(full), limit=10.0)
    assert len(pairs.values) == 4, "three above 9, and the first below to show that nothing is missing"
    check(pairs, full)
    capped = EigenTracker(k=1, threshold=0.9, max_k=2).update(from_dense(full), limit=10.0)
    assert len(capped.values) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("when", [1, 2, 7])
def test_resume_is_bit_identical(dtype, when):
    matrices = [matrix([5, 4 + 0.1 * t, 3], turn=0.05 * t).to(dtype) for t in range(12)]
    whole, part = EigenTracker(k=2), EigenTracker(k=2)
    straight = [whole.update(from_dense(m)) for m in matrices]
    for m in matrices[:when]:
        part.update(from_dense(m))
    resumed = EigenTracker(k=2)
    resumed.load_state_dict(part.state_dict())
    for m, expected in zip(matrices[when:], straight[when:]):
        pairs = resumed.update(from_dense(m))
        assert torch.equal(pairs.values, expected.values)
        assert torch.equal(pairs.vectors, expected.vectors)
        assert pairs.products == expected.products
    assert resumed.tracks == whole.tracks


def test_small_operators_and_zero():
    tracker = EigenTracker(k=4)
    assert tracker.update(from_dense(torch.diag(torch.tensor([2.0, 1.0])))).values.tolist() == [2.0, 1.0]
    zero = EigenTracker(k=2)
    for _ in range(3):
        assert zero.update(from_dense(torch.zeros(9, 9, dtype=torch.float64))).values.abs().max() < 1e-12


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 3, "max_k": 2}, {"tol": 0}, {"threshold": -1.0}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InvalidInput):
        EigenTracker(**arguments)
