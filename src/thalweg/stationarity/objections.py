"""Why a run gets no verdict: one sentence for each case that is about the run and not about one series."""

from __future__ import annotations

from collections.abc import Mapping

from thalweg.errors import explain

PROBES = 20
"""Probes of the gradient that a window needs."""


def rate_changes(start: int, stop: int, step: int, name: str, before: float, after: float) -> str:
    """Say that a setting changes inside a window.

    Args:
        start: First step of the window.
        stop: Its last step.
        step: Where the setting changes first.
        name: Which one.
        before: Its value before.
        after: Its value from there on.

    Example:
        >>> print(rate_changes(100, 900, 500, "learning_rate", 0.1, 0.01))
        The learning rate goes from 0.1 to 0.01 at step 500, inside the window from 100 to 900. Each side has a dist...
    """
    return explain(
        f"The {name.replace('_', ' ')} goes from {before:.6g} to {after:.6g} at step {step:,}, inside the window from "
        f"{start:,} to {stop:,}",
        "each side has a distribution of its own, and the two together have none",
        "Choose a window on one side, or leave it out: constant stretches are found from the log",
    )


def never_constant(settings: Mapping[str, float], length: int) -> str:
    """Say that the schedule does not hold still.

    Args:
        settings: The last ones.
        length: Snapshots for which they held.

    Example:
        >>> print(never_constant({"learning_rate": 0.1}, 1))
        The last settings (learning rate 0.1) held for 1 snapshot. Stationarity is a statement about constant setting...
    """
    held = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in settings.items())
    return explain(
        f"The last settings ({held}) held for {length} snapshot{'' if length == 1 else 's'}",
        "stationarity is a statement about constant settings, and a schedule that always moves has none",
        "Go on at a constant rate, or look at another segment with segment=",
    )


def no_gradients() -> str:
    """Say that no gradient level was logged.

    Example:
        >>> print(no_gradients())
        The log holds no gradient level. A settled loss alone tells a stationary point from an invariant regime no be...
    """
    return explain(
        "The log holds no gradient level",
        "a settled loss alone tells a stationary point from an invariant regime no better than chance: whether the "
        "weights came to rest cannot be said",
        "Record it with thalweg.runs.GradientProbe, or log gradient_unbiased, the unbiased squared norm U",
    )


def too_few_probes(probes: int, every: float | None) -> str:
    """Say that the gradient was looked at too seldom.

    Args:
        probes: In the window.
        every: Steps between two of them, if there are two.

    Example:
        >>> print(too_few_probes(1, None))
        The gradient was probed 1 time in the window. At least 20 probes are needed for its mean, error and trend. P...
    """
    at = f"every {every:,.0f} steps as now, that is {PROBES * every:,.0f} steps" if every else "at several points"
    return explain(
        f"The gradient was probed {probes} time{'' if probes == 1 else 's'} in the window",
        f"at least {PROBES} probes are needed for its mean, error and trend",
        f"Probe more often, or for longer: {at}",
    )


def no_floor() -> str:
    """Say that there is nothing to hold the gradient level against.

    Example:
        >>> print(no_floor())
        There is no gradient level from the start of training. Bounded away from zero means above a floor, by default...
    """
    return explain(
        "There is no gradient level from the start of training",
        "bounded away from zero means above a floor, by default 5 per cent of the mean level over the first 1 per cent "
        "of the steps",
        "Give floor=, in the units of the squared gradient norm",
    )
