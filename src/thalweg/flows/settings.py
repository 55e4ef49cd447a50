"""How finely a central flow is watched, and when it has lost its limit."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.errors import InvalidInput, explain
from thalweg.operators.third import Choice

LOST = 0.3
"""Effective eigenvalues this far above the limit mean that the flow has lost it."""
FAR, LOOSE = 1.85, 0.1
"""Below the first nothing is near the limit; there eigenpairs need a relative residual of only the second times the
share that is left to the limit."""
FIRST = 8
"""Length of the first segment that begins far from the limit; like any, it is done again if it went too far."""
BOLD, CAREFUL = 0.8, 0.5
"""Share of the time to the next eigenvalue's predicted arrival at the limit that a segment may last: while nothing is
critical, and after."""


@dataclass(frozen=True)
class Settings:
    """How finely the critical subspace is watched.

    Attributes:
        tolerance: Error of effective eigenvalues, in units where the limit is 2, that a refresh may find.
        candidate: Effective eigenvalue above which a direction takes part in the complementarity problem.
        max_interval: Longest time between refreshes; three times that while nothing is critical.
        max_critical: Most directions followed.
        eigen_tol: Relative residual of eigenpairs; looser while nothing is near the limit.
        third: Method of the third derivatives.
        ablated: Leave the penalty out of the motion of the weights; then the metric alone keeps the limit.
        damped: Take directions that oscillate by the exact decay of the flow, ``exp(-2)`` a unit, and not by the
            rule's step, which would carry the flow itself from wall to wall there.
        replay: Weights that wait for the look that accepts them are not kept but computed again, to the same bits, when
            their time comes: one gradient a unit more, and memory that does not grow with the time between looks.
    """

    tolerance: float = 2e-3
    candidate: float = 1.95
    max_interval: int = 16
    max_critical: int = 20
    eigen_tol: float = 1e-3
    third: Choice = "auto"
    ablated: bool = False
    damped: bool = True
    replay: bool = False


@dataclass(frozen=True)
class FlowSettings(Settings):
    """How exactly the differential equation is solved, with all of `Settings`.

    Here ``tolerance`` counts as a fifth of ``accuracy`` where it is larger, and ``damped`` and ``replay`` have no say.

    Attributes:
        accuracy: Estimated error of a step, over the length of its move. Neighbouring paths mostly come together, so
            that the end is off by less than this share of the whole path.
        shortest: Least time between refreshes, at which a segment stands whatever fresh eigenvalues say.
        max_interval: Longest time between refreshes; twice that while nothing is critical.
    """

    max_interval: int = 32
    accuracy: float = 1e-2
    shortest: float = 0.25

    @property
    def eigen_error(self) -> float:
        """Error of effective eigenvalues that a refresh may find."""
        return min(self.tolerance, self.accuracy / 5)

    def __post_init__(self) -> None:
        if not self.accuracy > 0 or not 1 / 64 <= self.shortest <= 1:
            raise InvalidInput(
                explain(
                    f"accuracy is {self.accuracy}, shortest is {self.shortest}",
                    "a step needs a positive tolerance, and a refresh some time, from 1/64 to 1",
                    "Pass accuracy=1e-2, or less for a more exact flow",
                )
            )
