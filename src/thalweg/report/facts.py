"""What a run's data shows, decided by explicit rules; `words` turns it into sentences.

A fact that the data cannot decide is None, so that nothing is said about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from thalweg.report.series import Series, aligned, series

ENOUGH = 20
"""Measurements that a statement about a stretch of a run needs."""
NEAR = 0.9
"""Below this share of the threshold a run counts as clearly below it."""
ROSE = 1.1
"""Sharpness that grew by less than this factor did not rise."""
BAND = (0.8, 1.3)
"""Times the threshold: being there most of the time is staying at the edge."""
TURNED = 0.1
"""Share of the measurements after the crossing at which sharpness must fall: what only rises is on its way."""
UNSTEADY = 0.02
"""Share of the steps at which the loss must rise for a run to be unstable in practice."""
MOST = 0.8
"""Share of the measurements that "most" asks for."""
BLOWN_UP = 1e3
"""A loss that ends this many times above its start has diverged."""
FALLING = 0.01
"""Relative decrease over the last tenth of a run that shows that it has not converged."""


@dataclass(frozen=True)
class Edge:
    """How sharpness stands to the stability threshold, at the steps where both are known.

    Attributes:
        first: Sharpness at its first measurement; ``last`` at its last.
        threshold: Threshold at the last measurement.
        first_threshold: The same at the first, and ``threshold_there`` at the crossing.
        start_ratio: Sharpness over threshold at the first measurement; ``end_ratio`` at the last.
        highest: Largest such ratio, found at step ``highest_at``.
        crossed: First measured step with sharpness at or above the threshold; None if there is none.
        before: The measured step before that one; None if there is none.
        there: Sharpness at the crossing.
        low: Ratio that 5% of the measurements from the crossing on lie below; ``high``: above.
        median: Median of those ratios.
        inside: Share of those ratios inside `BAND`.
        falls: Share of the measurements from the crossing on that are below the one before.
        measured: Number of measurements from the crossing on.
        total: Number of measurements.
    """

    first: float
    last: float
    threshold: float
    first_threshold: float
    start_ratio: float
    end_ratio: float
    highest: float
    highest_at: int
    total: int
    crossed: int | None = None
    before: int | None = None
    there: float = 0.0
    threshold_there: float = 0.0
    low: float = 0.0
    median: float = 0.0
    high: float = 0.0
    inside: float = 0.0
    falls: float = 0.0
    measured: int = 0

    @property
    def sharpened(self) -> bool:
        """Whether sharpness itself rose to the threshold, from clearly below: progressive sharpening."""
        return self.crossed is not None and self.start_ratio < NEAR and self.there >= ROSE * self.first > 0

    @property
    def stayed(self) -> bool:
        """Whether it then stayed near the threshold, by enough measurements to say so."""
        near = self.inside >= MOST and NEAR <= self.median <= BAND[1]
        return self.measured >= ENOUGH and near and not self.rising

    @property
    def rising(self) -> bool:
        """Whether sharpness simply went on rising from the crossing on."""
        return self.measured >= ENOUGH and self.falls < TURNED and self.last > self.there


def edge(data: xr.Dataset) -> Edge | None:
    """Compare sharpness with the threshold over a run; None where one of them is not known."""
    sharpness = series(data, "sharpness")
    threshold = aligned(data, "stability_threshold", sharpness.steps)
    known = np.isfinite(threshold) & (threshold > 0)
    if not known.any():
        return None
    steps, values, threshold = sharpness.steps[known], sharpness.values[known], threshold[known]
    ratio = values / threshold
    found = Edge(
        first=float(values[0]),
        last=float(values[-1]),
        threshold=float(threshold[-1]),
        first_threshold=float(threshold[0]),
        start_ratio=float(ratio[0]),
        end_ratio=float(ratio[-1]),
        highest=float(ratio.max()),
        highest_at=int(steps[ratio.argmax()]),
        total=len(ratio),
    )
    above = np.flatnonzero(ratio >= 1)
    if not len(above):
        return found
    at = int(above[0])
    low, median, high = np.quantile(ratio[at:], [0.05, 0.5, 0.95])
    return replace(
        found,
        crossed=int(steps[at]),
        before=int(steps[at - 1]) if at else None,
        there=float(values[at]),
        threshold_there=float(threshold[at]),
        low=float(low),
        median=float(median),
        high=float(high),
        inside=float(((ratio[at:] >= BAND[0]) & (ratio[at:] <= BAND[1])).mean()),
        falls=float((np.diff(values[at:]) < 0).mean()) if len(ratio) > at + 1 else 0.0,
        measured=len(ratio) - at,
    )


@dataclass(frozen=True)
class Loss:
    """How the loss went.

    Attributes:
        first: Loss at the start, or the median of the first twentieth where it is noisy; ``last`` likewise.
        last_step: Step of the last finite loss.
        stopped_being_finite: First step after it, if the run ended there.
        falling: Relative decrease from the last tenth but one to the last tenth (medians); None if too short.
        rises: Share of the single steps at which it rose; None if too few.
        noisy: Whether ``first`` and ``last`` are medians.
    """

    first: float
    last: float
    last_step: int
    stopped_being_finite: int | None
    falling: float | None
    rises: float | None
    noisy: bool = False

    @property
    def diverged(self) -> bool:
        """Whether it ended non-finite, or far above its start."""
        return self.stopped_being_finite is not None or self.last > BLOWN_UP * abs(self.first) > 0


def losses(data: xr.Dataset, *, noisy: bool = False) -> Series:
    """Return the loss over all data where it was measured, else the training loss."""
    full = series(data, "full_loss")
    return full if noisy and len(full) > 1 else series(data, "loss")


def loss_facts(data: xr.Dataset, *, noisy: bool = False) -> Loss | None:
    """Describe the loss; None where there is no finite one.

    Args:
        data: A run's data.
        noisy: Whether each value is that of another mini-batch.
    """
    curve = losses(data, noisy=noisy)
    if not len(curve):
        return None
    count = max(len(curve) // 20, 1) if noisy else 1
    later = data["step"].to_numpy()[data["step"].to_numpy() > curve.steps[-1]]
    failed = data.attrs.get("state") == "failed" and len(later) > 0
    return Loss(
        first=float(np.median(curve.values[:count])),
        last=float(np.median(curve.values[-count:])),
        last_step=int(curve.steps[-1]),
        stopped_being_finite=int(later[0]) if failed else None,
        falling=_falling(curve),
        rises=rises(curve),
        noisy=count > 1,
    )


def _falling(curve: Series) -> float | None:
    if len(curve) < 5 * ENOUGH:
        return None
    tenth = len(curve) // 10
    before, last = np.median(curve.values[-2 * tenth : -tenth]), np.median(curve.values[-tenth:])
    return float((before - last) / abs(before)) if before != 0 else None


def rises(curve: Series) -> float | None:
    """Return the share of single steps at which ``curve`` rose; None below `ENOUGH` of them."""
    single = np.diff(curve.steps) == 1
    return float((np.diff(curve.values)[single] > 0).mean()) if single.sum() >= ENOUGH else None


@dataclass(frozen=True)
class Oscillation:
    """How updates turn back on themselves over a stretch of a run.

    Attributes:
        cosine: Median cosine between successive updates; None below `ENOUGH` of them.
        flips: Share of the pairs of neighbouring steps at which the update along the leading eigenvector changes
            its sign; None where fewer than `ENOUGH` such pairs were measured with the same eigenvector.
        amplitude: Median size of the update along the leading eigenvector; None if unknown.
    """

    cosine: float | None
    flips: float | None
    amplitude: float | None


def oscillation(data: xr.Dataset, start: int, stop: int | None = None) -> Oscillation:
    """Describe the steps from ``start`` on, up to ``stop`` without it."""
    last = stop if stop is not None else int(data["step"].max()) + 1
    cosine = series(data, "update_cosine").after(start).before(last)
    along = series(data, "update_projection", 0).after(start).before(last)
    pairs = np.diff(along.steps) == 1
    if "eigen_tracks" in data:
        position = np.searchsorted(data["step"].to_numpy(), along.steps)
        tracks = data["eigen_tracks"].isel(eigenvalue=0).to_numpy()[position]
        pairs &= np.diff(tracks) == 0
    flipped = (along.values[1:] * along.values[:-1] < 0)[pairs]
    return Oscillation(
        cosine=float(np.median(cosine.values)) if len(cosine) >= ENOUGH else None,
        flips=float(flipped.mean()) if len(flipped) >= ENOUGH else None,
        amplitude=float(np.median(np.abs(along.values))) if len(along) >= ENOUGH else None,
    )


def residuals(data: xr.Dataset) -> Series:
    """Return the largest residual of each measurement, relative to the largest eigenvalue by magnitude."""
    if "eigen_residuals" not in data or not data.sizes.get("eigenvalue", 0):
        return Series(np.empty(0, np.int64), np.empty(0))
    residual = data["eigen_residuals"].to_numpy().astype(np.float64)
    scale = np.abs(aligned(data, "sharpness", data["step"].to_numpy()))
    worst = np.where(np.isfinite(residual), residual, -1.0).max(axis=1)
    known = (worst >= 0) & np.isfinite(scale) & (scale > 0)
    return Series(data["step"].to_numpy().astype(np.int64)[known], worst[known] / scale[known])
