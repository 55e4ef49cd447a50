"""Projections: unbiased, of the variance that is stated, the same piece by piece, and exact for small tensors."""

import numpy as np
import pytest
import torch

from thalweg.errors import InvalidInput
from thalweg.runs.sketches import TILE, Projection, project


def vectors(n=4000, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=stream, dtype=torch.float64)
    return x, 0.6 * x + 0.8 * torch.randn(n, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("k", [64, 1100])  # two ways to rotate
def test_mean_and_variance_over_seeds(k):
    x, y = vectors(8 * k)
    draws = 400
    found = torch.tensor(
        [float(p.of("w", x)[0] @ p.of("w", y)[0]) for p in (Projection(k, seed) for seed in range(draws))],
        dtype=torch.float64,
    )
    exact = x @ y
    bound = ((x @ x) * (y @ y) + exact**2) / k
    assert abs(found.mean() - exact) < 4 * (bound / draws).sqrt()
    assert 0.4 < found.var() / bound < 1 + 4 * (2 / draws) ** 0.5


def test_tiles_add_up_and_the_map_is_linear():
    x, y = vectors(TILE + 5000)
    projection = Projection(1024, seed=3)
    whole, square = projection.of("w", x)
    pieces = project(x[:TILE].numpy(), 1024, 3, "w", 0) + project(x[TILE:].numpy(), 1024, 3, "w", 1)
    np.testing.assert_array_equal(whole.numpy(), pieces)
    assert square == pytest.approx(float(x @ x), rel=1e-12)
    torch.testing.assert_close(projection.of("w", 2 * x - y)[0], 2 * whole - projection.of("w", y)[0])
    assert not torch.equal(whole, projection.of("other", x)[0])


def test_small_tensors_are_exact():
    x = torch.randn(5, 4, dtype=torch.float32)
    assert torch.equal(Projection(20).of("w", x)[0], x.double().reshape(-1))


@pytest.mark.parametrize("size", [0, 1.5, True, TILE + 1])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(InvalidInput, match="size of the projection"):
        Projection(size)
