"""Regimes of a run as they were found: stretches of time with their evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.phases.catapults import Catapult
from thalweg.phases.regimes_curves import Curves

if TYPE_CHECKING:
    import plotly.graph_objects as go

RegimeLabel = Literal[
    "transient",
    "saturation",
    "sharpening",
    "edge of stability",
    "reduction",
    "late reduction",
    "diverged",
    "undetermined",
]


@dataclass(frozen=True)
class Segment:
    """A stretch of a run in one regime.

    Attributes:
        label: The regime.
        start: First measured step in it; ``end``: the last.
        slope: Change of ``log10 sharpness`` per decade of time; NaN where unknown, as in what follows.
        change: Change of ``log10 sharpness`` over it.
        ratio: Median ratio of sharpness to the threshold.
        batch_ratio: Median ratio of batch sharpness to the threshold.
        measured: Measurements of sharpness in it.
        rises: Share of its recorded steps at which the loss rose.
        events: Excursions of the loss that opened in it.
        rate: The same per 1000 steps.
        loss: Loss at its start and at its end.
        confidence: Share of the segmentations with other settings that agree, averaged over its measurements.
    """

    label: RegimeLabel
    start: int
    end: int
    slope: float = np.nan
    change: float = np.nan
    ratio: float = np.nan
    batch_ratio: float = np.nan
    measured: int = 0
    rises: float = np.nan
    events: int = 0
    rate: float = np.nan
    loss: tuple[float, float] = (np.nan, np.nan)
    confidence: float = np.nan

    def __repr__(self) -> str:
        told = f", ratio {self.ratio:.3g}" if np.isfinite(self.ratio) else ""
        sure = f", confidence {self.confidence:.2f}" if np.isfinite(self.confidence) else ""
        return f"Segment({self.label}, steps {self.start}-{self.end}{told}{sure})"


@dataclass(frozen=True)
class Regimes:
    """What `segment` found.

    Attributes:
        segments: In order of time.
        catapults: Excursions of the loss outside the edge of stability; inside it, a segment's ``rate`` tells.
        flags: Short words for what to keep in mind, such as ``"no sharpness"`` or ``"mini-batch"``.
        notes: Sentences on what was left out or assumed.
        curves: The curves as they were used.
        labels: The regime of each measurement, ``(k,)``.
        agreement: Share of segmentations that agree, for each measurement, ``(k,)``.
        delta: The rise of the loss that counts as an excursion.
    """

    segments: tuple[Segment, ...]
    catapults: tuple[Catapult, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    curves: Curves = field(repr=False)
    labels: tuple[RegimeLabel, ...] = field(repr=False)
    agreement: NDArray[np.float64] = field(repr=False)
    delta: float = 0.05

    @property
    def order(self) -> tuple[RegimeLabel, ...]:
        """The labels of the segments."""
        return tuple(segment.label for segment in self.segments)

    @property
    def text(self) -> str:
        """What was found, in sentences."""
        from thalweg.phases.regimes_words import explanation

        return explanation(self)

    def at(self, step: int) -> Segment | None:
        """Return the segment that ``step`` lies in; None between two segments or outside."""
        return next((s for s in self.segments if s.start <= step <= s.end), None)

    def table(self) -> list[dict[str, Any]]:
        """Return one mapping of plain numbers and words for each segment."""
        names = ("label", "start", "end", "slope", "change", "ratio", "batch_ratio", "measured", "rises", "events")
        return [{name: getattr(segment, name) for name in (*names, "rate", "confidence")} for segment in self.segments]

    def plot(self) -> go.Figure:
        """Draw sharpness over the threshold, and the loss, against time, with the regimes as bands."""
        from thalweg.phases.regimes_figure import regimes_figure

        return regimes_figure(self)

    def __repr__(self) -> str:
        told = ", ".join(f"{s.label} {s.start}-{s.end}" for s in self.segments)
        return f"Regimes({told}; {len(self.catapults)} excursions{'; ' if self.flags else ''}{', '.join(self.flags)})"
