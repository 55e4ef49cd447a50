"""From straight pieces of the logarithm of sharpness to regimes: how badly each label fits, and the best order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
State = Literal["transient", "saturation", "sharpening", "edge of stability", "reduction"]
STATES: tuple[State, ...] = ("transient", "saturation", "sharpening", "edge of stability", "reduction")

STEEP = 0.15
"""A slope of ``log10 sharpness`` per decade of time beyond which it is on the move."""
MOVED = 0.04
"""A change of ``log10 sharpness`` (10 %) that is seen."""
BAND = (0.85, 1.3)
"""Times the threshold: the edge of stability."""
PASSING = 0.12
"""A piece that changes by more than this (30 %) passes the threshold rather than stays there."""
MOST = 2.0
"""A misfit is not counted beyond this."""
NEVER = 1e6
POINTS = 8
"""Points of a piece that weigh one unit."""

MOVES: dict[State, dict[State, float]] = {
    "transient": {"saturation": 0.0, "sharpening": 0.3, "edge of stability": 0.6, "reduction": 0.3},
    "saturation": {"sharpening": 0.0, "edge of stability": 0.3, "reduction": 0.3},
    "sharpening": {"edge of stability": 0.0, "saturation": 0.3, "reduction": 0.2},
    "edge of stability": {"sharpening": 0.1, "reduction": 0.1, "saturation": 0.5},
    "reduction": {"saturation": 0.1, "sharpening": 0.1, "edge of stability": 0.3},
}
"""What a change of regime costs; nothing goes back into the transient."""


@dataclass(frozen=True)
class Piece:
    """A straight piece.

    Attributes:
        start: Clock (see `thalweg.phases.regimes_clock`) at its first point; ``end``: at its last.
        slope: Of ``log10 sharpness`` per decade.
        change: Of ``log10 sharpness`` from end to end.
        ratio: Median ratio that decides about the edge; NaN where there is none.
        points: Grid points in it.
        first: Whether it belongs to the stretch that starts with the run.
        opens: Whether it is the first piece after the learning rate was changed.
        steady: Whether the loss was never seen to rise in it; None where too few losses are known.
        thrown: Whether the loss left its lowest value in it more than once, at a fixed rate.
        approaching: Whether the ratio, below 1, was still rising at its end.
    """

    start: float
    end: float
    slope: float
    change: float
    ratio: float
    points: int
    first: bool = True
    opens: bool = False
    steady: bool | None = None
    thrown: bool = False
    approaching: bool = False


def misfits(piece: Piece, transient: float) -> dict[State, float]:
    r"""Return how badly each regime fits a piece; 0 is a fit.

    With slope ``s`` and change ``D``: *saturation* where ``|s| <= 0.15`` or ``|D| <= 0.04``; *sharpening* and
    *reduction* beyond both; *transient* where it ends by 1.6 ``transient``, or falls and starts by ``transient``;
    *edge* where the ratio lies in 0.85-1.3 after 3 ``transient``, and, below 1, the loss rose somewhere;
    for mini-batches also where sharpness rests while the loss is thrown up at a fixed rate, whatever the ratio.
    Between, the misfit grows linearly. A piece that changes by more than 30 % is not at the edge but passes it.
    """
    size = min(abs(piece.slope) / STEEP, abs(piece.change) / MOVED)
    drift = size if piece.slope > 0 else -size
    cost: dict[State, float] = {
        "transient": MOST,
        "saturation": min(max(size - 1, 0.0), MOST),
        "sharpening": min(max(1 - drift, 0.0), MOST),
        "reduction": min(max(1 + drift, 0.0), MOST),
        "edge of stability": _edge(piece, transient),
    }
    early = piece.first and (
        piece.end <= 1.6 * transient or (piece.start <= transient and piece.slope < -STEEP and piece.change < -MOVED)
    )
    if early:
        cost = {state: value + 1 for state, value in cost.items()} | {"transient": 0.0}
    elif cost["edge of stability"] == 0:
        cost = {state: value + 1.5 for state, value in cost.items()} | {"edge of stability": 0.0}
    return cost


def _edge(piece: Piece, transient: float) -> float:
    if piece.first and piece.end <= 3 * transient:
        return MOST + 1
    flat = abs(piece.slope) <= STEEP or abs(piece.change) <= MOVED
    if piece.thrown and flat:
        return 0.0
    if not np.isfinite(piece.ratio) or piece.ratio <= 0:
        return MOST + 1
    passing = abs(piece.slope) > STEEP and abs(piece.change) > PASSING
    if passing or piece.approaching or (piece.steady and piece.ratio < 1):
        return MOST
    away = max(np.log(BAND[0] / piece.ratio), np.log(piece.ratio / BAND[1]), 0.0)
    return 0.0 if away == 0 else float(min(0.5 + away / np.log(1.1), MOST + 1))


def best_order(pieces: list[Piece], transient: float) -> list[State]:
    """Return the cheapest sequence of regimes by Viterbi's recursion over the pieces.

    Args:
        pieces: In order of time.
        transient: How long the transient lasts, in units of the clock.

    Example:
        >>> fall, flat = Piece(0, 9, -1.0, -0.9, 0.2, 20), Piece(10, 99, 0.0, 0.0, 0.2, 20)
        >>> best_order([fall, flat, Piece(100, 999, 0.6, 0.6, 0.5, 20), Piece(1e3, 9e3, 0.0, 0.0, 1.0, 20)], 10)
        ['transient', 'saturation', 'sharpening', 'edge of stability']
    """
    weights = [max(1.0, piece.points / POINTS) for piece in pieces]
    table = np.array([[weight * misfits(p, transient)[s] for s in STATES] for p, weight in zip(pieces, weights)])
    move = np.array([[0.0 if a == b else MOVES[a].get(b, NEVER) for b in STATES] for a in STATES])
    anew = np.where(move >= NEVER, NEVER, 0.0)  # after a change of the rate any regime may follow
    total = table[0]
    back = []
    for row, piece in zip(table[1:], pieces[1:]):
        through = total[:, None] + (anew if piece.opens else move)
        back.append(through.argmin(axis=0))
        total = through.min(axis=0) + row
    path = [int(total.argmin())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return [STATES[index] for index in reversed(path)]
