"""The phase of one short run, from its curves of loss and sharpness."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.errors import InvalidInput, explain

Window = Literal["paper", "catapult"]
CUTOFF = 1e5
"""A loss above this counts as diverged. A catapult lifts the loss of a net of width w to order w at most."""
FIRST = 3
"""Last step of the catapult window where the loss has no peak."""


class Phase(StrEnum):
    """What loss and sharpness did within the first steps; the value is the name to show."""

    REDUCTION = "sharpness reduction"
    LOSS_CATAPULT = "loss catapult"
    CATAPULT = "loss-sharpness catapult"
    DIVERGENCE = "divergence"
    INCREASE = "sharpness increase only"


def cutoff_for(width: int) -> float:
    """Return ``1e5 max(1, width / 2048)``, the loss that no catapult of a net of this width reaches."""
    return CUTOFF * max(1.0, width / 2048)


def diverges(loss: ArrayLike, cutoff: float = CUTOFF) -> bool:
    """Whether ``not (L_t <= cutoff)`` for some ``t >= 1``, the last step included; NaN and infinity diverge.

    Args:
        loss: ``L_0 .. L_T``, shape ``(T + 1,)``.
        cutoff: Largest loss of a run that has not diverged.

    Example:
        >>> diverges([1.0, 2.0, 0.5]), diverges([1.0, 0.5, float("nan")])
        (False, True)
    """
    return not bool(np.all(_curve(loss, "loss")[1:] <= cutoff))


def loss_rises(loss: ArrayLike, window: Window = "paper") -> bool:
    r"""Whether ``\max_t L_t > L_0`` within the window; NaN counts as risen.

    Args:
        loss: ``L_0 .. L_T``, shape ``(T + 1,)``.
        window: ``"paper"`` looks at all steps, ``"catapult"`` at the first three.

    Example:
        >>> late = [1.0, 0.9, 0.8, 0.9, 1.1]
        >>> loss_rises(late), loss_rises(late, "catapult")
        (True, False)
    """
    values = _curve(loss, "loss")
    return not bool(np.all(values[1 : 1 + _loss_steps(len(values) - 1, window)] <= values[0]))


def sharpness_steps(loss: ArrayLike, window: Window = "paper") -> int:
    r"""Return the last step whose sharpness counts.

    That is T for the window of the paper. For ``"catapult"`` it is one step after the peak of the loss, where the loss
    rises within the first three steps and until it is back at ``L_0``; and 3 where it does not. Sharpness that grows
    later on is progressive sharpening, which is no catapult; with cross-entropy it starts within the first ten steps.

    Args:
        loss: ``L_0 .. L_T``, shape ``(T + 1,)``.
        window: ``"paper"`` or ``"catapult"``.
    """
    values = _curve(loss, "loss")
    steps = len(values) - 1
    first = _loss_steps(steps, window)
    if window == "paper" or not loss_rises(values, window):
        return first
    up = ~(values <= values[0])
    begin = 1 + int(np.argmax(up[1:]))
    back = np.flatnonzero(~up[begin:])
    excursion = values[begin : begin + int(back[0])] if len(back) else values[begin:]
    peak = begin + int(np.argmax(np.where(np.isnan(excursion), np.inf, excursion)))
    return min(peak + 1, steps)


def sharpness_rises(
    loss: ArrayLike, sharpness: ArrayLike, window: Window = "paper", eps_sharp: float = 0.0
) -> bool | None:
    r"""Whether ``\max_t \lambda_t > (1 + \epsilon) \lambda_0`` within the window.

    Args:
        loss: ``L_0 .. L_T``, shape ``(T + 1,)``; it sets the catapult window.
        sharpness: ``\lambda_0 .. \lambda_T``, NaN where it was not measured.
        window: ``"paper"`` or ``"catapult"``.
        eps_sharp: Tolerance. For a zero-initialised output, whose sharpness jitters about its start, 0.05 is used.

    Returns:
        True if a measured value exceeds it; False if none does and the window was measured to its end; None if none
        does and a step of the window is missing.
    """
    values = _curve(sharpness, "sharpness")
    if not np.isfinite(values[0]):
        raise InvalidInput(
            explain(
                f"The sharpness at initialisation is {values[0]}",
                "all others are compared with it",
                "Measure it before training, and check that the initial loss is finite",
            )
        )
    inside = values[1 : 1 + sharpness_steps(loss, window)]
    if np.any(inside > (1 + eps_sharp) * values[0]):
        return True
    return None if np.any(np.isnan(inside)) else False


def phase_of(
    loss: ArrayLike,
    sharpness: ArrayLike,
    *,
    cutoff: float = CUTOFF,
    window: Window = "paper",
    eps_sharp: float = 0.0,
) -> Phase:
    """Return the phase of one run (arXiv 2302.12250, and a fifth one that it has no name for).

    ===========  ================  ==========================
    loss rises   sharpness rises   phase
    ===========  ================  ==========================
    no           no                sharpness reduction
    yes          no                loss catapult
    yes          yes               loss-sharpness catapult
    no           yes               sharpness increase only
    beyond ``cutoff``, or NaN      divergence
    =============================  ==========================

    Args:
        loss: ``L_0 .. L_T``, shape ``(T + 1,)``.
        sharpness: ``lambda_0 .. lambda_T``, shape ``(T + 1,)``.
        cutoff: Loss beyond which a run has diverged.
        window: Which steps count (see `loss_rises`, `sharpness_steps`).
        eps_sharp: Relative rise of sharpness that does not count.

    Raises:
        InvalidInput: Curves of other shapes, or a sharpness that is NaN where the answer depends on it.

    Example:
        >>> phase_of([1, 0.8, 0.6], [10, 8, 7]).value
        'sharpness reduction'
        >>> phase_of([1, 3, 0.6], [10, 8, 7]).value
        'loss catapult'
        >>> phase_of([1, 3, float("inf")], [10, 8, float("nan")]).value
        'divergence'
    """
    if np.shape(loss) != np.shape(sharpness):
        raise InvalidInput(
            explain(
                f"Curves of shapes {np.shape(loss)} and {np.shape(sharpness)}",
                "loss and sharpness are those of the same steps",
                "Fill steps where sharpness was not measured with NaN",
            )
        )
    if diverges(loss, cutoff):
        return Phase.DIVERGENCE
    sharper = sharpness_rises(loss, sharpness, window, eps_sharp)
    if sharper is None:
        raise InvalidInput(
            explain(
                "Sharpness is NaN at a step of the window, and does not rise at the others",
                "whether it rises cannot be told",
                "Measure every step of the window",
            )
        )
    if loss_rises(loss, window):
        return Phase.CATAPULT if sharper else Phase.LOSS_CATAPULT
    return Phase.INCREASE if sharper else Phase.REDUCTION


def check_window(window: str) -> None:
    """Refuse a window that is neither ``"paper"`` nor ``"catapult"``."""
    if window not in get_args(Window):
        raise InvalidInput(
            explain(
                f"The window is {window!r}",
                "critical values are read off all first steps, or off those of a catapult",
                "Use 'paper' or 'catapult'",
            )
        )


def _loss_steps(steps: int, window: str) -> int:
    check_window(window)
    return steps if window == "paper" else min(FIRST, steps)


def _curve(values: ArrayLike, what: str) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2:
        raise InvalidInput(
            explain(f"The {what} has shape {found.shape}", "a run has a start and at least one step", "Pass L_0 .. L_T")
        )
    return found
