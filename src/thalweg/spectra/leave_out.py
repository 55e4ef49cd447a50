r"""Estimates that use every probe for deflation and every probe as a sample, with a variance that is unbiased.

Probe i alone gives ``t_i = tr(P_i B) + w_i' (I - P_i) B (I - P_i) w_i`` (rescaled), where ``P_i`` projects on the span
of ``A w_j`` for ``j != i``. Their mean is XTrace (Epperly, Tropp and Webber, 2024, SIAM J. Matrix Anal. Appl. 45, 1,
section 2). The error that is usually quoted for it, the standard deviation of the ``t_i`` over ``sqrt(k)``, treats them
as independent. They are not: intervals made of it cover 65 to 90 per cent where 95 are stated. What is missing can be
estimated without bias and without another product.

Let ``b_ij`` be ``t_i`` with probe j left out of the projection as well, and ``d_ij = t_i - b_ij``. Given all probes
but i, both ``t_i`` and ``b_ij`` have mean ``tr B``; hence given all but i, ``E d_ij = 0``. Write
``t_i - tr B = f_i + d_ij`` and ``t_j - tr B = f_j + d_ji`` with ``f_i = b_ij - tr B``, which does not depend on
``w_j``. Then

*   ``E f_i f_j = 0``: given the other probes, they are independent with mean zero;
*   ``E f_i d_ji = 0``: ``d_ji`` has mean zero given everything but ``w_j``; likewise ``E f_j d_ij = 0``.

So ``Cov(t_i, t_j) = E d_ij d_ji``, and with the sample variance ``s^2`` of the ``t_i``, whose mean is their variance
less their covariance,

    Var(mean t) = E [ s^2 / k + mean_{i<j} d_ij d_ji ].

Nothing is assumed of ``B`` or of its size relative to ``A``: only that probes are independent and each unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PRIOR = 10


@dataclass(frozen=True)
class Forms:
    """What the formulas need of a symmetric ``B``, ``k`` probes ``W`` and a basis ``Q``; all small, float64.

    Attributes:
        inside: ``Q'BQ``.
        mixed: ``Q'BW``.
        outside: ``W'BW``.
        coordinates: ``Q'W``.
        overlap: ``W'W``.
        directions: ``S``: what each probe alone has brought, as unit columns.
        dimension: ``P``.
    """

    inside: Tensor
    mixed: Tensor
    outside: Tensor
    coordinates: Tensor
    overlap: Tensor
    directions: Tensor
    dimension: int


def mean_and_variance(forms: Forms) -> tuple[float, float]:
    """Return the mean of the ``t_i`` and an estimate of its variance.

    The variance is that of the module's derivation, made careful in three ways, which matter for few probes.

    *   A negative covariance counts as zero.
    *   Where the ``t_i`` agree better than the residual matrix ``M`` lets them, their variance is averaged, as if ten
        more probes had shown it, with the one that its norm implies, ``2 N |M - m I|_F^2 / (N + 2)`` in N dimensions
        with ``m`` the mean eigenvalue. The norm comes from ``k (k - 1) / 2`` values ``w_i' M w_j``, which know it
        better than the k values ``w_i' M w_i`` do, and from one vector less of deflation, which errs upwards.
    *   Where the mean lies on the wrong side of what the whole basis has captured, given the sign of ``m``, the gap
        counts as error: with as many probes as the rank, it is all of it.
    """
    k = forms.directions.shape[1]
    t, values, lengths = _without_one(forms)
    level = float((values / lengths).mean())
    b, dots, crosses, sizes = _without_two(forms)
    d = (t[:, None] - b).fill_diagonal_(0.0)
    pairs = k * (k - 1)
    covariance = max(float((d * d.T).sum()) / pairs, 0.0)
    room = forms.dimension - k + 2
    deviations = ((crosses - level * dots).square() / (sizes * sizes.T)).fill_diagonal_(0.0)
    implied = 2 * room / (room + 2) * room**2 * float(deviations.sum()) / pairs
    single = float(t.var(correction=1)) + covariance
    single += max(implied - single, 0.0) * _PRIOR / (_PRIOR + k)
    beyond = float(t.mean() - forms.inside.trace())
    gap = beyond if beyond * level < 0 else 0.0
    return float(t.mean()), single / k + covariance * (1 - 1 / k) + gap**2


def _without_one(forms: Forms) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each probe i: ``t_i``; ``r' B r`` and ``r' r`` of its part ``r`` outside the span of the others."""
    s = forms.directions
    inside = forms.coordinates - s * (s * forms.coordinates).sum(0)
    values = forms.outside.diagonal() - 2 * (inside * forms.mixed).sum(0) + (inside * (forms.inside @ inside)).sum(0)
    lengths = forms.overlap.diagonal() - inside.square().sum(0)
    captured = forms.inside.trace() - (s * (forms.inside @ s)).sum(0)
    room = forms.dimension - forms.directions.shape[1] + 1
    return captured + room * values / lengths, values, lengths


def _without_two(forms: Forms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each pair, ``b_ij``; ``r_i'r_j``, ``r_i'Br_j`` and ``r_i'r_i``, all outside the span of the rest."""
    s, w, k = forms.directions, forms.coordinates, forms.directions.shape[1]
    b, dots, crosses, sizes = (torch.zeros(k, k, dtype=torch.float64) for _ in range(4))
    pulled, whole, room = forms.inside @ s, forms.inside.trace(), forms.dimension - k + 2
    for i in range(k):
        # v_j: direction j made orthogonal to direction i, so that the two span what probes i and j have brought.
        cosines = s.T @ s[:, i]
        scale = (1 - cosines.square()).clamp_min(1e-14).rsqrt()
        scale[i] = 0.0
        v = scale * (s - s[:, i : i + 1] * cosines)
        bv = scale * (pulled - pulled[:, i : i + 1] * cosines)
        mine = w[:, i] - s[:, i] * (s[:, i] @ w[:, i])
        shadow = mine @ v
        first = mine[:, None] - v * shadow
        moved = (forms.inside @ mine)[:, None] - bv * shadow
        second = w - torch.outer(s[:, i], s[:, i] @ w) - v * (v * w).sum(0)
        value = forms.outside[i, i] - 2 * forms.mixed[:, i] @ first + (first * moved).sum(0)
        sizes[i] = forms.overlap[i, i] - first.square().sum(0)
        captured = whole - s[:, i] @ pulled[:, i] - (v * bv).sum(0)
        b[i] = captured + room * value / sizes[i]
        dots[i] = forms.overlap[i] - (first * second).sum(0)
        crosses[i] = forms.outside[i] - (first * forms.mixed).sum(0) - forms.mixed[:, i] @ second
        crosses[i] += (moved * second).sum(0)
    return b, dots, crosses, sizes
