"""Alice's arithmetic on one piece of one parameter: everything but the gradients.

Per coordinate, with averages ``g`` of the gradient, ``s`` of its square, ``rho`` of the glass density and ``h`` of the
curvature, the step minimises ``-|g| d + h d^2/2 + c rho^(1/2) d^(3/2)``:

    alpha = constant * rho / (|g| + eps),      d = |g| / (alpha + h + (alpha (alpha + 2h))^(1/2) + eps)

Bounds that are multiples of ``|g|`` bound the denominator, so that the step keeps the form ``g / denominator`` and
needs neither a sign nor a second division. `alice_foreach` does the same to lists of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.optim.alice_settings import Coefficients, Scalar


@dataclass
class Piece:
    """Views of equal shape into one parameter and what belongs to it.

    Args:
        parameter: The centre.
        gradient: At the look-ahead point.
        descent: The last step, ``-delta``.
        mean: Average of the gradient.
        square: Average of its square.
        glass: Average of the density, where it is kept.
        curvature: Average of the finite-difference curvature, where it is kept.
        second: ``g+ + g- - 2 g0`` of this batch, where it was sampled.
        first: ``g+ - g-`` of this batch, where it was sampled.
        rest: What a half-precision parameter lacks of the float32 centre.
        reach: The look-ahead point is ``parameter - reach * descent``.
    """

    parameter: Tensor
    gradient: Tensor
    descent: Tensor
    mean: Tensor
    square: Tensor
    glass: Tensor | None
    curvature: Tensor | None
    second: Tensor | None
    first: Tensor | None
    rest: Tensor | None
    reach: float


def place(
    parameter: Tensor, centre: Tensor, descent: Tensor | None, rest: Tensor | None, reach: float, probe: Tensor | None
) -> None:
    """Move a parameter to ``centre - reach * descent + probe``."""
    if rest is not None:
        where = centre.to(rest.dtype).add_(rest)
        if descent is not None:
            where.add_(descent, alpha=-reach)
        parameter.copy_(where if probe is None else where.add_(probe))
        return
    if descent is not None and reach != 0:
        torch.add(centre, descent, alpha=-reach, out=parameter)
        if probe is not None:
            parameter.add_(probe)
    elif probe is not None:
        torch.add(centre, probe, out=parameter)
    else:
        parameter.copy_(centre)


def mirror(parameter: Tensor, centre: Tensor, descent: Tensor | None, reach: float) -> None:
    """Move a parameter from one probe to the other, through the look-ahead point ``centre - reach * descent``."""
    ahead = centre if descent is None or reach == 0 else torch.add(centre, descent, alpha=-reach)
    parameter.lerp_(ahead, 2.0)  # ahead + (ahead - parameter)


def advance(piece: Piece, k: Coefficients) -> None:
    """Take this batch's gradient and samples into the averages, find the step and advance the centre by it."""
    centre = piece.parameter if piece.rest is None else piece.parameter.to(piece.rest.dtype).add_(piece.rest)
    gradient = piece.gradient.to(piece.mean.dtype)
    if k.maximize:
        gradient = gradient.neg()
    scratch = torch.mul(gradient, gradient)
    piece.square.lerp_(scratch, weight(k.square, scratch))
    if k.w1 or k.w2:
        look = torch.add(centre, piece.descent, alpha=-piece.reach)
        gradient = look.lt(0).to(look.dtype).mul_(-2 * k.w1).add_(k.w1).add_(look, alpha=k.w2).add_(gradient)
    piece.mean.lerp_(gradient, weight(k.gradient, scratch))
    if piece.second is not None and piece.glass is not None:
        seen = piece.second.square_().div_(2 * k.probe)
        piece.glass.lerp_(seen, weight(k.curvature, scratch))
    if piece.first is not None and piece.curvature is not None:
        piece.curvature.lerp_(_observed(piece.first, k), weight(k.curvature, scratch))
    if isinstance(k.moving, float) and k.moving == 0:
        return
    find(piece, k, scratch)
    if isinstance(k.moving, Tensor):
        piece.descent.mul_(k.moving)
    if isinstance(k.decay, Tensor) or k.decay != 1:
        centre.mul_(k.decay)
    centre.add_(piece.descent, alpha=-k.phi)
    if piece.rest is not None:
        piece.parameter.copy_(centre)
        torch.sub(centre, piece.parameter, out=piece.rest)


def find(piece: Piece, k: Coefficients, scratch: Tensor) -> None:
    """Write the bounded step into ``piece.descent``; a length that is not a number becomes the upper bound."""
    mean, bottom = piece.mean, denominator(piece, k)
    if k.limit_method == "fixed":
        size = mean.abs().div_(bottom).nan_to_num_(math.inf, math.inf)
        size = torch.maximum(torch.minimum(size, as_tensor(k.upper, size)), as_tensor(k.lower, size))
        torch.mul(size, mean.sign(), out=piece.descent)
        return
    bottom.nan_to_num_(0.0, math.inf)  # fmax would do, without vector instructions
    if k.limit_method == "adam":
        torch.sqrt(piece.square, out=scratch).add_(k.eps)
        low = scratch / k.upper if isinstance(k.upper, Tensor) else scratch * float(inverse(k.upper))
        torch.maximum(bottom, low, out=bottom)
        if isinstance(k.lower, Tensor) or k.lower > 0:
            torch.minimum(bottom, scratch.div_(k.lower), out=bottom)
    else:
        torch.maximum(bottom, as_tensor(inverse(k.upper), bottom), out=bottom)
        torch.minimum(bottom, as_tensor(inverse(k.lower), bottom), out=bottom)
    torch.div(mean, bottom, out=piece.descent)


def denominator(piece: Piece, k: Coefficients) -> Tensor:
    """Return ``alpha + h + (alpha (alpha + 2h))^(1/2) + eps``, a tensor of its own."""
    h = curvature_used(piece, k)
    if not k.glass:
        assert h is not None
        return h + k.eps
    assert piece.glass is not None
    alpha = piece.mean.abs().add_(k.eps)
    torch.div(piece.glass, alpha, out=alpha).mul_(k.constant)
    if h is None:
        return alpha.mul_(2).add_(k.eps)
    root = torch.add(alpha, h, alpha=2).mul_(alpha).sqrt_()
    return root.add_(h).add_(alpha).add_(k.eps)


def curvature_used(piece: Piece, k: Coefficients) -> Tensor | None:
    """Return the curvature that the step goes by, none for "zero"."""
    if k.hess_comp == "zero":
        return None
    assert piece.curvature is not None
    if k.hess_comp == "abs":
        return piece.curvature
    if k.hess_comp == "rms":
        return piece.curvature.sqrt()
    if k.hess_comp == "hutchinson":
        return piece.curvature.abs()
    assert piece.glass is not None
    return (piece.curvature - piece.glass / (2 * k.probe)).clamp_min_(0).sqrt_()


def _observed(first: Tensor, k: Coefficients) -> Tensor:
    """Return what one batch adds to the average of the curvature, from ``g+ - g-`` (times the signs: hutchinson)."""
    found = first.div_(2 * k.probe)
    if k.hess_comp == "hutchinson":
        return found.add_(k.w2) if k.w2 else found
    if k.hess_comp in ("rms", "rms_deleaked"):
        found = found.square_()
        return found.add_(k.w2**2) if k.w2 else found
    found = found.abs_()
    return found.add_(k.w2) if k.w2 else found


def weight(scalar: Scalar, like: Tensor) -> Scalar:
    """Return a weight that ``lerp_`` takes: a tensor must have the dtype of what it weighs."""
    return scalar.to(like.dtype) if isinstance(scalar, Tensor) else scalar


def inverse(scalar: Scalar) -> Scalar:
    """Return ``1/scalar``, infinite at 0."""
    return 1 / scalar if isinstance(scalar, Tensor) or scalar else math.inf


def as_tensor(scalar: Scalar, like: Tensor) -> Tensor:
    """Return a 0-d tensor of the dtype of ``like``."""
    return scalar.to(like.dtype) if isinstance(scalar, Tensor) else torch.tensor(scalar, dtype=like.dtype)
