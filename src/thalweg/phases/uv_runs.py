"""Short runs of the exactly solvable model: the known truth for the machinery that finds critical constants."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import Cost, EarlyCurves, Row
from thalweg.phases.uv import Floats, UVModel, UVPath, uv_path, uv_step
from thalweg.phases.uv_critical import Units, uv_c_loss, uv_c_max, uv_eps
from thalweg.phases.uv_hessian import uv_eigenvalues


@dataclass(eq=False, repr=False)
class UVRuns:
    """The `EarlyRuns` of random starts of the model, by its exact recursion.

    Args:
        model: The model.
        seeds: One start each, with standard normal weights.
        units: What plays the sharpness, and so the unit of learning rates: the trace of the Hessian, by which all
            critical values are known, or its largest eigenvalue.
        steps: Steps of a run.
        cutoff: Loss beyond which a run has diverged.

    Raises:
        InvalidInput: No seeds, no steps, or unknown units.

    Example:
        >>> runs = UVRuns(UVModel(4), seeds=range(3))
        >>> c = runs.c_loss[0]
        >>> below, above = runs.first_losses([(0, 0.99 * c), (0, 1.01 * c)])
        >>> bool(below < runs.loss0[0] < above)
        True
    """

    model: UVModel
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    units: Units = "trace"
    steps: int = 10
    cutoff: float = 1e5
    cost: Cost = field(default=Cost(), init=False)

    def __post_init__(self) -> None:
        self.seeds = tuple(int(seed) for seed in self.seeds)
        if not self.seeds or self.steps < 1 or self.units not in ("trace", "lambda"):
            raise InvalidInput(
                explain(
                    f"There are {len(self.seeds)} seeds, {self.steps} steps, units {self.units!r}",
                    "it takes at least one of each, and units of 'trace' or 'lambda'",
                    "Correct what is missing",
                )
            )
        self._weights = [self.model.weights(seed) for seed in self.seeds]
        start = np.array([self.model.reduce(u, v) for u, v in self._weights])
        self._output, self._kernel = start[:, 0], start[:, 1]

    @property
    def loss0(self) -> Floats:
        """``L_0`` of each seed."""
        return np.asarray((self._output - self.model.y) ** 2 / 2)

    @property
    def sharpness0(self) -> Floats:
        """``T_0`` or ``lambda_0`` of each seed."""
        return self._sharpness(self._output - self.model.y, self._kernel)

    @property
    def eps(self) -> Floats:
        """``(a f_0 / T_0)^2`` of each seed."""
        return uv_eps(self.model, self._output, self._kernel)

    @property
    def c_loss(self) -> Floats:
        """The true ``c_loss`` of each seed, in these units; for ``y = 0``."""
        return uv_c_loss(self._solvable().eps, self.units)

    @property
    def c_max(self) -> Floats:
        """The true ``c_max`` of each seed, that of runs without end; for ``y = 0``. Ten steps may not show it yet."""
        return uv_c_max(self._solvable().eps, self.units)

    def __repr__(self) -> str:
        return f"UVRuns(width {self.model.width}, {len(self.seeds)} seeds, {self.steps} steps, c by the {self.units})"

    def first_losses(self, rows: Sequence[Row]) -> Floats:
        """``L_1`` of each row."""
        at, rate = self._rates(rows)
        residual, _ = uv_step(self.model, self._output[at] - self.model.y, self._kernel[at], rate)
        self._spend(forwards=len(at))
        return np.asarray(residual**2 / 2)

    def run(
        self, rows: Sequence[Row], measure: Collection[int] = (), ceiling: Sequence[float] | None = None
    ) -> EarlyCurves:
        """Follow every row for ``steps`` steps; the sharpness is NaN at steps that are not in ``measure``.

        Nothing would be saved by stopping at a ceiling, so none does.
        """
        began = time.perf_counter()
        path = self._path(rows)
        loss = path.loss
        shown = np.full(loss.shape, np.nan)
        for step in {0, *(int(step) for step in measure)}:
            values = self._sharpness(path.residual[:, step], path.kernel[:, step])
            shown[:, step] = np.where(np.isfinite(values), values, np.nan)
        count = len(rows) * len(set(measure) - {0})
        self._spend(runs=len(rows), gradients=len(rows) * self.steps, solves=count, seconds=time.perf_counter() - began)
        return EarlyCurves(tuple((int(seed), float(c)) for seed, c in rows), loss, shown)

    def barrier(self, rows: Sequence[Row], points: int = 101) -> Floats:
        """Largest ``L / L_0`` on the segment from the start to the end of each run, the start left out.

        ``u + v`` and ``u - v`` keep their directions: each step multiplies them by ``1 - eta a D`` and ``1 + eta a D``.
        So on the segment ``f = a / 2 (P (1 - t + t A)^2 - Q (1 - t + t B)^2)`` with the products ``A``, ``B``, and
        ``P, Q = |u +- v|^2 / 2``.
        """
        at, rate = self._rates(rows)
        path = self._path(rows)
        alive: NDArray[np.bool_] = np.asarray(np.isfinite(path.residual).all(axis=1))
        push = rate[:, None] * self.model.scale * np.where(alive[:, None], path.residual[:, :-1], 0.0)
        ends = np.prod(1 - push, axis=1), np.prod(1 + push, axis=1)
        plus = np.array([float((u + v) @ (u + v)) / 2 for u, v in self._weights])[at]
        minus = np.array([float((u - v) @ (u - v)) / 2 for u, v in self._weights])[at]
        t = np.linspace(0, 1, points)[1:]
        parts = [size[:, None] * (1 - t + t * end[:, None]) ** 2 for size, end in zip((plus, minus), ends)]
        loss = (self.model.scale / 2 * (parts[0] - parts[1]) - self.model.y) ** 2 / 2
        self._spend(forwards=len(at) * (points - 1))
        ratio: Floats = loss.max(axis=1) / self.loss0[at]
        return np.where(alive, ratio, np.inf)

    def sharpness_at(self, rows: Sequence[Row], steps: Sequence[int], ceiling: Sequence[float] | None = None) -> Floats:
        """Sharpness of each row after its own number of steps; NaN where it diverged."""
        at, rate = self._rates(rows)
        most = np.asarray(steps, dtype=np.int64)
        residual, kernel = self._output[at] - self.model.y, self._kernel[at].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(int(most.max(initial=0))):
                moved = uv_step(self.model, residual, kernel, rate)
                going = (step < most) & np.isfinite(residual)
                fine = moved[0] ** 2 / 2 <= self.cutoff
                residual = np.where(going, np.where(fine, moved[0], np.inf), residual)
                kernel = np.where(going, np.where(fine, moved[1], np.inf), kernel)
        self._spend(runs=len(at), gradients=int(most.sum()), solves=len(at))
        found = self._sharpness(residual, kernel)
        return np.where(np.isfinite(found), found, np.nan)

    def _path(self, rows: Sequence[Row]) -> UVPath:
        at, rate = self._rates(rows)
        return uv_path(self.model, self._output[at], self._kernel[at], lr=rate, steps=self.steps, cutoff=self.cutoff)

    def _rates(self, rows: Sequence[Row]) -> tuple[NDArray[np.int64], Floats]:
        at = np.array([seed for seed, _ in rows], dtype=np.int64)
        return at, np.array([c for _, c in rows], dtype=np.float64) / self.sharpness0[at]

    def _sharpness(self, residual: Floats, kernel: Floats) -> Floats:
        return kernel if self.units == "trace" else uv_eigenvalues(self.model, residual, kernel)[1]

    def _solvable(self) -> UVRuns:
        if self.model.y != 0:
            raise InvalidInput(
                explain(
                    f"The target is {self.model.y:g}",
                    "critical values are known in closed form for y = 0",
                    "Measure them with critical_constants",
                )
            )
        return self

    def _spend(self, **what: float) -> None:
        self.cost = self.cost + Cost(**what)  # type: ignore[arg-type]
