"""What local curvature says about the next step of an optimizer, as far as it can be had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import hessian
from thalweg.optim.virtual import VirtualUpdate
from thalweg.problem.problem import Problem
from thalweg.rules.base import Rule, State
from thalweg.rules.direction import update_direction
from thalweg.rules.edge import edge
from thalweg.rules.live import Source
from thalweg.rules.torch_bridge import from_torch, state_from_torch
from thalweg.spectra.directional import directional_sharpness
from thalweg.spectra.lanczos import top_eigenpairs
from thalweg.spectra.task import Method


def step_direction(
    problem: Problem,
    source: Source,
    w: Tensor,
    state: State | None,
    gradient: Tensor,
    update: VirtualUpdate,
    notes: list[str],
) -> Tensor:
    """``d`` with ``w' = w - lr d``, exact for rules that are known, else from a step of unit rate."""
    try:
        return update_direction(problem, source, w, state, gradient=gradient)
    except InvalidInput:
        if isinstance(source, Rule):
            raise
    whole, half = w - update.step(1.0), w - update.step(0.5)
    if float((whole - 2 * half).norm()) > 1e-3 * float(whole.norm()):
        notes.append("The step is not proportional to the learning rate, so that its curvature depends on it.")
    return whole


def curvature_along(problem: Problem, w: Tensor, direction: Tensor, descent: float, notes: list[str]) -> float:
    """``d'Hd / d'g``; NaN where there is no direction or no second derivative."""
    if not (bool(torch.isfinite(direction).all()) and descent):
        return math.nan
    try:
        rayleigh = float(directional_sharpness(hessian(problem, w), direction))
    except NotDifferentiable as error:
        notes.append(f"There is no curvature to compare with: {error}")
        return math.nan
    return rayleigh * float(direction @ direction) / descent


def effective_sharpness(
    problem: Problem,
    source: Source,
    w: Tensor,
    state: State | None,
    gradient: Tensor,
    method: Method | None,
    seed: int,
    notes: list[str],
) -> tuple[float, float, int, float]:
    """Largest eigenvalue of the effective Hessian as the next update sees it, residual, products, and stable rate."""
    rule, stable = source if isinstance(source, Rule) else None, math.nan
    if rule is None:
        try:
            assert isinstance(source, torch.optim.Optimizer)
            rule = from_torch(source)
            held = [problem.model.get_parameter(name) for name in problem.layout.names]
            state = state_from_torch(source, held)
            state = {k: v.to(w.device, w.dtype) if v.is_floating_point() else v for k, v in state.items()}
        except InvalidInput as error:
            rule = None
            notes.append(f"Its stability threshold is not known, and the sharpness is the Hessian's: {error}")
    try:
        if rule is None:
            pairs = top_eigenpairs(hessian(problem, w), 1, method=method, seed=seed, strict=False)
        else:
            after = rule.update(rule.init(w) if state is None else state, gradient, w)
            found = edge(problem, rule, w, after, method=method, seed=seed, strict=False)
            pairs, stable = found.eigenpairs, found.largest_stable_lr
    except NotDifferentiable:
        return math.nan, math.nan, 0, math.nan
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    if not pairs.stop.converged:
        notes.append(f"The sharpness is known to its residual only, {residual:.1e}: {pairs.stop.value}")
    return value, residual, pairs.products, stable
