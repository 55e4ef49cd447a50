"""The evidence table: every number that a verdict was made of, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from thalweg.stationarity.series import BAD, GOOD

if TYPE_CHECKING:
    from thalweg.stationarity.agreement import Agreement
    from thalweg.stationarity.descent import Descent
    from thalweg.stationarity.fresh_step import FreshSteps
    from thalweg.stationarity.level import Level
    from thalweg.stationarity.verdict import Evidence


def rows(
    loss: Agreement | None,
    gradient: Level | None,
    others: Mapping[str, Agreement],
    adjusted: Mapping[str, float],
    descent: Descent | None,
    fresh: FreshSteps | None,
) -> tuple[Evidence, ...]:
    """Return the rows, the loss first."""
    from thalweg.stationarity.verdict import Evidence

    found = [] if loss is None else _loss(loss)
    if gradient is not None and not math.isnan(gradient.unbiased):
        found += _gradient(gradient)
    if descent is not None:
        says = "curvature eats what descent promises" if abs(descent.ratio) < 0.1 else ""
        says = "slow, smooth descent" if descent.ratio > 0.9 else says
        found.append(Evidence("descent ratio Q", f"{descent.ratio:.3g} ± {descent.standard_error:.1g}", says))
        if descent.mismatch is not None:
            found.append(Evidence("curvature share, less that of Hessian products", f"{descent.mismatch:+.2%}"))
    if fresh is not None:
        found.append(Evidence("change of the loss by fresh updates", f"{fresh.mean}", fresh.says))
    for name, x in others.items():
        p = adjusted.get(name)
        test = f", halves p = {p:.2g} (Holm)" if p is not None and p == p else ""
        tau = f"tau {x.tau:.3g} of {x.n} snapshots{test}" if math.isfinite(x.tau) else f"{x.n} snapshots"
        found.append(Evidence(name.replace("_", " "), tau, x.state if x.state != "open" else "open: " + _short(x.why)))
    return tuple(found)


def _loss(loss: Agreement) -> list[Evidence]:
    from thalweg.stationarity.verdict import Evidence

    found = [Evidence("loss", _short(loss.why), loss.state)]
    if loss.mean is None or loss.rhat is None or loss.trend is None:
        return found
    found.append(Evidence("mean loss", f"{loss.mean.value:.6g} ± {loss.mean.standard_error:.2g}"))
    found.append(Evidence("effective samples", f"{loss.ess:.0f} of {loss.n}, tau {loss.tau:.3g} snapshots"))
    worst = loss.rhat.worst
    words = "quarters agree" if worst < GOOD else "quarters do not agree" if worst > BAD else "quarters nearly agree"
    found.append(Evidence("split R-hat", f"{worst:.4f}", words))
    if loss.geweke is not None:
        found.append(Evidence("Geweke", f"z = {loss.geweke:+.2f}"))
    drop = loss.trend.slope * loss.n
    found.append(Evidence("trend of the loss", f"{drop:+.2g} deviations over the window, p = {loss.trend.p:.2g}"))
    return found


def _gradient(level: Level) -> list[Evidence]:
    from thalweg.stationarity.verdict import Evidence

    low, high = level.interval
    found = [Evidence("U, unbiased |grad|²", f"{level.unbiased:.4g}, 95 % {low:.4g} to {high:.4g}", _short(level.why))]
    known = not math.isnan(level.floor)
    found.append(Evidence("floor", f"{level.floor:.4g}" if known else "unknown"))
    for name, value in (
        ("A, biased by noise", level.biased),
        ("V, noise of a mini-batch", level.noise),
        ("U in eval mode", level.evaluated),
        ("scale-free |w|² |grad|²", level.scale_free),
    ):
        if math.isfinite(value):
            found.append(Evidence(name, f"{value:.4g}"))
    found.append(Evidence("smallest detectable norm", f"{math.sqrt(max(0.0, level.detectable)):.3g}"))
    if level.trend is not None:
        says = "rising" if level.rising else "falling" if level.falling else "no clear trend"
        found.append(Evidence("trend of U", f"{level.trend}", says))
    return found


def _short(text: str) -> str:
    """Return the first sentence."""
    return text.split(". ")[0].rstrip(".")
