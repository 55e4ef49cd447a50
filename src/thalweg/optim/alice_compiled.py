"""The arithmetic of `alice_arithmetic.advance` as one kernel, made by torch.compile from the pure update.

Every number is read and written once a step: eight or ten reads and four to six writes, where the operations one by
one make about sixty passes. Compiling takes a C++ compiler (CPU) or Triton (CUDA), and a minute at the first steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, advance, inverse
from thalweg.optim.alice_plain import plain
from thalweg.optim.alice_settings import Coefficients


def advance_compiled(piece: Piece, k: Coefficients) -> None:
    """Advance one parameter by the compiled kernel; what is rare (see `alice_plain.plain`) goes step by step."""
    if not plain(k, piece):
        advance(piece, k)
        return
    # Tensors, because a new number would be a new program.
    numbers = [k.gradient, k.square, k.curvature, 2 * k.probe, inverse(k.upper), k.decay, k.eps, k.constant, k.phi]
    scalars = [torch.tensor(float(number), dtype=piece.mean.dtype) for number in numbers]
    glass = piece.glass if k.glass or piece.second is not None else None
    curvature = piece.curvature if k.hess_comp != "zero" or piece.first is not None else None
    _program()(
        piece.parameter.detach(),
        piece.gradient,
        piece.descent,
        piece.mean,
        piece.square,
        glass,
        curvature,
        piece.second if glass is not None else None,
        piece.first if curvature is not None else None,
        *scalars,
        use=k.hess_comp,
        use_glass=k.glass,
        moving=bool(k.moving),
        maximize=k.maximize,
    )


@cache
def _program() -> Callable[..., Any]:
    program: Callable[..., Any] = torch.compile(_update, dynamic=True)
    return program


def _update(
    centre: Tensor,
    gradient: Tensor,
    descent: Tensor,
    mean: Tensor,
    square: Tensor,
    glass: Tensor | None,
    curvature: Tensor | None,
    second: Tensor | None,
    first: Tensor | None,
    new_gradient: Tensor,
    new_square: Tensor,
    new_curvature: Tensor,
    twice_probe: Tensor,
    inverse_upper: Tensor,
    decay: Tensor,
    eps: Tensor,
    constant: Tensor,
    phi: Tensor,
    *,
    use: str,
    use_glass: bool,
    moving: bool,
    maximize: bool,
) -> None:
    """Do what `advance` does, on whole tensors and without its shortcuts."""
    gradient = -gradient if maximize else gradient
    square.lerp_(gradient * gradient, new_square)
    mean.lerp_(gradient, new_gradient)
    if second is not None and glass is not None:
        glass.lerp_(second * second / twice_probe, new_curvature)
    if first is not None and curvature is not None:
        seen = first / twice_probe
        curvature.lerp_(seen * seen if use == "rms" else seen.abs(), new_curvature)
    if not moving:
        return
    h = None
    if use != "zero":
        assert curvature is not None
        h = curvature.sqrt() if use == "rms" else curvature
    if use_glass:
        assert glass is not None
        alpha = glass / (mean.abs() + eps) * constant
        bottom = 2 * alpha + eps if h is None else (alpha * (alpha + 2 * h)).sqrt() + h + alpha + eps
    else:
        assert h is not None
        bottom = h + eps
    bottom = torch.fmax(bottom, (square.sqrt() + eps) * inverse_upper)
    descent.copy_(mean / bottom)
    centre.copy_(centre * decay - phi * descent)
