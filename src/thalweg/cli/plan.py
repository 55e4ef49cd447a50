"""What ``thalweg spectrum`` measures: which numbers, of which curvature, how well, for how many products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from thalweg.errors import InvalidInput, explain
from thalweg.operators.hessian import LayoutName

Ends = Literal["both", "largest", "smallest"]
OperatorName = Literal["hessian", "gauss-newton", "fisher"]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        k: Eigenpairs from each end; 0 leaves them out.
        ends: Which ends of the spectrum; None: both, of what cannot be negative the largest.
        density: Whether to estimate the spectral density.
        trace: Whether to estimate the trace.
        per_layer: Whether to examine each layer's block.
        target: Relative standard error at which the estimate of a trace stops.
        tol: Relative residual of an eigenpair; None: the solver's default.
        operator: Which curvature.
        preconditioned: Whether to see it as the update rule does.
        layout: How Hessian products are computed.
        budget: Products in all, at most; None: each estimator's own limit.
        seed: Seed of all random vectors.
    """

    k: int = 4
    ends: Ends | None = None
    density: bool = True
    trace: bool = True
    per_layer: bool = True
    target: float = 0.05
    tol: float | None = None
    operator: OperatorName = "hessian"
    preconditioned: bool = False
    layout: LayoutName = "auto"
    budget: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InvalidInput where a number is out of range, or nothing is to be measured."""
        for name, good, wanted in (
            ("k", self.k >= 0, "it counts eigenvalues"),
            ("target", 0 < self.target < math.inf, "a relative standard error is positive"),
            ("tol", self.tol is None or 0 < self.tol < 1, "a relative residual lies between 0 and 1"),
            ("budget", self.budget is None or self.budget >= 3, "three find and certify one eigenvalue"),
        ):
            if not good:
                raise InvalidInput(explain(f"--{name} is {getattr(self, name)}", wanted, "Correct the number"))
        if not (self.k or self.density or self.trace or self.per_layer):
            raise InvalidInput(
                explain(
                    "--k 0, --no-density, --no-trace and --no-per-layer leave nothing",
                    "there is nothing to measure",
                    "Leave one of them out",
                )
            )
        if self.operator != "hessian" and self.layout != "auto":
            raise InvalidInput(
                explain(
                    f"--layout {self.layout} was given with --operator {self.operator}",
                    "it says how products with the Hessian are computed",
                    "Leave one of them out",
                )
            )

    @property
    def both_or_one(self) -> Ends:
        """The ends: both, unless told otherwise, or one is known. At zero there is nothing to see, and much to pay."""
        return self.ends or ("both" if self.operator == "hessian" else "largest")
