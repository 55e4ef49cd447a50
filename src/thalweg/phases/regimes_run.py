"""Regimes of a run that thalweg recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.phases.regimes import segment
from thalweg.phases.regimes_result import Regimes
from thalweg.runs.rules import recorded_rule

if TYPE_CHECKING:
    import xarray as xr

    from thalweg.runs import Run


def regimes_of(run: Run | str | Path, **settings: Any) -> Regimes:
    """Segment a recorded run: its loss, its sharpness and the threshold that it recorded beside it.

    Args:
        run: A run, or the path of its folder; it may still be going on.
        settings: Passed on to `segment`: ``penalty``, ``transient``, ``cutoff``.

    Returns:
        `Regimes`.

    Raises:
        RunFolderError: The path is no run folder.
        InvalidInput: The run holds no loss.

    Example:
        >>> import torch, thalweg as tw
        >>> model = torch.nn.Linear(2, 1)
        >>> problem = tw.Problem(model, torch.nn.MSELoss(), (torch.randn(9, 2), torch.randn(9, 1)))
        >>> regimes_of(tw.train(problem, tw.rules.GradientDescent(lr=0.1), steps=3)).flags
        ('no sharpness',)
    """
    from dataclasses import asdict

    from thalweg.runs import open_run

    opened = open_run(run) if isinstance(run, (str, Path)) else run
    return regimes_of_data(opened.data, asdict(opened.manifest), **settings)


def regimes_of_data(data: xr.Dataset, manifest: Mapping[str, Any], **settings: Any) -> Regimes:
    """Segment a run's data with what its manifest says about optimizer, batches and measures.

    A plain Hessian under a preconditioning rule is not held against the threshold, and sharpness on part of the data
    is said to be that.

    Args:
        data: As ``open_run(path).data`` gives it.
        manifest: Its manifest as a mapping.
        settings: Passed on to `segment`.
    """
    if "loss" not in data or not len(data["step"]):
        raise InvalidInput(explain("The run holds no loss", "there is nothing to segment", "Wait for its first step"))
    loop = manifest.get("loop") or {}
    rule = recorded_rule(loop.get("rule") or {})
    spectrum: Mapping[str, Any] = next((m for m in loop.get("measures") or [] if m.get("type") == "Spectrum"), {})
    comparable = bool(spectrum.get("preconditioned", True)) or rule is None or not hasattr(rule, "beta2")
    samples, batch = (manifest.get("problem") or {}).get("samples"), loop.get("batch_size")
    steps = data["step"].to_numpy()
    loss = data["loss"].to_numpy().astype(np.float64)
    measured = np.isfinite(loss)
    if not measured[-1] and str(manifest.get("state", "")) == "failed":
        measured[-1] = True  # the loss that ended the run
    found = {
        name: data[name].to_numpy().astype(np.float64) if name in data else None
        for name in ("sharpness", "learning_rate", "stability_threshold", "batch_sharpness")
    }
    sharp = found["sharpness"]
    known = np.isfinite(sharp) if sharp is not None else np.zeros(len(steps), dtype=bool)
    threshold = _filled(found["stability_threshold"], measured) if comparable else None
    regimes = segment(
        loss[measured],
        sharp[known] if sharp is not None and known.any() else None,
        _filled(found["learning_rate"], measured) if comparable else None,
        steps=steps[measured],
        sharpness_steps=steps[known] if known.any() else None,
        rule=rule,
        threshold=threshold,
        decay_in_curvature=True,
        batch_size=batch if isinstance(batch, int) else None,
        samples=samples if isinstance(samples, int) else None,
        batch_sharpness=found["batch_sharpness"][known]
        if found["batch_sharpness"] is not None and known.any()
        else None,
        **settings,
    )
    notes = list(regimes.notes)
    if not comparable:
        notes.append("Sharpness is that of the plain Hessian, which does not compare with this optimizer's threshold.")
    part = spectrum.get("samples")
    if isinstance(part, int) and isinstance(samples, int) and part < samples:
        notes.append(f"Sharpness was measured on {part:,} of {samples:,} samples.")
    return replace(regimes, notes=tuple(notes))


def _filled(values: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
    """Return the chosen values with gaps filled from the one before (or, at the start, after); None if all is gap."""
    if values is None:
        return None
    kept = values[chosen]
    known = np.flatnonzero(~np.isnan(kept))
    if not len(known):
        return None
    source = known[np.clip(np.searchsorted(known, np.arange(len(kept)), side="right") - 1, 0, len(known) - 1)]
    filled: np.ndarray = kept[source]
    return filled
