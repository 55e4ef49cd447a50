"""The arithmetic of `alice_plain.advance_plain` on lists of tensors: one kernel for many tensors an operation.

The same operations in the same order, hence the same numbers. Everything that is rare (regularisers, fixed bounds,
half precision) goes through the tensors one by one. On the CPU lists are made of blocks, as many as fit into the cache
together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, advance, inverse
from thalweg.optim.alice_layout import block_size
from thalweg.optim.alice_plain import plain
from thalweg.optim.alice_settings import Coefficients
from thalweg.optim.alice_state import cut


def advance_all(pieces: Sequence[Piece], k: Coefficients) -> None:
    """Advance pieces of one device and dtype that share their coefficients."""
    for piece in pieces:
        if not plain(k, piece):
            advance(piece, k)
    for together in _lists([piece for piece in pieces if plain(k, piece)]):
        _advance(together, k)


def _lists(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Yield what is to be advanced at once: everything, or on the CPU what stays in the cache."""
    if not pieces or pieces[0].parameter.device.type != "cpu":
        yield pieces
        return
    together: list[Piece] = []
    count, most = 0, block_size()
    for piece in pieces:
        for block in cut(piece):
            if together and count + block.parameter.numel() > most:
                yield together
                together, count = [], 0
            together.append(block)
            count += block.parameter.numel()
    yield together


def _advance(pieces: list[Piece], k: Coefficients) -> None:
    if not pieces:
        return
    gradients, means, squares = [p.gradient for p in pieces], [p.mean for p in pieces], [p.square for p in pieces]
    if k.maximize:
        gradients = list(torch._foreach_neg(gradients))
    torch._foreach_lerp_(means, gradients, float(k.gradient))
    torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), float(k.square))
    sampled = [p for p in pieces if p.second is not None and p.glass is not None]
    if sampled:
        seen = _all(sampled, "second")
        seen = list(torch._foreach_mul(seen, seen))
        torch._foreach_mul_(seen, 1 / (2 * k.probe))
        torch._foreach_lerp_(_all(sampled, "glass"), seen, float(k.curvature))
    sampled = [p for p in pieces if p.first is not None and p.curvature is not None]
    if sampled:
        seen = list(torch._foreach_mul(_all(sampled, "first"), 1 / (2 * k.probe)))
        if k.hess_comp == "rms":
            torch._foreach_mul_(seen, seen)
        else:
            torch._foreach_abs_(seen)
        torch._foreach_lerp_(_all(sampled, "curvature"), seen, float(k.curvature))
    if k.moving == 0:
        return
    bottoms = _denominators(pieces, means, k)
    for bottom in bottoms:
        bottom.nan_to_num_(0.0, math.inf)
    scratch = list(torch._foreach_rsqrt(squares))
    torch._foreach_reciprocal_(scratch)
    torch._foreach_add_(scratch, k.eps)
    torch._foreach_mul_(scratch, float(inverse(k.upper)))
    torch._foreach_maximum_(bottoms, scratch)
    steps, centres = [p.descent for p in pieces], [p.parameter for p in pieces]
    torch._foreach_copy_(steps, means)
    torch._foreach_div_(steps, bottoms)
    if k.decay != 1:
        torch._foreach_mul_(centres, float(k.decay))
    torch._foreach_add_(centres, steps, alpha=-k.phi)


def _denominators(pieces: list[Piece], means: list[Tensor], k: Coefficients) -> list[Tensor]:
    """Return new tensors, which the caller may write to."""
    h: list[Tensor] | None = None
    if k.hess_comp != "zero":
        h = _all(pieces, "curvature")
        h = list(torch._foreach_sqrt(h)) if k.hess_comp == "rms" else h
    if not k.glass:
        assert h is not None
        return list(torch._foreach_add(h, k.eps))
    below = list(torch._foreach_abs(means))
    torch._foreach_add_(below, k.eps)
    t = list(torch._foreach_div(_all(pieces, "glass"), below))
    del below
    if h is None:
        torch._foreach_mul_(t, 2 * k.constant)
        torch._foreach_add_(t, k.eps)
        return t
    bottoms = list(torch._foreach_add(t, h, alpha=2 / k.constant))
    torch._foreach_mul_(bottoms, t)
    torch._foreach_rsqrt_(bottoms)
    torch._foreach_reciprocal_(bottoms)
    torch._foreach_add_(bottoms, t)
    bottoms = list(torch._foreach_add(h, bottoms, alpha=k.constant))
    torch._foreach_add_(bottoms, k.eps)
    return bottoms


def _all(pieces: Sequence[Piece], name: str) -> list[Tensor]:
    return [getattr(piece, name) for piece in pieces]
