"""How finely a central flow is watched, and when it has lost its limit."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.operators.third import Choice

LOST = 0.3
"""Effective eigenvalues this far above the limit mean that the flow has lost it."""
FAR, LOOSE = 1.7, 3e-2
"""Below this nothing is near the limit, and eigenvalues need this residual only: their error is its square."""
FIRST = 8
"""Length of the first segment that begins far from the limit; like any, it is done again if it went too far."""


@dataclass(frozen=True)
class Settings:
    """How finely the critical subspace is watched.

    Attributes:
        tolerance: Error of effective eigenvalues, in units where the limit is 2, that a refresh may find.
        candidate: Effective eigenvalue above which a direction takes part in the complementarity problem.
        max_interval: Longest time between refreshes; twice that while nothing is critical.
        max_critical: Most directions followed.
        eigen_tol: Relative residual of eigenpairs; looser while nothing is near the limit.
        third: Method of the third derivatives.
        ablated: Leave the penalty out of the motion of the weights; then the metric alone keeps the limit.
        damped: Take directions that oscillate by the exact decay of the flow, ``exp(-2)`` a unit, and not by the
            rule's step, which would carry the flow itself from wall to wall there.
    """

    tolerance: float = 2e-3
    candidate: float = 1.95
    max_interval: int = 16
    max_critical: int = 20
    eigen_tol: float = 1e-3
    third: Choice = "auto"
    ablated: bool = False
    damped: bool = True
