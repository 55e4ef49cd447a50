"""Projections: unbiased, of the variance that is stated, the same piece by piece, and exact for small tensors."""

import itertools

import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.runs.sketches import Projection


def vectors(n=4000, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=stream, dtype=torch.float64)
    return x, 0.6 * x + 0.8 * torch.randn(n, generator=stream, dtype=torch.float64)


def test_mean_and_variance_over_seeds():
    x, y = vectors()
    k, draws = 64, 600
    found = torch.tensor(
        [float(p.apply("w", x) @ p.apply("w", y)) for p in (Projection(k, seed) for seed in range(draws))],
        dtype=torch.float64,
    )
    exact = x @ y
    variance = ((x @ x) * (y @ y) + exact**2 - 2 * (x**2 @ y**2)) / k
    assert abs(found.mean() - exact) < 4 * (variance / draws).sqrt()
    assert abs(found.var() / variance - 1) < 4 * (2 / draws) ** 0.5


def test_pieces_add_up_and_the_map_is_linear():
    x, y = vectors()
    projection = Projection(128, seed=3)
    whole = projection.apply("w", x)
    cuts = [0, 1, 129, 2048, 4000]
    pieces = sum(projection.apply("w", x[a:b], a, 4000) for a, b in itertools.pairwise(cuts))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        projection.apply("w", 2 * x - y), 2 * whole - projection.apply("w", y), rtol=0, atol=1e-12
    )


def test_buckets_and_signs_are_uniform_and_tensors_differ():
    projection = Projection(16)
    one = torch.ones(1, dtype=torch.float64)
    counts = torch.zeros(16)
    signs = 0.0
    for i in range(2000):
        entry = projection.apply("w", one, i, 8000)
        counts += entry.abs().float()
        signs += float(entry.sum())
    assert ((counts - 125) ** 2 / 125).sum() < 45  # chi-square with 15 degrees of freedom: beyond once in 10^4
    assert abs(signs) < 4 * 2000**0.5
    x, _ = vectors()
    assert not torch.equal(projection.apply("a", x), projection.apply("b", x))


def test_small_tensors_are_exact():
    x = torch.randn(5, 4, dtype=torch.float32)
    assert torch.equal(Projection(20).apply("w", x), x.double().reshape(-1))
    assert torch.equal(Projection(20).apply("w", x[2], 8, 20)[8:12], x[2].double())


@pytest.mark.parametrize("size", [0, 1.5, True, 1 << 31])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(InvalidInput, match="size of the projection"):
        Projection(size)
