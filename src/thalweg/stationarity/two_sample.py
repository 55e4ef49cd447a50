"""Whether two windows of a series have one distribution: a permutation test that respects autocorrelation.

Snapshots of a training run are correlated, so exchanging single ones makes chance look like change. Blocks longer
than the correlation are exchanged instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thalweg._rng import derive_seed
from thalweg.errors import InvalidInput, explain
from thalweg.stationarity import refusals
from thalweg.stationarity.autocorrelation import Floats, Series, autocovariance, is_constant, summed
from thalweg.stationarity.holm import holm as holm
from thalweg.stationarity.series import normal_scores
from thalweg.stationarity.two_sample_statistics import STATISTICS, BlockStatistic, Statistic, dealings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class BlockTest:
    """Outcome of `block_test`.

    Attributes:
        p: Share of dealings at least as far apart as the windows, ``(1 + #) / (1 + permutations)``; NaN if refused.
        statistic: Distance between the windows.
        effect: The same over the mean pooled distance of its kind; 0 where windows are alike, 4
            (``sliced``: 2) where two compact clouds lie far apart.
        yardstick: The same between the two halves of A. Chance alone makes it about twice as large as ``effect``
            (for ``sliced``, about 1.4 times), because halves are shorter.
        block: Length of a block, in snapshots.
        blocks: Blocks of each window.
        tau: Autocorrelation time of the slowest coordinate, in snapshots.
        snapshots: Snapshots of each window that were used: whole blocks.
        needed: Snapshots that each window needs, by the rules.
        kind: ``energy``, ``mmd`` or ``sliced``.
        refused: Why there is no p, in a sentence, or None.
        permuted: The statistic of every dealing, shape ``(permutations,)``; empty if refused.
    """

    p: float
    statistic: float
    effect: float
    yardstick: float
    block: int
    blocks: tuple[int, int]
    tau: float
    snapshots: tuple[int, int]
    needed: int
    kind: Statistic
    refused: str | None
    permuted: Floats

    def plot(self) -> Figure:
        """Draw the statistic of the windows among those of the dealings."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=self.permuted, nbinsx=40, name="blocks dealt at random"))
        if math.isfinite(self.statistic):
            figure.add_vline(x=self.statistic, line_dash="dash", annotation_text="the windows")
        title = self.refused.split(". ")[0] if self.refused else f"p = {self.p:.3g}, blocks of {self.block}"
        return figure.update_layout(
            title=title, xaxis_title=f"{self.kind} distance", yaxis_title="dealings", showlegend=False
        )

    def __repr__(self) -> str:
        if math.isnan(self.p):
            return f"BlockTest refused: {self.refused}"
        return (
            f"{self.kind} distance {self.statistic:.4g}, p = {self.p:.3g}; effect {self.effect:.3g}, halves of A "
            f"{self.yardstick:.3g}; {self.blocks[0]} + {self.blocks[1]} blocks of {self.block}, tau {self.tau:.3g}"
            + (f". Against the rules: {self.refused}" if self.refused else "")
        )


def block_test(
    a: Series,
    b: Series,
    *,
    statistic: Statistic = "energy",
    permutations: int = 499,
    block: int | None = None,
    scale: Literal["deviation", "ranks"] = "deviation",
    strict: bool = True,
    seed: int = 0,
    name: str = "the windows",
) -> BlockTest:
    """Test whether two windows have one distribution, by dealing out their blocks again at random.

    Every coordinate is standardised over both windows. ``p = (1 + #{T* >= T}) / (1 + permutations)``. Blocks are
    ``5 tau`` long, tau the largest autocorrelation time of any coordinate or of its distance from its median (a
    sign that flips at each step hides a slow amplitude), each about its window's own centre, so that a shift
    between the windows does not lengthen blocks. Fewer than ten blocks in a window: no p. A window is cut at its
    start to whole blocks.

    Args:
        a: First window, shape ``(n,)`` or ``(n, k)``; at most about 64 coordinates make sense.
        b: Second window, shape ``(m,)`` or ``(m, k)``.
        statistic: ``energy``, ``mmd`` or ``sliced``; see `thalweg.stationarity.two_sample_statistics`.
        permutations: How many dealings.
        block: Length of a block, in snapshots, instead of ``5 tau``.
        scale: ``ranks`` maps each coordinate to normal scores first: for heavy tails.
        strict: Refuse a ``block`` that breaks the rules; otherwise p is there, and ``refused`` says what is wrong.
        seed: Of the dealings.
        name: What messages call the windows.

    Returns:
        The test; ``refused`` is a sentence where NaN, constants, few blocks or short blocks forbid a verdict.

    Raises:
        InvalidInput: Shapes that do not fit, an unknown statistic, or fewer than 99 permutations.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.standard_normal((200, 3)), rng.standard_normal((200, 3))
        >>> block_test(a, b).p > 0.05, block_test(a, b + 1).p
        (True, 0.002)
        >>> block_test(a[:10], b[:10]).refused.split(". ")[0]
        'Not enough effective samples of the windows: the window has 10 snapshots'
    """
    first, second = _windows(a, b, name)
    if statistic not in STATISTICS or scale not in ("deviation", "ranks") or permutations < 99:
        raise InvalidInput(
            explain(
                f"Statistic {statistic!r}, scale {scale!r}, {permutations} permutations",
                f"known are {', '.join(STATISTICS)} on 'deviation' or 'ranks', and fewer than 99 permutations cannot "
                "show a p of one in a hundred",
                "Choose one of these",
            )
        )
    if block is not None and block < 1:
        raise InvalidInput(
            explain(f"A block of {block} snapshots", "a block has at least one", "Give 1 or more, or leave it out")
        )
    refused = _unusable(first, second, name)
    if refused is not None:
        least = math.ceil(refusals.ENOUGH)
        return _refused(refused, statistic, block or 0, math.nan, least)

    pooled = np.concatenate([first, second])
    pooled = pooled[:, ~np.atleast_1d(is_constant(pooled))]
    pooled = normal_scores(pooled) if scale == "ranks" else _standardised(pooled)
    first, second = pooled[: len(first)], pooled[len(first) :]
    tau = slowest(first, second)
    ruled = refusals.block_length(tau)
    length = block or ruled
    counts = len(first) // length, len(second) // length
    shorter = min(len(first), len(second))
    needed = refusals.BLOCKS * max(length, ruled)
    if min(counts) < refusals.BLOCKS:
        refused = refusals.too_few_blocks(shorter, tau, length, min(counts))
    elif length < ruled:
        refused = refusals.too_short_blocks(tau, length)
    if min(counts) < 2 or (refused is not None and strict):
        return _refused(refused, statistic, length, tau, needed, counts)

    rng = np.random.default_rng(derive_seed(seed, "block permutation"))
    used = counts[0] * length, counts[1] * length
    points = np.concatenate([first[-used[0] :], second[-used[1] :]])
    measure = BlockStatistic(points, length, statistic, rng)
    found = float(measure(_weights(np.arange(sum(counts))[None] < counts[0], length))[0])
    permuted = measure(_weights(dealings(*counts, permutations, rng), length))
    # a dealing may repeat the windows, or swap them: rounding must not make it count as nearer
    p = (1 + int((permuted >= found * (1 - 1e-9)).sum())) / (1 + permutations)
    yardstick = _between_halves(first[-used[0] :], statistic, rng, measure.width) / measure.scale
    return BlockTest(
        p, found, found / measure.scale, yardstick, length, counts, tau, used, needed, statistic, refused, permuted
    )


def slowest(a: Floats, b: Floats) -> float:
    """Return the largest autocorrelation time of any coordinate, or of its distance from its median, in snapshots.

    Autocovariances of the two windows are averaged, weighted by their lengths, each about its window's own centre.

    Args:
        a: First window, shape ``(n, k)``.
        b: Second window, shape ``(m, k)``.

    Example:
        >>> signs = (-1.0) ** np.arange(400)[:, None]  # flips each step, and its size changes slowly
        >>> slowest(signs * (2 + np.sin(np.arange(400) / 20))[:, None], signs) > 20
        True
    """
    folded = [np.abs(x - np.median(x, axis=0)) for x in (a, b)]
    lags = min(len(a), len(b))
    with np.errstate(divide="ignore", invalid="ignore"):
        covariances = [
            len(x) * np.concatenate([autocovariance(x), autocovariance(fold)], axis=1)[:lags]
            for x, fold in zip((a, b), folded)
        ]
        total = covariances[0] + covariances[1]
        size = total[0]
        times = summed(total / np.where(size > 1e-12 * size.max(), size, np.nan))
    return float(np.nanmax(times))


def _windows(a: Series, b: Series, name: str) -> tuple[Floats, Floats]:
    windows = [np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64) for x in (a, b)]
    shapes = [x.shape for x in windows]
    windows = [x[:, None] if x.ndim == 1 else x for x in windows]
    if any(x.ndim != 2 or x.size == 0 for x in windows) or windows[0].shape[1] != windows[1].shape[1]:
        raise InvalidInput(
            explain(
                f"Snapshots of {name} have shapes {shapes[0]} and {shapes[1]}",
                "each window has one row for each snapshot, and both have the same coordinates",
                "Give arrays of shape (n, k) and (m, k), or (n,) and (m,)",
            )
        )
    return windows[0], windows[1]


def _unusable(a: Floats, b: Floats, name: str) -> str | None:
    """Say what is wrong with windows whatever their blocks."""
    good = np.isfinite(np.concatenate([a, b])).all(axis=1)
    if not good.all():
        return refusals.not_finite(name, int((~good).sum()), len(good), int((~good).argmax()))
    shorter = min(len(a), len(b))
    if shorter < refusals.ENOUGH:
        return refusals.too_few(name, shorter)
    if np.all(is_constant(np.concatenate([a, b]))):
        return refusals.constant(name, float(a[0, 0]))
    if all(np.all(is_constant(x)) for x in (a, b)):
        return refusals.constants(name, float(a[0, 0]), float(b[0, 0]))
    return None


def _refused(
    why: str | None, kind: Statistic, block: int, tau: float, needed: int, blocks: tuple[int, int] = (0, 0)
) -> BlockTest:
    nan = math.nan
    return BlockTest(nan, nan, nan, nan, block, blocks, tau, (0, 0), needed, kind, why, np.empty(0))


def _standardised(points: Floats) -> Floats:
    return np.asarray((points - points.mean(axis=0)) / points.std(axis=0))


def _weights(to_first: Floats | np.ndarray[tuple[int, ...], np.dtype[np.bool_]], block: int) -> Floats:
    """Weights of points, per block: 1/n on A, -1/m on B."""
    n = int(to_first[0].sum()) * block
    m = to_first.shape[1] * block - n
    return np.where(to_first, 1 / n, -1 / m)


def _between_halves(window: Floats, kind: Statistic, rng: np.random.Generator, width: float) -> float:
    half = len(window) // 2
    measure = BlockStatistic(window[-2 * half :], half, kind, rng, width)
    return float(measure(np.array([[1 / half, -1 / half]]))[0])
