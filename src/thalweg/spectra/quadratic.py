r"""The mean of quadratic forms ``w'Mw`` over independent probes, with its variance and skewness.

For probes of fixed length in N dimensions the sample's own standard deviation is a poor judge of the error: with ten
probes and one dominant eigenvalue its error is as large as itself. The products between *different* probes know more,
without another product of the operator. With ``F_ij = w_i' (M - m I) w_j``, ``m`` the mean eigenvalue and
``|w|^2 = N``,

    E F_ij^2 = |M - m I|_F^2,     E F_ij F_jl F_li = tr (M - m I)^3,      i, j, l different,

and a quadratic form has variance ``2 |M - m I|_F^2 N / (N + 2)`` and, to leading order in N, third cumulant
``8 tr (M - m I)^3``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FormMoments:
    """Mean of ``tr M`` estimates, variance of that mean, and its skewness."""

    mean: float
    variance: float
    skewness: float


def moments_of(blocks: list[tuple[Tensor, Tensor]], dimension: int) -> FormMoments:
    """Return the moments of the mean of ``N w'Mw / w'w``, which is unbiased for ``tr M``.

    Args:
        blocks: Pairs ``(W'MW, W'W)``, each ``(b, b)`` in float64. Pairs of probes are formed within blocks only, so
            that a caller with many probes need not keep them all.
        dimension: ``N``, of the space that the probes are uniform in.
    """
    count = sum(len(forms) for forms, _ in blocks)
    mean = sum(float((forms.diagonal() / lengths.diagonal()).sum()) for forms, lengths in blocks) / count
    squares = cubes = 0.0
    pairs = triples = 0
    for forms, lengths in blocks:
        size = len(forms)
        root = (dimension / lengths.diagonal()).sqrt()
        deviation = (forms - mean * lengths) * root[:, None] * root[None, :]
        deviation.fill_diagonal_(0.0)
        squares += float(deviation.square().sum())
        cubes += float((deviation @ deviation * deviation).sum())
        pairs += size * (size - 1)
        triples += size * (size - 1) * (size - 2)
    norm = squares / pairs
    skewness = 8 * cubes / triples / (2 * norm) ** 1.5 / count**0.5 if norm > 0 and triples else 0.0
    return FormMoments(dimension * mean, 2 * norm * dimension / (dimension + 2) / count, skewness)
