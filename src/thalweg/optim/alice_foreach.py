"""The arithmetic of `alice_arithmetic.advance` on lists of tensors: one kernel for many tensors an operation.

The same operations in the same order, hence the same numbers. Everything that is rare (regularisers, fixed bounds,
half precision) goes through the tensors one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, advance, inverse
from thalweg.optim.alice_settings import Coefficients


def plain(k: Coefficients, piece: Piece) -> bool:
    """Whether a piece takes the common road."""
    modes = k.hess_comp in ("abs", "rms", "zero") and k.limit_method == "adam"
    even = piece.rest is None and piece.gradient.dtype == piece.mean.dtype
    return modes and even and not (k.w1 or k.w2) and float(k.lower) == 0


def advance_all(pieces: Sequence[Piece], k: Coefficients) -> None:
    """Advance pieces of one device and dtype that share their coefficients."""
    for piece in pieces:
        if not plain(k, piece):
            advance(piece, k)
    _advance([piece for piece in pieces if plain(k, piece)], k)


def _advance(pieces: list[Piece], k: Coefficients) -> None:
    if not pieces:
        return
    gradients, means, squares = [p.gradient for p in pieces], [p.mean for p in pieces], [p.square for p in pieces]
    if k.maximize:
        gradients = list(torch._foreach_neg(gradients))
    scratch = torch._foreach_mul(gradients, gradients)
    torch._foreach_lerp_(squares, scratch, float(k.square))
    torch._foreach_lerp_(means, gradients, float(k.gradient))
    sampled = [p for p in pieces if p.second is not None and p.glass is not None]
    if sampled:
        seen = _all(sampled, "second")
        torch._foreach_mul_(seen, seen)
        torch._foreach_div_(seen, 2 * k.probe)
        torch._foreach_lerp_(_all(sampled, "glass"), seen, float(k.curvature))
    sampled = [p for p in pieces if p.first is not None and p.curvature is not None]
    if sampled:
        seen = _all(sampled, "first")
        torch._foreach_div_(seen, 2 * k.probe)
        if k.hess_comp == "rms":
            torch._foreach_mul_(seen, seen)
        else:
            torch._foreach_abs_(seen)
        torch._foreach_lerp_(_all(sampled, "curvature"), seen, float(k.curvature))
    if k.moving == 0:
        return
    bottoms = _denominators(pieces, means, k)
    torch._foreach_copy_(scratch, squares)
    torch._foreach_sqrt_(scratch)
    torch._foreach_add_(scratch, k.eps)
    torch._foreach_mul_(scratch, float(inverse(k.upper)))
    for bottom in bottoms:
        bottom.nan_to_num_(0.0, math.inf)
    torch._foreach_maximum_(bottoms, scratch)
    steps, centres = [p.descent for p in pieces], [p.parameter for p in pieces]
    torch._foreach_copy_(steps, means)
    torch._foreach_div_(steps, bottoms)
    if k.decay != 1:
        torch._foreach_mul_(centres, float(k.decay))
    torch._foreach_add_(centres, steps, alpha=-k.phi)


def _denominators(pieces: list[Piece], means: list[Tensor], k: Coefficients) -> list[Tensor]:
    h: list[Tensor] | None = None
    if k.hess_comp != "zero":
        h = _all(pieces, "curvature")
        h = list(torch._foreach_sqrt(h)) if k.hess_comp == "rms" else h
    if not k.glass:
        assert h is not None
        return list(torch._foreach_add(h, k.eps))
    below = list(torch._foreach_abs(means))
    torch._foreach_add_(below, k.eps)
    alphas = list(torch._foreach_div(_all(pieces, "glass"), below))
    torch._foreach_mul_(alphas, k.constant)
    if h is None:
        torch._foreach_mul_(alphas, 2)
        torch._foreach_add_(alphas, k.eps)
        return alphas
    roots = list(torch._foreach_add(alphas, h, alpha=2))
    torch._foreach_mul_(roots, alphas)
    torch._foreach_sqrt_(roots)
    torch._foreach_add_(roots, h)
    torch._foreach_add_(roots, alphas)
    torch._foreach_add_(roots, k.eps)
    return roots


def _all(pieces: Sequence[Piece], name: str) -> list[Tensor]:
    return [getattr(piece, name) for piece in pieces]
