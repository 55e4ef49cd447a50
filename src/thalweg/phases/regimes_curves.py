"""What a segmentation is made from: curves from anywhere, checked, with notes on what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.phases.thresholds import Limit

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Curves:
    """The curves of one run.

    Attributes:
        steps: Increasing, ``(n,)``.
        loss: ``(n,)``; may hold infinities, where it was not finite.
        rate: Learning rate at each of ``steps``; None if unknown.
        at: Steps of the curvature, ``(k,)``, increasing.
        sharpness: Positive, ``(k,)``.
        ratio: Sharpness over the threshold, ``(k,)``; NaN where unknown.
        batch_ratio: Batch sharpness over the threshold, ``(k,)``; NaN where unknown.
        full_batch: Whether each step saw all data.
        momentum: Whether the optimizer keeps a momentum.
        limit: The threshold; None where it was given outright or is unknown.
        notes: What was left out, assumed or odd.
    """

    steps: Steps
    loss: Floats
    rate: Floats | None
    at: Steps
    sharpness: Floats
    ratio: Floats
    batch_ratio: Floats
    full_batch: bool
    momentum: bool
    limit: Limit | None
    notes: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether curvature was measured at all."""
        return len(self.at) > 0


def gather(
    loss: ArrayLike,
    sharpness: ArrayLike | None,
    learning_rate: ArrayLike | None,
    *,
    steps: ArrayLike | None,
    sharpness_steps: ArrayLike | None,
    threshold: ArrayLike | None,
    limit: Limit,
    full_batch: bool,
    batch_sharpness: ArrayLike | None,
    momentum: bool | None = None,
) -> Curves:
    """Check and align the curves; see `thalweg.phases.regimes.segment` for the arguments.

    Raises:
        InvalidInput: Lengths differ, an axis does not increase, or there is no loss.
    """
    notes: list[str] = []
    values = _vector("loss", loss)
    if not len(values) or not np.isfinite(values[0]):
        raise InvalidInput(
            explain("The first loss is missing or not finite", "all others are held against it", "Cut the start off")
        )
    at = _axis("steps", steps, len(values))
    values = np.where(np.isfinite(values), values, np.inf)
    rate = _along("learning_rate", learning_rate, at)
    if rate is not None and ((rate < 0).any() or not np.isfinite(rate).all()):
        raise InvalidInput(
            explain("A learning rate is negative or not finite", "thresholds are its inverse", "Correct the column")
        )
    if rate is None and threshold is None:
        notes.append("The learning rate is not known: nothing can be said about the stability threshold.")
    if limit.assumed and rate is not None and threshold is None:
        notes.append("No optimizer was named: plain gradient descent, with threshold 2 / lr, is assumed.")
    if sharpness is None and batch_sharpness is not None:
        raise InvalidInput(
            explain(
                "Batch sharpness was given without sharpness",
                "the pieces are cut from the sharpness of all data",
                "Pass batch sharpness as sharpness with batch_size=None to use it alone",
            )
        )
    empty = np.empty(0)
    if sharpness is None:
        notes.append("Sharpness was not measured: the loss alone tells little about regimes.")
        return Curves(
            at,
            values,
            rate,
            empty.astype(np.int64),
            empty,
            empty,
            empty,
            full_batch,
            bool(momentum),
            limit,
            tuple(notes),
        )
    curve = _vector("sharpness", sharpness)
    when = _axis("sharpness_steps", sharpness_steps, len(curve)) if sharpness_steps is not None else at
    if len(when) != len(curve):
        raise InvalidInput(
            explain(
                f"There are {len(curve)} values of sharpness for {len(at)} losses",
                "it is not known at which steps they were measured",
                "Pass sharpness_steps=",
            )
        )
    batch = np.full(len(curve), np.nan) if batch_sharpness is None else _vector("batch_sharpness", batch_sharpness)
    if len(batch) != len(curve):
        raise InvalidInput(
            explain(
                f"There are {len(batch)} values of batch sharpness and {len(curve)} of sharpness",
                "they are measured at the same steps",
                "Fill what was not measured with NaN",
            )
        )
    finite = np.isfinite(curve)
    usable = finite & (curve > 0)
    if sharpness_steps is not None and not finite.all():
        notes.append(f"{int((~finite).sum())} of {len(curve)} values of sharpness are not finite, and left out.")
    if (finite & ~usable).any():
        notes.append(f"{int((finite & ~usable).sum())} values of sharpness are not positive, and left out.")
    if not usable.any():
        notes.append("Sharpness holds no usable value: as if it had not been measured.")
    limits = _thresholds(threshold, rate, limit, at, when)
    ratio, batch_ratio = curve / limits, batch / limits
    carries = limit.momentum if momentum is None else momentum
    return Curves(
        at, values, rate, when[usable], curve[usable], ratio[usable], batch_ratio[usable], full_batch, carries, limit,
        tuple(notes),
    )  # fmt: skip


def _thresholds(threshold: ArrayLike | None, rate: Floats | None, limit: Limit, at: Steps, when: Steps) -> Floats:
    if threshold is not None:
        given = _along("threshold", threshold, at)
    elif rate is not None:
        given = limit.at(rate)
    else:
        given = None
    if given is None:
        return np.full(len(when), np.nan)
    if (given <= 0).any():
        raise InvalidInput(
            explain(
                "The stability threshold is not positive somewhere",
                "weight decay alone is then unstable",
                "Look at learning rate and weight decay",
            )
        )
    return given[np.clip(np.searchsorted(at, when, side="right") - 1, 0, len(at) - 1)]


def _vector(name: str, values: ArrayLike) -> Floats:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(explain(f"{name} holds something that is no number", str(error), "Pass numbers")) from error
    if found.ndim != 1:
        raise InvalidInput(explain(f"{name} has shape {found.shape}", "it is one curve", "Pass a 1-D array"))
    return found


def _axis(name: str, given: ArrayLike | None, count: int) -> Steps:
    if given is None:
        return np.arange(count)
    found = _vector(name, given)
    if len(found) != count:
        raise InvalidInput(
            explain(f"{name} has {len(found)} entries for {count} values", "each value has one", "Pass equal lengths")
        )
    if not np.isfinite(found).all() or (found != np.round(found)).any() or (found < 0).any():
        raise InvalidInput(
            explain(f"{name} holds something that is no step", "steps are whole numbers from 0 on", "Correct the axis")
        )
    change = np.diff(found)
    if (change <= 0).any():
        where = int(np.flatnonzero(change <= 0)[0])
        kind = "repeats" if change[where] == 0 else "goes back"
        raise InvalidInput(
            explain(
                f"{name} {kind} after entry {where}, from {found[where]:g} to {found[where + 1]:g}",
                "regimes are stretches of time, and this is not its order",
                "Sort by step and keep one value a step, as thalweg.runs.logs.read_log does",
            )
        )
    return found.astype(np.int64)


def _along(name: str, given: ArrayLike | None, steps: Steps) -> Floats | None:
    """Return one value for each step."""
    if given is None:
        return None
    found = np.asarray(given, dtype=np.float64)
    if found.ndim and found.shape != steps.shape:
        raise InvalidInput(
            explain(
                f"{name} has shape {found.shape} for {len(steps)} losses",
                "each has one",
                "Pass a number or one for each",
            )
        )
    return np.broadcast_to(found, steps.shape).astype(np.float64)
