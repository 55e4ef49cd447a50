"""The arithmetic of `alice_arithmetic.advance` for the published modes, in as few operations as they take.

With ``t = rho / (|g| + eps)`` and the constant ``c``, the denominator is

    h + c (t + (t (t + 2h/c))^(1/2)) + eps,

so that the constant costs no operation of its own. Every operation writes to the step itself or to one scratch tensor
that stays in the cache, and to the averages; what the probes found is only read. Roots are taken as ``1/rsqrt``: on
the CPU ``sqrt`` is a library's, which takes five times as long at 0, where coordinates without curvature are.
`alice_foreach` does the same to lists of tensors, operation by operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, inverse
from thalweg.optim.alice_settings import Coefficients


def plain(k: Coefficients, piece: Piece) -> bool:
    """Whether a piece takes the common road."""
    if isinstance(k.moving, Tensor):  # capturable: nothing may be asked of a number
        return False
    modes = k.hess_comp in ("abs", "rms", "zero") and k.limit_method == "adam"
    even = piece.rest is None and piece.gradient.dtype == piece.mean.dtype
    return modes and even and not (k.w1 or k.w2) and float(k.lower) == 0


@dataclass(frozen=True)
class Numbers:
    """The coefficients of one parameter's step as 0-d tensors, which reach an operation sooner than numbers do."""

    one: Tensor
    eps: Tensor
    twice: Tensor
    inverse_upper: Tensor
    inverse_probe: Tensor
    decay: Tensor

    @staticmethod
    @lru_cache(maxsize=32)
    def of(k: Coefficients, dtype: torch.dtype) -> Numbers:
        """Round coefficients to the dtype of the averages, as an operation with a number would."""
        values = (1.0, k.eps, 2 * k.constant, float(inverse(k.upper)), 1 / (2 * k.probe), float(k.decay))
        return Numbers(*(torch.tensor(value, dtype=dtype) for value in values))


def advance_plain(piece: Piece, k: Coefficients, n: Numbers, scratch: Tensor) -> None:
    """Advance one piece.

    Args:
        piece: For which `plain` holds.
        k: Its coefficients.
        n: The same as tensors.
        scratch: Two tensors of the piece's shape, stacked, whose contents are lost.
    """
    gradient = piece.gradient.neg() if k.maximize else piece.gradient
    mean, square, glass, curvature, bottom = piece.mean, piece.square, piece.glass, piece.curvature, piece.descent
    t = scratch[0]
    mean.lerp_(gradient, float(k.gradient))
    square.lerp_(torch.mul(gradient, gradient, out=t), float(k.square))
    if piece.second is not None and glass is not None:
        glass.lerp_(torch.mul(piece.second, piece.second, out=t).mul_(n.inverse_probe), float(k.curvature))
    if piece.first is not None and curvature is not None:
        torch.mul(piece.first, n.inverse_probe, out=t)
        curvature.lerp_(t.mul_(t) if k.hess_comp == "rms" else t.abs_(), float(k.curvature))
    if k.moving == 0:
        return
    h = None
    if k.hess_comp != "zero":
        assert curvature is not None
        h = torch.sqrt(curvature, out=scratch[1]) if k.hess_comp == "rms" else curvature
    if k.glass:
        assert glass is not None
        torch.div(glass, torch.abs(mean, out=t).add_(n.eps), out=t)
        if h is None:
            torch.mul(t, n.twice, out=bottom)
        else:
            torch.add(t, h, alpha=2 / k.constant, out=bottom).mul_(t).rsqrt_()
            torch.addcdiv(t, n.one, bottom, out=bottom)
            torch.add(h, bottom, alpha=k.constant, out=bottom)
        bottom.add_(n.eps)
    else:
        assert h is not None
        torch.add(h, n.eps, out=bottom)
    bottom.nan_to_num_(0.0, math.inf)  # fmax would do, without vector instructions
    torch.rsqrt(square, out=t).reciprocal_().add_(n.eps).mul_(n.inverse_upper)
    torch.maximum(bottom, t, out=bottom)
    torch.div(mean, bottom, out=bottom)
    if k.decay != 1:
        piece.parameter.mul_(n.decay)
    piece.parameter.add_(bottom, alpha=-k.phi)
