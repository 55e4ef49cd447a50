"""What a phase diagram says, in a sentence and in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thalweg.phases.diagram import NEAR, QUADRATIC

if TYPE_CHECKING:
    from thalweg.phases.diagram import PhaseDiagram


def opening(diagram: PhaseDiagram) -> str:
    """Whether the phase of sharpness reduction opens with ``depth / width``: opens, closed, open, unclear or unknown.

    *opens*: over all seeds the rank correlation of ``c_loss`` with ``depth / width`` is positive by more than chance (a
    permutation test at 1 %), and the mean at the largest ``depth / width`` is more than 15 % above that at the
    smallest. *closed*: the mean of every cell is within 15 % of 2. *open*: every mean is above that, without a
    trend. *unclear*: anything else. *unknown*: ``c_loss`` was found nowhere.
    """
    points = [
        (depth / width, value)
        for depth, width in diagram.cells
        for value in diagram.values("c_loss", depth, width)
        if np.isfinite(value)
    ]
    if not points:
        return "unknown"
    ratio, value = np.array(points).T
    means = [float(np.mean(value[ratio == one])) for one in np.unique(ratio)]
    if all(abs(mean / QUADRATIC - 1) <= NEAR for mean in means):
        return "closed"
    if len(means) > 1 and means[-1] > (1 + NEAR) * means[0] and _trend(ratio, value) < 0.01:
        return "opens"
    return "open" if all(mean > QUADRATIC * (1 + NEAR) for mean in means) else "unclear"


def sentence(diagram: PhaseDiagram) -> str:
    """Say whether sharpness reduction opens, from where to where, and what lies beyond it."""
    kind = opening(diagram)
    if kind == "unknown":
        return "The loss rises nowhere within the learning rates that were tried."
    ends = sorted(diagram.cells, key=lambda cell: cell[0] / cell[1])
    means = {cell: diagram.summary("c_loss", *cell).mean for cell in ends}
    ends = [cell for cell in ends if np.isfinite(means[cell])]
    small, large = ends[0], ends[-1]

    def told(cell: tuple[int, int]) -> str:
        return f"{means[cell]:.3g} at depth {cell[0]}, width {cell[1]}"

    text = {
        "opens": "Sharpness reduction opens with depth / width: the loss first rises at c = "
        f"{told(small)}, and only at {told(large)}; a quadratic loss would rise at 2 in both.",
        "closed": "Sharpness reduction does not open: in every cell the loss first rises near c = 2, as that of a "
        f"quadratic does ({min(means[cell] for cell in ends):.3g} to {max(means[cell] for cell in ends):.3g}).",
        "open": f"Sharpness reduction is open in every cell: the loss first rises at c = {told(small)}, and at "
        f"{told(large)}; a quadratic loss would rise at 2"
        + (". There is no clear trend with depth / width." if len(ends) > 1 else "."),
        "unclear": f"There is no clear trend of sharpness reduction with depth / width: the loss first rises at c = "
        f"{told(small)}, and at {told(large)}.",
    }[kind]
    if "c_max" not in diagram.constants:
        return text
    most = {cell: diagram.summary("c_max", *cell).mean for cell in ends}
    both = [cell for cell in ends if np.isfinite(most[cell])]
    if not both:
        return f"{text} Nothing diverged within the learning rates that were tried."
    gap = [most[cell] / means[cell] for cell in both]
    if gap[-1] < 0.75 * gap[0] and max(gap) <= (1 + NEAR) * gap[0]:
        return (
            f"{text} The catapults between that and divergence close: from a factor of {gap[0]:.2g} in the learning "
            f"rate to one of {gap[-1]:.2g}."
        )
    lowest, highest = min(most[cell] for cell in both), max(most[cell] for cell in both)
    span = f"c = {lowest:.3g}" if highest < 1.05 * lowest else f"c = {lowest:.3g} to {highest:.3g}"
    return f"{text} Training diverges from {span} on."


def table(diagram: PhaseDiagram) -> str:
    """One line a cell: mean and quantiles of each constant, and how many seeds have one."""
    head = f"{'depth':>5}{'width':>7}{'sharpness':>11}" + "".join(f"{name:>22}" for name in diagram.constants)
    lines = [head]
    for depth, width in diagram.cells:
        start = float(np.nanmean(diagram.data["sharpness0"].sel(depth=depth, width=width)))
        line = f"{depth:>5}{width:>7}{start:>11.4g}"
        for name in diagram.constants:
            line += f"{told(diagram, name, depth, width):>22}"
        lines.append(line)
    return "\n".join(lines)


def told(diagram: PhaseDiagram, name: str, depth: int, width: int) -> str:
    """Say one constant of a cell: its mean, in brackets the quartiles; how many seeds lie beyond the grid."""
    found, beyond = diagram.summary(name, depth, width), diagram.beyond(name, depth, width)
    if not found.count:
        return f"beyond the grid ({beyond})" if beyond else "–"
    text = f"{found.mean:.3g} ({found.quantiles[0]:.3g}–{found.quantiles[1]:.3g})"
    return f"{text} +{beyond}" if beyond else text


def _trend(ratio: np.ndarray, value: np.ndarray, draws: int = 4000) -> float:
    """Probability that shuffled values correlate as much with the ratio, by ranks."""
    from scipy.stats import rankdata

    a, b = rankdata(ratio), rankdata(value)
    a, b = a - a.mean(), b - b.mean()
    stream = np.random.default_rng(0)
    seen = float(a @ b)
    chance = sum(float(a @ stream.permutation(b)) >= seen for _ in range(draws))
    return (1 + chance) / (1 + draws)
