"""What the manifest says of a run that a recorder writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.problem import Problem
from thalweg.runs.manifest import Manifest, plain
from thalweg.runs.retention import Retention
from thalweg.runs.sketches import Projection


def describe(
    name: str,
    tensors: Mapping[str, Tensor],
    model: nn.Module | Problem,
    optimizer: torch.optim.Optimizer | None,
    *,
    retention: Retention,
    projection: Projection,
    dtype: torch.dtype | None,
    steps: int | None,
    config: dict[str, Any],
) -> Manifest:
    """Put the model, the optimizer and the settings of a recorder into a manifest.

    Args:
        name: Of the run.
        tensors: What is recorded.
        model: Where it comes from.
        optimizer: What trains it, or None. Its settings are those of now; learning rates are among the scalars.
        retention: What is kept.
        projection: How.
        dtype: What weights are stored in, or None for their own.
        steps: Updates to do, if known.
        config: The caller's own.
    """
    module = model.model if isinstance(model, Problem) else model
    problem: dict[str, Any] = {
        "model": type(module).__name__,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
    }
    if isinstance(model, Problem):
        problem |= {"samples": model.samples, "summary": repr(model)}
    rule: dict[str, Any] = {"type": "unknown"}
    optimizer = bare(optimizer)
    if optimizer is not None:
        groups = [{key: v for key, v in group.items() if key != "params"} for group in optimizer.param_groups]
        rule = {"type": f"torch.optim.{type(optimizer).__name__}", "groups": plain(groups)}
    return Manifest(
        name=name,
        rule=in_words(optimizer),
        steps=steps or 0,
        config=config,
        loop={
            "rule": rule,
            "recorder": plain(retention) | {"dtype": plain(dtype)},
            "projection": plain(projection),
            "tensors": [[key, list(t.shape), plain(t.dtype).removeprefix("torch.")] for key, t in tensors.items()],
        },
        seeds={"projection": projection.seed},
        fingerprints=model.fingerprint() if isinstance(model, Problem) else {},
        problem=problem,
    )


def in_words(optimizer: torch.optim.Optimizer | None) -> str:
    """Name an optimizer and its main settings.

    Example:
        >>> in_words(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9))
        'SGD, learning rate 0.1, momentum 0.9'
    """
    if optimizer is None:
        return "an optimizer that was not told"
    optimizer = bare(optimizer) or optimizer
    group = optimizer.param_groups[0]
    shown = {"lr": "learning rate", "momentum": "momentum", "betas": "betas", "weight_decay": "weight decay"}
    return ", ".join(
        [type(optimizer).__name__, *(f"{words} {plain(group[key])}" for key, words in shown.items() if group.get(key))]
    )


def bare(optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
    """Return what is inside an optimizer that wraps another one, as those of accelerate and Lightning do."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer
