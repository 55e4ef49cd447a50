"""What the manifest says about a run that decides which statements about it make sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAIN_RULES = ("GradientDescent", "HeavyBall", "Nesterov")
"""Rules without a preconditioner: the Hessian itself compares with their stability threshold."""


@dataclass(frozen=True)
class Setting:
    """How a run was trained and measured.

    Attributes:
        batch_size: Samples of a mini-batch; None for full-batch training.
        samples: Samples in the data; None if unknown.
        measured: Samples that curvature was measured on; None for all.
        comparable: Whether the eigenvalues are in the units of the stability threshold. A plain Hessian under
            a preconditioning rule is not.
        tolerance: Relative residual that the eigensolver was asked for.
        every: Steps between two measurements of the spectrum.
        rule: Class of the update rule.
    """

    batch_size: int | None = None
    samples: int | None = None
    measured: int | None = None
    comparable: bool = True
    tolerance: float | None = None
    every: int = 1
    rule: str = ""

    @property
    def full_batch(self) -> bool:
        """Whether every step saw all data."""
        return self.batch_size is None or (self.samples is not None and self.batch_size >= self.samples)

    @property
    def limit(self) -> str:
        """The stability threshold as a formula where it has a short one, else its name."""
        return "the stability threshold 2/⁠η" if self.rule == "GradientDescent" else "the stability threshold"


def setting(manifest: Mapping[str, Any] | None) -> Setting:
    """Read the setting of a run from its manifest; what is missing or odd there is left at its default."""
    loop = mapping((manifest or {}).get("loop"))
    rule = str(mapping(loop.get("rule")).get("type", ""))
    measures = loop.get("measures")
    spectrum = next(
        (m for m in map(mapping, measures if isinstance(measures, list) else []) if m.get("type") == "Spectrum"), {}
    )
    tolerance = spectrum.get("tol")
    return Setting(
        batch_size=_count(loop.get("batch_size")),
        samples=_count(mapping((manifest or {}).get("problem")).get("samples")),
        measured=_count(spectrum.get("samples")),
        comparable=bool(spectrum.get("preconditioned", True)) or rule in PLAIN_RULES,
        tolerance=float(tolerance) if isinstance(tolerance, (int, float)) else None,
        every=_count(spectrum.get("every")) or 1,
        rule=rule,
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one: manifests come from outside."""
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
