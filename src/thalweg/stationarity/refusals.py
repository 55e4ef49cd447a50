"""Why a window of a series gets no verdict: one sentence for each case, the same wherever it is said."""

from __future__ import annotations

import math

from thalweg.errors import explain

ENOUGH = 50.0
"""Effective samples that a verdict on a window needs."""
BLOCKS = 10
"""Blocks that each window of a block permutation needs."""
BLOCK_LENGTH = 5.0
"""Length of a block, in autocorrelation times of the slowest coordinate."""


def not_finite(name: str, bad: int, n: int, first: int) -> str:
    """Say that values are NaN or infinite.

    Args:
        name: What the series is of.
        bad: How many values.
        n: Of how many.
        first: Index of the first.

    Example:
        >>> print(not_finite("loss", 3, 200, 41))
        Of 200 values of loss, 3 are NaN or infinite, the first at index 41. A window with such a value has neither...
    """
    return explain(
        f"Of {n} values of {name}, {bad} {'is' if bad == 1 else 'are'} NaN or infinite, the first at index {first}",
        "a window with such a value has neither a mean nor a distribution",
        "Find out where the run broke, or choose a window without it",
    )


def too_few(name: str, n: int) -> str:
    """Say that a window has fewer snapshots than effective samples are needed.

    Example:
        >>> print(too_few("loss", 10))
        Not enough effective samples of loss: the window has 10 snapshots. At least 50 that are independent are need...
    """
    return explain(
        f"Not enough effective samples of {name}: the window has {n} snapshot{'' if n == 1 else 's'}",
        f"at least {ENOUGH:.0f} that are independent are needed for a verdict",
        "Record more often, or go on for longer at the same settings",
    )


def constant(name: str, value: float) -> str:
    """Say that a series does not move.

    Example:
        >>> print(constant("loss", 2.5))
        Every value of loss in the window is 2.5. A constant has no autocorrelation, and no error to judge a change b...
    """
    return explain(
        f"Every value of {name} in the window is {value:.6g}",
        "a constant has no autocorrelation, and no error to judge a change by",
        "Check that it was recorded at each snapshot, or choose an observable that moves",
    )


def constants(name: str, first: float, second: float) -> str:
    """Say that neither of two windows moves, though they may differ.

    Example:
        >>> print(constants("loss", 2.5, 2.0))
        Every value of loss is 2.5 in the first window and 2 in the second. A constant has no autocorrelation, and no...
    """
    return explain(
        f"Every value of {name} is {first:.6g} in the first window and {second:.6g} in the second",
        "a constant has no autocorrelation, and no error to judge a change by",
        "Check that it was recorded at each snapshot, or choose an observable that moves",
    )


def too_correlated(name: str, effective: float, n: int) -> str:
    """Say that snapshots are too alike, and how many would do.

    Args:
        name: What the series is of.
        effective: Effective samples.
        n: Snapshots.

    Example:
        >>> print(too_correlated("loss", 20.0, 400))
        Not enough effective samples of loss: 400 snapshots are worth 20 independent ones. At least 50 are needed for...
    """
    return explain(
        f"Not enough effective samples of {name}: {n} snapshots are worth {effective:.0f} independent ones",
        f"at least {ENOUGH:.0f} are needed for a verdict",
        f"Go on at the same settings for about {missing(effective, n)} snapshots more",
    )


def missing(effective: float, n: int) -> int:
    """Return how many more snapshots of the same kind bring the effective samples to `ENOUGH`.

    Example:
        >>> missing(20.0, 400), missing(80.0, 400)
        (600, 0)
    """
    return max(0, math.ceil(n * (ENOUGH / max(effective, 1.0) - 1)))


def too_few_blocks(n: int, tau: float, block: int, blocks: int) -> str:
    """Say that the windows hold too few blocks for a block permutation.

    Args:
        n: Snapshots of the shorter window.
        tau: Largest autocorrelation time, in snapshots.
        block: Length of a block.
        blocks: Blocks of the shorter window.

    Example:
        >>> print(too_few_blocks(200, 9.0, 45, 4))
        A window of 200 snapshots holds 4 blocks of 45. Permuting blocks needs at least 10 in each window, and correl...
    """
    return explain(
        f"A window of {n} snapshots holds {blocks} block{'' if blocks == 1 else 's'} of {block}",
        f"permuting blocks needs at least {BLOCKS} in each window, and correlation over {tau:.3g} snapshots needs "
        f"blocks of {BLOCK_LENGTH:.0f} times that",
        f"Make each window {BLOCKS * max(block, block_length(tau))} snapshots long",
    )


def too_short_blocks(tau: float, block: int) -> str:
    """Say that blocks are shorter than the series remembers.

    Example:
        >>> print(too_short_blocks(9.0, 10))
        Blocks of 10 snapshots were asked for, where correlation lasts 9 of them. Blocks below 5 times that make chan...
    """
    return explain(
        f"Blocks of {block} snapshots were asked for, where correlation lasts {tau:.3g} of them",
        f"blocks below {BLOCK_LENGTH:.0f} times that make chance look like change",
        f"Leave block out, or give {block_length(tau)} or more",
    )


def block_length(tau: float) -> int:
    """Return ``ceil(5 tau)``, at least 1.

    Example:
        >>> block_length(1.0), block_length(9.01)
        (5, 46)
    """
    return max(1, math.ceil(BLOCK_LENGTH * tau - 1e-9))
