"""What a gradient level says: numbers, a table by tensor and group, words, and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thalweg.errors import explain
from thalweg.runs.gradient_draws import Mode
from thalweg.runs.gradient_moments import Moments
from thalweg.runs.gradient_sums import Keep
from thalweg.stationarity.scale_free import ScaleFree

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Cost:
    """What a probe took.

    Attributes:
        gradients: Forward-backward passes.
        checks: Of these, passes that found and checked scale-invariant groups.
        seconds: On the clock.
        keep: How inner products were kept.
        numbers: Floats that were held beside the model, per gradient kept or sketched.
    """

    gradients: int
    checks: int
    seconds: float
    keep: Keep
    numbers: int


@dataclass(frozen=True)
class GradientLevel:
    r"""``|\nabla L|^2`` at a point, from ``n`` independent mini-batches; of ``L + R`` with decay or a penalty.

    Attributes:
        whole: All parameters together.
        plain: The same without decay and penalty; equal to ``whole`` where there are none.
        tensors: By parameter.
        groups: By group.
        scale_free: ``|w|^2 |\nabla_w L|^2`` of scale-invariant groups; None where they were not looked for.
        mode: Of the model: ``"train"``, ``"eval"``, or ``"current"`` for as it was.
        loss: Mean loss of the mini-batches, without decay and penalty.
        loss_error: Its standard error.
        batch_size: Samples in a mini-batch.
        samples: Samples in the data.
        cost: What it took.
    """

    whole: Moments
    plain: Moments
    tensors: Mapping[str, Moments]
    groups: Mapping[str, Moments]
    scale_free: ScaleFree | None
    mode: Mode
    loss: float
    loss_error: float
    batch_size: int
    samples: int
    cost: Cost = field(repr=False)

    @property
    def unbiased(self) -> float:
        """U."""
        return self.whole.unbiased

    @property
    def biased(self) -> float:
        """A."""
        return self.whole.biased

    @property
    def noise(self) -> float:
        """V, of one mini-batch; per example about ``batch_size V``."""
        return self.whole.noise

    @property
    def standard_error(self) -> float:
        """Of U."""
        return self.whole.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Of U, 95 per cent."""
        return self.whole.interval

    @property
    def z(self) -> float:
        """Of the test that the gradient is zero."""
        return self.whole.z

    @property
    def p(self) -> float:
        """Of the test that the gradient is zero, one-sided."""
        return self.whole.p

    @property
    def n(self) -> int:
        """Mini-batches."""
        return self.whole.n

    @property
    def noise_scale(self) -> float:
        """``batch_size V / U``: the batch size at which signal and noise are alike; infinite where U is not above 0."""
        return self.batch_size * self.noise / self.unbiased if self.unbiased > 0 else math.inf

    @property
    def norm(self) -> float:
        r"""``\sqrt{U}``, and 0 where U is negative: an estimate that is biased again, for reading only."""
        return math.sqrt(max(0.0, self.unbiased))

    @property
    def detectable(self) -> float:
        """Smallest norm that this probe would have told from zero four times out of five."""
        return math.sqrt(self.whole.detectable)

    @property
    def note(self) -> str:
        """What makes these numbers less than they seem; empty where nothing does."""
        if self.biased == 0 and self.noise == 0:
            return explain(
                f"The gradient is exactly zero in all {self.n} mini-batches",
                "there is no noise to test it against, and no interval",
                "Check that the loss depends on these parameters: dead units, a saturated loss, detached tensors",
            )
        if self.batch_size == self.samples and self.noise <= 1e-12 * self.biased:
            return explain(
                "Each mini-batch holds all samples",
                "U is the exact squared norm, and its error 0",
                "Read it as it is; 2 mini-batches are enough",
            )
        if self.noise <= 1e-12 * self.biased:
            return explain(
                f"All {self.n} mini-batches gave the same gradient",
                "without noise there is nothing to test against",
                "Check that the data is not one sample repeated",
            )
        if self.n < 8:
            return explain(
                f"There are {self.n} mini-batches",
                "intervals and the test of zero are too short below 8",
                "Take 16 or more for a verdict",
            )
        return ""

    def table(self) -> DataFrame:
        """Return tensors and groups as a pandas table."""
        import pandas as pd

        rows = [("all", "all", self.whole)]
        rows += [("group", name, one) for name, one in self.groups.items()]
        rows += [("tensor", name, one) for name, one in self.tensors.items()]
        return pd.DataFrame(
            [
                {
                    "kind": kind,
                    "name": name,
                    "unbiased": one.unbiased,
                    "standard_error": one.standard_error,
                    "biased": one.biased,
                    "noise": one.noise,
                    "z": one.z,
                    "p": one.p,
                    "detectable": one.detectable,
                }
                for kind, name, one in rows
            ]
        )

    def plot(self) -> Figure:
        """Draw U with its interval by group, beside A and the smallest detectable level."""
        import plotly.graph_objects as go

        rows = {"all": self.whole, **(self.groups if len(self.groups) > 1 else self.tensors)}
        names = list(rows)
        figure = go.Figure()
        figure.add_bar(
            x=names,
            y=[one.unbiased for one in rows.values()],
            error_y={"type": "data", "array": [1.96 * one.standard_error for one in rows.values()]},
            name="unbiased U, 95 % interval",
        )
        for title, symbol, values in (
            ("biased A", "x-thin-open", [one.biased for one in rows.values()]),
            ("smallest detectable", "line-ew-open", [one.detectable for one in rows.values()]),
        ):
            figure.add_scatter(x=names, y=values, mode="markers", marker={"symbol": symbol, "size": 14}, name=title)
        return figure.update_layout(
            title=f"Squared gradient norm, {self.mode} mode, {self.n} mini-batches of {self.batch_size}",
            yaxis_title="squared norm",
        )

    def __repr__(self) -> str:
        low, high = self.interval
        lines = [
            f"Gradient level in {self.mode} mode, {self.n} mini-batches of {self.batch_size} out of {self.samples}:",
            f"  U = {self.unbiased:.4g}, 95 % interval {low:.4g} to {high:.4g} (norm {self.norm:.4g})",
            f"  A = {self.biased:.4g}, biased by noise V = {self.noise:.4g}; noise scale {self.noise_scale:.4g}",
            f"  test of zero: z = {self.z:.3g}, p = {self.p:.2g}; smallest detectable norm {self.detectable:.4g}",
        ]
        if self.plain is not self.whole:
            lines.append(f"  without decay and penalty: U = {self.plain.unbiased:.4g}")
        if self.scale_free is not None:
            lines.append(f"  {self.scale_free}")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)
