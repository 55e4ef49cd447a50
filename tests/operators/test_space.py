"""Inner products of long float32 vectors keep the digits of float32."""

import torch

from thalweg.operators.space import PIECE, Space


def test_long_sums_keep_their_digits():
    """Added up in one go, 2^25 squares miss by 2e-3 on common CPUs; a solver would take that for curvature."""
    v = torch.rand(1 << 25)
    space = Space(len(v))
    right = float(sum(piece.double().square().sum() for piece in v.split(1 << 20)))
    assert abs(float(space.norm(v)) / right**0.5 - 1) < 1e-6
    assert abs(float(space.inner(v[None], v)[0]) / right - 1) < 1e-6


def test_every_length_and_dtype_agrees_with_plain_sums():
    for length in (3, PIECE, PIECE + 1, 3 * PIECE - 7):
        rows = torch.randn(4, length, dtype=torch.float64)
        space = Space(length)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            a = rows.to(dtype)
            assert space.inner(a[1:], a[0]).dtype == dtype
            scale = length**0.5
            assert torch.allclose(space.inner(a[1:], a[0]).double(), rows[1:] @ rows[0], rtol=0, atol=tolerance * scale)
            both = space.inner(a[1:], a[:2])
            assert both.shape == (3, 2)
            assert torch.allclose(both.double(), rows[1:] @ rows[:2].T, rtol=tolerance, atol=tolerance * scale)
            assert torch.allclose(space.norm(a).double(), rows.norm(dim=1), rtol=tolerance, atol=0)
            assert torch.allclose(space.norm(a[0]).double(), rows[0].norm(), rtol=tolerance, atol=0)
            assert space.norm(a[0]).shape == ()
