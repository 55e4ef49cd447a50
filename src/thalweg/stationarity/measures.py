r"""Empirical measures of a path, and how nearly an update map leaves them as they are (arXiv 2110.06256, section 3).

With ``mu_n = (1/n) sum_t delta_{theta_t}`` and ``P phi(theta) = E phi(F(theta))``, a measure is invariant where
``mu(phi) = mu(P phi)`` for every observable phi. Along any path at all ``(1/n) sum_t [phi(theta_t) -
phi(theta_{t+1})]`` telescopes to zero: that is no evidence of anything, and no verdict here is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg._rng import derive_seed
from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.stationarity import refusals
from thalweg.stationarity.autocorrelation import Floats, is_constant
from thalweg.stationarity.doubling import doubling
from thalweg.stationarity.series import Mean, refusal, time_average

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Observable = Callable[[Any], float]


def invariance_bound(n: int, largest: float, delta: float | None = None, draws: int | None = None) -> float:
    r"""Return how far ``mu_n(phi)`` and ``mu_n(P phi)`` can lie apart, for n consecutive states.

    A deterministic map: ``2M/n``. A random one, with probability ``1 - delta``:
    ``2M/n + M sqrt(2 ln(2/delta) / n)``. The sum of ``phi(theta_t) - P phi(theta_t)`` is one that telescopes, plus
    differences of a martingale that each lie in an interval of width 2M, which Azuma's inequality bounds. Where
    ``P phi`` is itself the mean of r fresh draws, their differences join in, and M becomes ``M sqrt(1 + 1/r)``.

    Args:
        n: Consecutive states.
        largest: M, a bound on ``|phi|``, before and after the map.
        delta: Probability that the bound fails; None for a deterministic map.
        draws: r, fresh draws of the map at each state; None where ``P phi`` is exact.

    Raises:
        InvalidInput: No state, a bound below zero, or delta outside 0 to 1.

    Example:
        >>> invariance_bound(1000, 1.0), round(invariance_bound(1000, 1.0, delta=0.05), 4)
        (0.002, 0.0879)
    """
    if n < 1 or not largest >= 0 or (delta is not None and not 0 < delta < 1) or (draws is not None and draws < 1):
        raise InvalidInput(
            explain(
                f"A bound was asked for with n = {n}, M = {largest}, delta = {delta}, draws = {draws}",
                "the bound needs a state, M of zero or more, a probability between 0 and 1, and a draw",
                "Give such numbers",
            )
        )
    telescoped = 2 * largest / n
    if delta is None:
        return telescoped
    more = 1.0 if draws is None else 1 + 1 / draws
    return telescoped + largest * math.sqrt(2 * math.log(2 / delta) * more / n)


@dataclass(frozen=True, eq=False)
class EmpiricalMeasure:
    """Observables along a path, and their time averages.

    Attributes:
        values: Of each observable at each state, shape ``(n,)``.
        means: Time averages with errors; of a constant the error is 0.
        refused: Why an observable's average supports no verdict, in a sentence, by name; those that do are not in it.
    """

    values: Mapping[str, Floats]
    means: Mapping[str, Mean]
    refused: Mapping[str, str]

    def plot(self) -> Figure:
        """Draw the time average of each observable over the first n states, n doubling."""
        from plotly.subplots import make_subplots

        names = [name for name, x in self.values.items() if not is_constant(x) and len(x) >= 32]
        figure = make_subplots(rows=max(1, len(names)), cols=1, subplot_titles=names)
        for row, name in enumerate(names, 1):
            for trace in doubling(self.values[name], name=name).plot().data:
                figure.add_trace(trace.update(showlegend=False), row=row, col=1)
        return figure.update_xaxes(type="log").update_layout(title="Time averages over the first n states")

    def __repr__(self) -> str:
        return "\n".join(
            f"{name}: {mean}" + (" (no verdict)" if name in self.refused else "") for name, mean in self.means.items()
        )


def empirical_measure(states: Sequence[Any] | Floats, observables: Mapping[str, Observable]) -> EmpiricalMeasure:
    """Return ``mu_n(phi) = (1/n) sum_t phi(theta_t)`` of each observable, with its error.

    Args:
        states: States, oldest first: rows of an array, or anything that the observables take.
        observables: Functions of one state, by name.

    Returns:
        Values and averages.

    Raises:
        InvalidInput: Fewer than four states, or no observable.
        NonFinite: An observable that is NaN or infinite.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((500, 2))
        >>> measure = empirical_measure(x, {"square": lambda s: float(s @ s)})
        >>> abs(measure.means["square"].value - 2) < 0.3, dict(measure.refused)
        (True, {})
    """
    if not observables or len(states) < 4:
        raise InvalidInput(
            explain(
                f"There are {len(states)} states and {len(observables)} observables",
                "a measure is seen through observables, along four states or more",
                "Give both",
            )
        )
    values = {name: _values(phi, states, name) for name, phi in observables.items()}
    means = {name: _mean(x) for name, x in values.items()}
    reasons = {name: refusal(x, name) for name, x in values.items()}
    return EmpiricalMeasure(values, means, {name: why for name, why in reasons.items() if why is not None})


@dataclass(frozen=True)
class Residual:
    """How far one observable is from invariance.

    Attributes:
        average: ``mu_n(phi)``.
        value: ``mu_n(P phi) - mu_n(phi)``, from fresh draws of the map at each state.
        standard_error: Of it, with its autocorrelation; 0 for a deterministic map, whose value is exact.
        largest: M.
        assured: Whether M was given; otherwise it is the largest ``|phi|`` seen, and the bound an estimate.
        bound: How far it can be from 0, see `invariance_bound`.
    """

    average: float
    value: float
    standard_error: float
    largest: float
    assured: bool
    bound: float

    @property
    def within(self) -> bool:
        """Whether the residual keeps its bound; if not, the states are no path of this map, or not all of the state."""
        return abs(self.value) <= self.bound * (1 + 1e-9) + 1e-12 * self.largest


@dataclass(frozen=True)
class Invariance:
    """Approximate invariance of the empirical measure of a path, for a list of observables.

    Attributes:
        residuals: By name of the observable.
        n: States.
        deterministic: Whether the map is.
        delta: Probability that the bound of one observable fails; None for a deterministic map.
        total_variation: Bound on the distance of ``F#mu_n`` from ``mu_n``: ``1/n`` for a deterministic map. None for a
            random one, where it says nothing, because ``mu_n`` has atoms and its image has none of them.
    """

    residuals: Mapping[str, Residual]
    n: int
    deterministic: bool
    delta: float | None
    total_variation: float | None

    @property
    def largest(self) -> float:
        """The largest of the residuals, each over its M: the distance from invariance for this list."""
        return max(abs(r.value) / r.largest if r.largest > 0 else 0.0 for r in self.residuals.values())

    def plot(self) -> Figure:
        """Draw residuals over M with two standard errors, and their bounds."""
        import plotly.graph_objects as go

        names = list(self.residuals)
        rows = list(self.residuals.values())
        unit = [r.largest or 1.0 for r in rows]
        figure = go.Figure()
        figure.add_scatter(
            x=names,
            y=[r.value / u for r, u in zip(rows, unit)],
            error_y={"type": "data", "array": [2 * r.standard_error / u for r, u in zip(rows, unit)]},
            mode="markers",
            name="residual",
        )
        for sign in (-1, 1):
            figure.add_scatter(
                x=names,
                y=[sign * r.bound / u for r, u in zip(rows, unit)],
                mode="markers",
                marker_symbol="line-ew-open",
                marker_size=24,
                name="bound",
                showlegend=sign == 1,
            )
        return figure.update_layout(
            title=f"Residual of invariance over M, {self.n} states", yaxis_title="(mu(P phi) - mu(phi)) / M"
        )

    def __repr__(self) -> str:
        kind = "deterministic" if self.deterministic else "random"
        rows = [f"invariance under a {kind} map, {self.n} states"]
        for name, r in self.residuals.items():
            bound = f"bound {r.bound:.2g}" + ("" if r.assured else " for the largest value seen")
            rows.append(f"  {name}: average {r.average:.6g}, residual {r.value:+.2g} ± {r.standard_error:.1g}, {bound}")
            if not r.within:
                rows[-1] += ": ABOVE IT, so these are not consecutive states of this map"
        rows.append("  Small along every path of the map, by telescoping: no evidence that it settled.")
        return "\n".join(rows)


def invariance_residual(
    states: Sequence[Any] | Floats,
    update: Callable[..., Any],
    observables: Mapping[str, Observable],
    *,
    deterministic: bool,
    bounds: Mapping[str, float] | None = None,
    draws: int = 1,
    delta: float = 0.05,
    seed: int = 0,
) -> Invariance:
    """Return ``mu_n(P phi) - mu_n(phi)`` of each observable, with its error and its bound.

    The map is applied afresh at every state of the path, and the realised next state is not looked at.

    Args:
        states: Consecutive states of the path, oldest first, n of them. For a map with memory a state is all of it:
            weights, momentum, second moments, place in the epoch.
        update: ``F``: ``update(state)`` if deterministic, otherwise ``update(state, rng)`` with a generator of NumPy.
        observables: Functions of one state, by name.
        deterministic: Which of the two.
        bounds: M by name, where one is known; otherwise the largest ``|phi|`` seen stands in.
        draws: Fresh draws at each state, of a random map.
        delta: Probability that a bound fails, for one observable of a random map.
        seed: Of the draws.

    Returns:
        One residual for each observable.

    Raises:
        InvalidInput: Fewer than four states, no observable, an M that is exceeded or belongs to nothing, or no draw.
        NonFinite: An observable that is NaN or infinite.

    Example:
        >>> x = [0.9**t for t in range(100)]
        >>> found = invariance_residual(x, lambda s: 0.9 * s, {"x": float}, deterministic=True, bounds={"x": 1.0})
        >>> residual = found.residuals["x"]
        >>> round(residual.value, 6), residual.bound, found.total_variation
        (-0.01, 0.02, 0.01)
    """
    bounds = dict(bounds or {})
    strange = sorted(set(bounds) - set(observables))
    if strange or draws < 1 or (deterministic and draws != 1):
        raise InvalidInput(
            explain(
                f"Bounds of {', '.join(strange) or 'known observables'} and {draws} draws were given",
                "a bound belongs to an observable, and a deterministic map has one draw",
                "Name observables that are there, and give 1 draw, or more of a random map",
            )
        )
    before = empirical_measure(states, observables)
    rng = np.random.default_rng(derive_seed(seed, "fresh updates"))
    drawn = [update(s) if deterministic else update(s, rng) for s in states for _ in range(draws)]
    n, residuals = len(states), {}
    for name, phi in observables.items():
        after = _values(phi, drawn, f"{name} after the update").reshape(n, draws)
        seen = float(max(np.abs(before.values[name]).max(), np.abs(after).max()))
        largest = bounds.get(name, seen)
        if largest < seen:
            raise InvalidInput(
                explain(
                    f"Observable {name} reaches {seen:.6g} in size, above its bound of {largest:.6g}",
                    "the residual is only bounded where the observable is",
                    "Give a bound that holds, or leave it out",
                )
            )
        change = _mean(after.mean(axis=1) - before.values[name])
        bound = invariance_bound(n, largest, None if deterministic else delta, None if deterministic else draws)
        error = 0.0 if deterministic else change.standard_error
        residuals[name] = Residual(before.means[name].value, change.value, error, largest, name in bounds, bound)
    return Invariance(residuals, n, deterministic, None if deterministic else delta, 1 / n if deterministic else None)


def _values(phi: Observable, states: Sequence[Any] | Floats, name: str) -> Floats:
    values = np.array([float(phi(state)) for state in states], dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise NonFinite(refusals.not_finite(name, int(bad.sum()), len(values), int(bad.argmax())))
    return values


def _mean(values: Floats) -> Mean:
    if is_constant(values):
        return Mean(float(values.mean()), 0.0, 1.0, float(len(values)), len(values))
    return time_average(values)
