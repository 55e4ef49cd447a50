"""What a recorded run tells about its trajectory beside the checkpoints: decay, learning rates, and bursts of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg.errors import InvalidInput, ThalwegError
from thalweg.runs.run import Run
from thalweg.trajectories.map import trajectory_map
from thalweg.trajectories.nulls import Decay
from thalweg.trajectories.oscillation import Burst, oscillation
from thalweg.trajectories.recorded_sketches import recorded_bursts

COUPLED = {"GradientDescent", "HeavyBall", "Nesterov", "torch.optim.SGD"}
DECOUPLED = {"AdamW", "torch.optim.AdamW"}


def decay_of(run: Run, first: int, last: int) -> Decay | None:
    """Return the weight decay of a run between two steps.

    Args:
        run: The run.
        first: Step of the first checkpoint.
        last: Step of the last.

    Returns:
        None where the decay null does not hold or is not known: rules that scale decay by the gradient's history,
        dampened momentum, groups of parameters with different decay, or steps without a learning rate.
    """
    settings = settings_of(run.manifest.loop.get("rule") or {})
    if settings is None:
        return None
    rate = _rates(run, first, last)
    return None if rate is None else Decay(**settings, learning_rate=rate)


def bursts_of(run: Run) -> tuple[Burst, ...]:
    """Return what the recorded bursts of a run say; none where it was recorded without."""
    try:
        sketched = recorded_bursts(run.path) if run.folder.sketches.exists() else []
    except InvalidInput:
        return ()
    settings = settings_of(run.manifest.loop.get("rule") or {})
    found: list[Burst] = []
    for one in sketched:
        path = trajectory_map(one.grams()).path()
        rate = None if settings is None else _rates(run, int(path.steps[0]), int(path.steps[-1]) + 1)
        found += oscillation(path, rate, settings["momentum"] if settings is not None else 0.0)
    return tuple(found)


def settings_of(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``weight_decay``, ``momentum`` and ``coupled`` of a rule as a manifest describes it; None where unknown.

    Example:
        >>> settings_of({"type": "HeavyBall", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3})
        {'weight_decay': 0.001, 'momentum': 0.9, 'coupled': True}
        >>> settings_of({"type": "Adam", "weight_decay": 1e-3}) is None
        True
    """
    kind = rule.get("type")
    if kind not in COUPLED | DECOUPLED:
        return None
    groups = rule.get("groups") or [rule]
    found = []
    for group in groups:
        if not isinstance(group, Mapping) or group.get("dampening"):
            return None
        one = {"weight_decay": float(group.get("weight_decay") or 0.0), "momentum": 0.0, "coupled": kind in COUPLED}
        if kind in COUPLED:
            one["momentum"] = float(group.get("momentum") or 0.0)
        found.append(one)
    return found[0] if all(one == found[0] for one in found) else None


def _rates(run: Run, first: int, last: int) -> float | np.ndarray | None:
    try:
        data = run.data
    except ThalwegError:
        return None
    if "learning_rate" not in data:
        return None
    rates = data["learning_rate"].reindex(step=np.arange(first, last)).to_numpy().astype(np.float64)
    if not len(rates) or not np.isfinite(rates).all():
        return None
    return float(rates[0]) if (rates == rates[0]).all() else rates
