"""In which regime a run was, when, and how sure that is: `segment`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thalweg.phases.catapults import find_catapults
from thalweg.phases.regimes_curves import gather
from thalweg.phases.regimes_result import Regimes
from thalweg.phases.regimes_segmenter import TRANSIENT, Segmenter
from thalweg.phases.thresholds import Limit, limit
from thalweg.rules import Rule


def segment(
    loss: ArrayLike,
    sharpness: ArrayLike | None = None,
    learning_rate: ArrayLike | None = None,
    *,
    steps: ArrayLike | None = None,
    sharpness_steps: ArrayLike | None = None,
    rule: Rule | Limit | str | None = None,
    kappa: float | None = None,
    threshold: ArrayLike | None = None,
    decay_in_curvature: bool = False,
    batch_size: int | None = None,
    samples: int | None = None,
    batch_sharpness: ArrayLike | None = None,
    cutoff: float | None = None,
    penalty: float = 1.0,
    transient: float = TRANSIENT,
) -> Regimes:
    r"""Cut a run into regimes: transient, saturation, sharpening, edge of stability, reduction, divergence.

    ``y = \log_{10} \lambda`` is cut into straight pieces over ``x = \log_{10}(1 + t)``, with 80 points and a penalty
    ``9 \sigma^2 \ln 80`` a piece, ``\sigma`` from second differences. Each piece gets the regime that its slope, its
    change and its ratio ``r = \lambda / (\kappa / \eta)`` fit best, in the best order (`regimes_labels`). Where the
    rate jumps, time begins anew; where it varies, ``t`` is ``\sum \eta / \max \eta``. Only ratios and logarithms
    enter: scaling ``\lambda`` and ``1 / \eta`` together changes nothing.

    Args:
        loss: ``(n,)``: of all data, or of each mini-batch.
        sharpness: Largest eigenvalue of the Hessian (of the preconditioned one for Adam and its kin), ``(k,)``, or
            ``(n,)`` with NaN where not measured. Critical sharpness, from forward passes only, serves as well.
        learning_rate: A number, or ``(n,)``.
        steps: Step of each loss, increasing; default ``0, 1, ...``.
        sharpness_steps: Step of each value of sharpness; default ``steps``.
        rule: The optimizer, for ``kappa`` and weight decay: a rule, a name, or a `Limit`.
        kappa: The threshold times the learning rate.
        threshold: The threshold itself, a number or ``(n,)``, in place of ``kappa / eta``.
        decay_in_curvature: Whether coupled weight decay is part of the sharpness.
        batch_size: Samples of a mini-batch; None: all.
        samples: Samples of the data. With a smaller ``batch_size`` the sharpness of all data does not decide about
            the edge: batch sharpness does, or nothing.
        batch_sharpness: ``E_B[g'Hg / g'g]`` at the steps of sharpness, ``(k,)``.
        cutoff: A loss that ends above this has diverged; default 1e5 times the first.
        penalty: Factor on the penalty of a piece.
        transient: Length of the early transient in steps.

    Returns:
        `Regimes`: segments with evidence and confidence, excursions of the loss, flags, and a text.

    Raises:
        InvalidInput: An axis does not increase, lengths differ, a threshold is not positive.

    Example:
        >>> t = np.unique(np.geomspace(1, 5000, 90).astype(int)) - 1
        >>> lam = np.interp(np.log(t + 1), np.log([1, 20, 200, 2000, 5001]), np.log([9, 2, 2, 20, 20]))
        >>> loss = np.exp(-np.arange(5001) / 2000) * np.where(np.arange(5001) % 2, 1.02, 1.0)
        >>> segment(loss, np.exp(lam), 0.1, sharpness_steps=t, rule="gd").order
        ('transient', 'saturation', 'sharpening', 'edge of stability')
    """
    bound = rule if isinstance(rule, Limit) else limit(rule, kappa=kappa, decay_in_curvature=decay_in_curvature)
    full = batch_size is None or (samples is not None and batch_size >= samples)
    curves = gather(
        loss,
        sharpness,
        learning_rate,
        steps=steps,
        sharpness_steps=sharpness_steps,
        threshold=threshold,
        limit=bound,
        full_batch=full,
        batch_sharpness=batch_sharpness,
    )
    found = find_catapults(
        curves.loss,
        steps=curves.steps,
        sharpness=curves.sharpness if curves.known else None,
        sharpness_steps=curves.at if curves.known else None,
        ratio=curves.ratio if full else np.where(np.isfinite(curves.batch_ratio), curves.batch_ratio, curves.ratio),
        momentum=curves.momentum,
        full_batch=full,
        cutoff=cutoff,
    )
    return Segmenter(curves, found, penalty, transient).result()
