"""Thick-restart Lanczos on callables: either end of a spectrum, to a residual, with nothing missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.operators.base import Operator
from thalweg.spectra.krylov import Array, Krylov
from thalweg.spectra.results import Eigenpairs, Stop

Which = Literal["largest", "smallest", "both", "magnitude"]

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
_MISS = 1e-3
"""Largest probability with which a repeated eigenvalue may be missed."""


@dataclass(frozen=True)
class Lanczos:
    """Thick-restart Lanczos with full reorthogonalisation (after Wu and Simon, 2000).

    A pair has converged when ``|A v - theta v| <= tol max(|theta|, 1e-3 |A|)``; the error of its value is at most
    that, and usually its square over the gap.

    Attributes:
        tol: Relative residual; default 1e-7 in float64, 1e-4 below.
        max_products: Budget; default ``20 P`` up to 10,000.
        basis: Vectors kept at once; default ``3 k + 30``. More need fewer products and more memory.
        check_multiplicity: For k > 1, probe the complement of the space for eigenvalues that a single starting vector
            cannot see (copies of repeated ones), until missing one has probability below 1e-3.

    Raises:
        InvalidInput: A field is out of range.
    """

    tol: float | None = None
    max_products: int | None = None
    basis: int | None = None
    check_multiplicity: bool = True

    def __post_init__(self) -> None:
        bad = [
            f"{name}={value}"
            for name, value in (("tol", self.tol), ("max_products", self.max_products), ("basis", self.basis))
            if value is not None and not value > 0
        ]
        if bad:
            raise InvalidInput(
                explain(f"Lanczos got {', '.join(bad)}", "they must be positive", "Pass None for defaults")
            )

    def tolerance(self, dtype: torch.dtype) -> float:
        """The relative residual in force for ``dtype``."""
        return self.tol if self.tol is not None else _TOLERANCE.get(dtype, 1e-4)


def top_eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    method: Lanczos | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Eigenpairs:
    r"""Return ``k`` extreme eigenpairs, ``A v_i = \theta_i v_i``, to a residual.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        k: How many (from each end for ``which="both"``). At most P are returned.
        which: ``"largest"`` or ``"smallest"`` by algebraic value, ``"both"`` ends in one run, or the largest
            ``"magnitude"``.
        method: Tolerance, budget and basis.
        start: A starting guess, shape ``(P,)`` or ``(P, l)`` whose columns are summed, such as old eigenvectors.
        seed: Seed of the random starting vector. The result does not depend on it beyond the tolerance.
        strict: Raise where the tolerance is not met; False returns what there is, with its residuals and stop reason.

    Returns:
        `Eigenpairs`, values in descending order.

    Raises:
        InvalidInput: ``k`` or ``which`` makes no sense.
        NotConverged: The budget ran out or residuals stagnated (``strict=True``); ``error.result`` holds the rest.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.tensor([5.0, 3.0, 3.0, -7.0], dtype=torch.float64)))
        >>> [round(v, 9) for v in top_eigenpairs(A, k=3).values.tolist()]
        [5.0, 3.0, 3.0]
        >>> [round(v, 9) for v in top_eigenpairs(A, which="both").values.tolist()]
        [5.0, -7.0]
    """
    method = method or Lanczos()
    if k < 1 or which not in get_args(Which) or operator.size < 1:
        raise InvalidInput(
            explain(
                f"top_eigenpairs got k={k}, which={which!r}, size {operator.size}",
                "k counts eigenpairs from an end of a spectrum that is not empty",
                f"Pass k >= 1 and one of {', '.join(get_args(Which))}",
            )
        )
    if start is not None and start.ndim == 2:
        start = start.sum(dim=1)
    before = operator.products
    solve = _Solve(operator, min(k, operator.size), which, method, seed)
    values, rows, residuals, stop = solve.run(start)
    order = np.argsort(-values, kind="stable")
    result = Eigenpairs(
        values=torch.from_numpy(values[order].copy()).to(operator.dtype),
        vectors=rows[torch.from_numpy(order.copy()).to(rows.device)].T,
        residuals=torch.from_numpy(residuals[order].copy()).to(operator.dtype),
        products=operator.products - before,
        stop=stop,
    )
    if strict and not stop.converged:
        raise NotConverged(
            explain(
                f"After {result.products} products the largest residual is {float(result.residuals.max()):.2e}",
                stop.value.split(": ")[0],
                f"To go on, {stop.value.split(': ')[1].rstrip('.')}; strict=False returns the unfinished result",
            ),
            result,
        )
    return result


def wanted(values: Array, k: int, which: Which) -> list[int]:
    """Return the positions of the wanted ones among ascending ``values``."""
    n = len(values)
    if which == "largest":
        return list(range(max(n - k, 0), n))
    if which == "smallest":
        return list(range(min(k, n)))
    if which == "both":
        return sorted({*range(min(k, n)), *range(max(n - k, 0), n)})
    return sorted(np.argsort(-np.abs(values), kind="stable")[:k].tolist())


Need = Callable[[Array], list[int]]
Pairs = tuple[Array, Tensor, Array, Stop]


class _Solve:
    """One call of `top_eigenpairs`: a main run, then probes of what it could not see."""

    def __init__(self, operator: Operator, k: int, which: Which, method: Lanczos, seed: int) -> None:
        self.operator, self.k, self.which, self.method, self.seed = operator, k, which, method, seed
        self.tol = method.tolerance(operator.dtype)
        self.count = 2 * k if which == "both" else k
        self.capacity = min(max(method.basis or 3 * self.count + 30, self.count + 2), operator.size)
        self.budget = method.max_products or min(20 * operator.size + 100, 10_000)
        self.first = operator.products
        self.norm = 0.0
        self.ends = (np.inf, -np.inf)

    def run(self, start: Tensor | None) -> Pairs:
        """Converge the wanted pairs, then look for hidden ones until none is left to find."""
        space = self._space("start")
        values, rows, residuals, stop = self._converge(space, start, lambda v: wanted(v, self.k, self.which))
        if self.k == 1 or not self.method.check_multiplicity:
            return values, rows, residuals, stop
        found = rows
        for attempt in range(self.operator.size):
            if not stop.converged or not self._hidden(space, values, attempt):
                break
            # Something in the complement belongs to the result: fetch all of it, and look again.
            space = self._space("complement", attempt, against=found)
            bounds = self._bounds(values)
            more = self._converge(space, None, lambda v, b=bounds: self._beyond(v, b))  # type: ignore[misc]
            found = torch.cat([found, more[1]])
            stop = stop if more[3].converged else more[3]
            values, residuals = np.concatenate([values, more[0]]), np.concatenate([residuals, more[2]])
            rows = torch.cat([rows, more[1]])
            order = np.argsort(values, kind="stable")
            best = order[wanted(values[order], self.k, self.which)]
            values, residuals = values[best], residuals[best]
            rows = rows[torch.from_numpy(best.copy()).to(rows.device)]
        return values, rows, residuals, stop

    def _space(self, *names: str | int, against: Tensor | None = None) -> Krylov:
        stream = _rng.generator(self.seed, "lanczos", *names)
        taken = 0 if against is None else len(against)
        return Krylov(self.operator, max(min(self.capacity, self.operator.size - taken), 1), stream, against)

    def _scale(self, values: Array) -> Array:
        return np.maximum(np.abs(values), 1e-3 * self.norm)

    def _converge(self, space: Krylov, start: Tensor | None, need: Need) -> Pairs:
        """Expand and restart until the pairs that ``need`` names have converged."""
        space.begin(start)
        best, since = np.inf, 0
        while True:
            space.expand()
            values, coordinates, residuals = space.ritz()
            self.norm = max(self.norm, space.norm)
            self.ends = (min(self.ends[0], values[0]), max(self.ends[1], values[-1]))
            picked = need(values)
            floor = 4 * space.eps * self.norm
            full = space.room == 0
            short = not full and space.against is None and len(picked) < min(self.count, self.operator.size)
            limits = np.maximum(self.tol * self._scale(values[picked]), floor)
            done = len(picked) > 0 and bool((residuals[picked] <= limits).all()) and not short
            worst = float((residuals[picked] / np.maximum(limits, 1e-300)).max(initial=0.0))
            since = 0 if worst < 0.5 * best else since + 1
            best = min(best, worst)
            stop = None
            if full or (space.beta == 0.0 and not short):
                stop = Stop.INVARIANT
            elif done:
                stop = Stop.CONVERGED
            elif since > 20 * space.capacity and worst < 100 and space.eps > 1e-10:
                stop = Stop.STAGNATED
            elif self.operator.products - self.first >= self.budget:
                stop = Stop.BUDGET
            if stop is not None:
                # Rounding of restarts adds up like a random walk in the number of products.
                rounding = space.eps * self.norm * np.sqrt(self.operator.products - self.first)
                reported = np.maximum(residuals[picked], rounding)
                return values[picked], space.vectors(coordinates[:, picked]), reported, stop
            if space.size == space.capacity:
                kept = self._keep(values, residuals, picked)
                space.restart(values[kept], coordinates[:, kept])

    def _keep(self, values: Array, residuals: Array, picked: list[int]) -> list[int]:
        """Wanted pairs and their neighbours: half of what is left, which is where the next ones come from."""
        size = len(values)
        extra = max((size - len(picked)) * 2 // 5, 1)
        count = min(len(picked) + extra, size - 1)
        if self.which == "both":
            return wanted(values, max(count // 2, 1), "both")
        return wanted(values, count, self.which)

    def _bounds(self, values: Array) -> tuple[float, float]:
        """The values below and above which a hidden eigenvalue would belong to the result."""
        slack = 4 * self.tol * max(self.norm * 1e-3, float(np.abs(values).min())) + 8 * self.norm * np.finfo(float).eps
        if self.which == "largest":
            return -np.inf, float(values.min()) + slack
        if self.which == "smallest":
            return float(values.max()) - slack, np.inf
        if self.which == "both":
            ordered = np.sort(values)
            return float(ordered[min(self.k, len(ordered)) - 1]) - slack, float(
                ordered[-min(self.k, len(ordered))]
            ) + slack
        least = float(np.abs(values).min())
        return -least - slack, least + slack

    def _beyond(self, values: Array, bounds: tuple[float, float]) -> list[int]:
        return np.flatnonzero((values < bounds[0]) | (values > bounds[1])).tolist()

    def _hidden(self, space: Krylov, values: Array, attempt: int) -> bool:
        """Whether the complement of the Krylov space holds an eigenvalue that belongs to the result.

        In the complement the top of the spectrum is gone, so a few steps from a random start decide: if an
        eigenvalue at ``t`` existed, j steps would leave a relative gap eps below it with probability at most
        ``1.648 sqrt(n) exp(-sqrt(eps) (2 j - 1))`` (Kuczynski and Wozniakowski, 1992, for a uniform start).
        """
        known = space.rows[: space.size]
        if space.against is not None:
            known = torch.cat([space.against, known])
        free = self.operator.size - len(known)
        if free <= 0:
            return False
        low, high = self._bounds(values)
        probe = Krylov(self.operator, min(64, free), self._space("probe", attempt).generator, known)
        probe.begin(None)
        margin = 0.1 * (self.ends[1] - self.ends[0])  # the ends seen from inside are a little short
        while probe.size < probe.capacity:
            probe.expand()
            seen = probe.ritz()[0]
            if self._beyond(seen, (low, high)):
                return True
            if probe.room == 0:
                return False
            gaps = []
            if np.isfinite(high):
                gaps.append((high - seen[-1]) / max(high - min(self.ends[0], seen[0]) + margin, 1e-300))
            if np.isfinite(low):
                gaps.append((seen[0] - low) / max(max(self.ends[1], seen[-1]) + margin - low, 1e-300))
            chance = np.log(1.648) + 0.5 * np.log(free) - np.sqrt(max(min(gaps), 0.0)) * (2 * probe.size - 1)
            if chance < np.log(_MISS):
                return False
        return False
