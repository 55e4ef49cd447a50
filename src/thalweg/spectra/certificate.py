"""Residuals confirmed by fresh products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg import _rng
from thalweg.spectra.results import Stop
from thalweg.spectra.task import Array, Found, Task, not_finite

DOUBT = 10.0
"""Factor by which one random combination may understate what is wrong; see `certify`."""


@dataclass(frozen=True)
class Certificate:
    """Residual norms that hold, the stop reason with them, and what to say."""

    residuals: Array
    stop: Stop
    note: str


def certify(task: Task, found: Found) -> Certificate:
    r"""Compare stored products with a fresh one, ``A sum_i g_i v_i``, of a random combination of all vectors.

    Solvers recombine stored products. Where these are right, ``A v_i = theta_i v_i + r_i`` with the ``r_i`` they
    imply, and the fresh product of any combination follows. With random signs and sizes ``g_i`` in [1/2, 3/2], what
    is wrong in any of the pairs shows in one product. If ten times what shows could matter for a tolerance, every
    pair gets a fresh product of its own, and its residual is the one reported.

    Args:
        task: The operator and the tolerance.
        found: The pairs.

    Returns:
        A `Certificate`.

    Raises:
        NonFinite: The fresh product is.
    """
    implied = found.residuals
    count = len(found.values)
    if not count:
        return Certificate(implied, found.stop, "")
    limits = task.limits(found.values, found.norm)
    stream = _rng.generator(task.seed, "certificate")
    drawn = torch.rand(2, count, generator=stream, dtype=torch.float64)
    mix = (0.5 + drawn[0]) * torch.where(drawn[1] < 0.5, -1.0, 1.0)
    fresh = _product(task, mix.to(found.rows) @ found.rows)
    shared = torch.from_numpy(found.shares).to(found.rows)
    scaled = mix * torch.from_numpy(found.values)
    expected = scaled.to(found.rows) @ found.rows + (mix.to(found.rows) @ shared) @ found.defects
    length = task.operator.space.norm
    wrong = float(length(fresh - expected))
    if count == 1:
        size = abs(float(mix[0]))
        exact = (fresh - scaled.to(found.rows) @ found.rows) / size
        return _judge(task, found, np.array([float(length(exact))]), "residual measured by a fresh product")
    if DOUBT * wrong <= float(np.maximum(limits, implied).min()):
        note = "residuals confirmed by one fresh product of a random combination"
        return Certificate(np.hypot(implied, 2 * wrong), found.stop, note)  # no g is below 1/2
    measured = np.array(
        [float(length(_product(task, v) - theta * v)) for v, theta in zip(found.rows, found.values.tolist())]
    )
    return _judge(task, found, measured, "residuals measured by fresh products")


def _product(task: Task, v: Tensor) -> Tensor:
    image = task.operator.matvec(v)
    if not bool(torch.isfinite(task.operator.space.norm(image))):
        raise not_finite(task.operator.products)
    return image


def _judge(task: Task, found: Found, measured: Array, note: str) -> Certificate:
    """Keep the stop reason unless the measured residuals contradict it by more than rounding."""
    allowed = np.maximum(task.limits(found.values, found.norm), found.residuals) + 8 * task.rounding(found.norm)
    if not found.stop.converged or bool((measured <= 1.01 * allowed).all()):
        return Certificate(measured, found.stop, note)
    if task.against is not None:
        worst = found.rows[int(np.argmax(measured - allowed))]
        leak = float(task.operator.space.all_sum(task.against @ _product(task, worst)).norm())
        if leak > 0.5 * float((measured - allowed).max()):
            return Certificate(measured, Stop.LEAKS, note)
    return Certificate(measured, Stop.CONTRADICTED, note)
