"""The verdict on a window: in words, with its evidence, what is open, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from thalweg.stationarity.agreement import Agreement
from thalweg.stationarity.descent import Descent
from thalweg.stationarity.fresh_step import FreshSteps
from thalweg.stationarity.level import Level
from thalweg.stationarity.logs import History
from thalweg.stationarity.windows import Window

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Kind = Literal[
    "invariant regime",
    "stationary point",
    "settled loss, growing gradient",
    "settled loss, falling gradient",
    "still training",
    "unstable",
    "undecided",
]
MEANING: Mapping[Kind, str] = {
    "invariant regime": "The loss has settled, the gradient has not vanished: the weights keep moving.",
    "stationary point": "The loss has settled and the gradient is zero within resolution.",
    "settled loss, growing gradient": "The loss has settled while the gradient grows.",
    "settled loss, falling gradient": "The loss has settled, the gradient still falls: still converging.",
    "still training": "The loss is still falling.",
    "unstable": "The loss rises or jumps.",
    "undecided": "There is no verdict.",
}
ADVICE: Mapping[Kind, str] = {
    "invariant regime": "Lower the learning rate to lower the loss; more steps at this one are not expected to help.",
    "stationary point": "Nothing is left to gain here by more steps or a lower rate: change the data, the model or "
    "the penalty if the loss is too high.",
    "settled loss, growing gradient": "Check first whether norms shrink: for weights before a normalisation the "
    "gradient grows as they shrink, and nothing else need have changed. Look at the scale-free gradient.",
    "settled loss, falling gradient": "Go on at the same settings: the gradient has not reached its level yet.",
    "still training": "Go on at the same settings: more steps still help.",
    "unstable": "Lower the learning rate or clip gradients, and look at the descent ratio first.",
    "undecided": "Log what is missing, or go on at the same settings, and ask again.",
}


@dataclass(frozen=True)
class Evidence:
    """One row of the table.

    Attributes:
        name: What was looked at.
        value: What it is, in words and numbers.
        says: What that means for the verdict.
    """

    name: str
    value: str
    says: str = ""


@dataclass(frozen=True)
class Open:
    """Something that is not decided.

    Attributes:
        reason: Why, and what to do.
        more_steps: Steps at the same settings that are expected to decide it; None: steps are not what is missing.
    """

    reason: str
    more_steps: int | None = None


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `thalweg.stationarity.assess.assess` says of a run.

    Attributes:
        kind: The verdict in two or three words.
        words: The same in sentences.
        evidence: What it is made of.
        undecided: What is open.
        advice: What to do.
        window: The steps that were looked at; None where there is none.
        segments: Stretches of constant settings of the whole run.
        loss: Whether the loss has settled; None where that was not asked.
        level: Of the gradient; None where none was logged.
        observables: The other observables, in the order of `thalweg.stationarity.logs.ORDER`.
        adjusted: P-values of their tests and of the loss's, after Holm's correction.
        descent: Q; None where it cannot be had.
        fresh: Changes of the loss over fresh updates; None without.
        history: What was read.
        notes: What was guessed on the way.
    """

    kind: Kind
    words: str
    evidence: tuple[Evidence, ...]
    undecided: tuple[Open, ...]
    advice: str
    window: Window | None
    segments: tuple[Window, ...]
    loss: Agreement | None
    level: Level | None
    observables: Mapping[str, Agreement]
    adjusted: Mapping[str, float]
    descent: Descent | None
    fresh: FreshSteps | None
    history: History
    notes: tuple[str, ...] = field(default=())

    @property
    def more_steps(self) -> int | None:
        """Steps that are expected to decide all that steps can decide; None where nothing waits for steps."""
        known = [found.more_steps for found in self.undecided if found.more_steps is not None]
        return max(known) if known else None

    def plot(self) -> Figure:
        """Draw loss with windows, gradient level with interval and floor, autocorrelation, and the doubling plot."""
        from thalweg.stationarity.verdict_figure import verdict_figure

        return verdict_figure(self)

    def table(self) -> list[dict[str, str]]:
        """Return the evidence as rows."""
        return [{"name": row.name, "value": row.value, "says": row.says} for row in self.evidence]

    def __repr__(self) -> str:
        lines = [f"{self.kind.upper()}" + (f" ({self.window})" if self.window is not None else ""), self.words]
        lines += [f"  {row.name}: {row.value}" + (f" - {row.says}" if row.says else "") for row in self.evidence]
        lines += [f"Open: {_said(found)}" for found in self.undecided]
        lines.append(f"Advice: {self.advice}")
        return "\n".join(lines)


def _said(found: Open) -> str:
    more = "" if found.more_steps is None else f" At least about {found.more_steps:,} more steps would decide it."
    return found.reason + more


def decide(loss: Agreement, level: Level) -> Kind:
    """Return the verdict that the two say together.

    Args:
        loss: Of the window.
        level: Of the gradient, in the same window.

    Returns:
        The kind. A settled loss whose gradient level is open, or lies between zero and the floor, is undecided, and so
        is a loss whose distribution moved and whose level did not.
    """
    if level.probes < 1 or math.isnan(level.unbiased):
        return "undecided"
    if loss.state == "falling":
        return "still training"
    if loss.state == "rising":
        return "unstable"
    if loss.state != "settled":
        return "undecided"
    if level.falling:
        return "settled loss, falling gradient"
    if level.state == "zero":
        return "stationary point"
    if level.state == "above":
        return "settled loss, growing gradient" if level.rising else "invariant regime"
    return "undecided"
