"""Tables of a look at glass as text: a density where there is one, and none where what is left is a remainder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thalweg.glass.change import LossChange
    from thalweg.glass.exponents import LayerExponent
    from thalweg.glass.look import Glass
    from thalweg.glass.table import GlassRow


def density_word(row: GlassRow, power: LayerExponent) -> str:
    """Return the density of a layer, ``none`` where its powers say so, or ``rounding``.

    A gradient without jumps leaves a remainder in the estimate, which shrinks with the probe and is no density.
    """
    if power.continuous:
        return "none"
    return f"{row.rho:.1e}" if row.resolved else "rounding"


def label_word(power: LayerExponent) -> str:
    """Return what the powers say; ``no jumps`` where it is a kink or smooth, and not known which."""
    return "no jumps" if power.label == "unsure" and power.continuous else power.label


def value_word(value: float, error: float, digits: int = 2) -> str:
    """Return ``value ± error``; a dash without a value.

    Example:
        >>> value_word(0.987, 0.04), value_word(1.0, float("nan")), value_word(float("nan"), 0.0)
        ('0.99±0.04', '1.00', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + (f"±{error:.{digits}f}" if math.isfinite(error) else "")


def layer_table(found: Glass) -> str:
    """Return density, powers and what they say of each layer, as aligned columns."""
    head = ("layer", "density", "s.e.", "1st power", "2nd power", "says", "leakage", "glass up to", "matters")
    rows = [head]
    for row, power, layer in zip(found.density.layers, found.exponents.layers, found.layers):
        word = density_word(row, power)
        known = word[0].isdigit() and math.isfinite(row.rho_error)
        rows.append(
            (
                row.name,
                word,
                f"{row.rho_error / row.rho:.0%}" if known else "",
                value_word(power.first, power.first_error),
                value_word(power.second, power.second_error),
                label_word(power),
                f"{row.leakage:.0%}" if math.isfinite(row.leakage) else "-",
                f"{layer.crossover:.1e}" if layer.crossover else "-",
                layer.curvature,
            )
        )
    density = found.density
    title = f"Glass(sigma {density.sigma:.1e}, {density.batches} batches"
    title += f" of {density.batch_size})" if density.batch_size else ")"
    return "\n".join([title, *_aligned(rows)])


def change_table(change: LossChange, glassy: bool) -> str:
    """Return the loss change by length, measured and predicted; without kinks along the step glass predicts none."""
    e, m = change.expected, change.measured
    rows = [("length", "measured", "Hessian model", "deviation", "glass", "bound")]
    for i, t in enumerate(e.lengths):
        rows.append(
            (
                f"{t:.3g}",
                f"{m.change[i]:+.3e} ± {m.change_error[i]:.1e}",
                f"{e.linear[i] + e.hessian[i]:+.3e}",
                f"{change.size[i]:.2e} ± {change.size_error[i]:.0e}",
                f"{e.glass[i]:.2e}" if glassy else "none",
                f"{e.jensen[i]:.2e}" if glassy else "none",
            )
        )
    return "\n".join(_aligned(rows))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns; the first one and those of words stand left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = {i for i, head in enumerate(rows[0]) if head in ("layer", "says", "matters")}
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines
