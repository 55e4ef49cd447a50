"""Critical constants as they are handed back: brackets per seed, phases of runs, summaries, a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import Array, Cost, EarlyCurves
from thalweg.phases.fits import Summary, summarise
from thalweg.phases.labels import Phase

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NAMES = ("c_loss", "c_sharp", "c_max", "c_barrier")
MARKERS = {"c_loss": "square", "c_sharp": "triangle-up", "c_barrier": "cross", "c_max": "diamond"}


class Status(StrEnum):
    """Whether a constant lies on the grid."""

    FOUND = "found"
    BELOW = "below the grid"
    ABOVE = "above the grid"


@dataclass(frozen=True)
class Constant:
    """One critical constant of every seed.

    Attributes:
        name: ``"c_loss"``, ``"c_sharp"``, ``"c_max"`` or ``"c_barrier"``.
        low: Last ``c`` on the grid before it, shape ``(S,)``; 0 where there is none.
        high: First ``c`` beyond it, shape ``(S,)``; infinite where there is none.
        status: Whether it was found, per seed.
        fallback: Whether the quick search was contradicted and every point was asked, shape ``(S,)``.
        monotone: Whether all points asked agree with one turn, shape ``(S,)``.
    """

    name: str
    low: Array
    high: Array
    status: tuple[Status, ...]
    fallback: NDArray[np.bool_]
    monotone: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Whether the constant lies on the grid, per seed."""
        return np.array([status is Status.FOUND for status in self.status], dtype=bool)

    @property
    def value(self) -> Array:
        """Geometric mean of the bracket, shape ``(S,)``; NaN where the constant lies beyond the grid."""
        inside = self.found
        return np.where(inside, np.sqrt(np.where(inside, self.low * np.where(inside, self.high, 1.0), 1.0)), np.nan)

    @property
    def defined(self) -> Array:
        """The grid point of the definition: the first ``c`` that rises, or the last that does not diverge."""
        values = self.low if self.name == "c_max" else self.high
        return np.where(self.found, values, np.nan)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{low:.3g}..{high:.3g}" if status is Status.FOUND else status.value
            for low, high, status in zip(self.low, self.high, self.status)
        )
        doubt = f" ({int(self.fallback.sum())} by the whole grid)" if self.fallback.any() else ""
        return f"{self.name}: {shown}{doubt}"


@dataclass(frozen=True, repr=False)
class CriticalConstants:
    """Critical constants of one architecture, per seed (see `critical_constants`).

    Attributes:
        seeds: Of initialisations and orders of batches.
        loss0: ``L_0``, shape ``(S,)``.
        sharpness0: ``lambda_0``, shape ``(S,)``; the learning rate is ``c / lambda_0``.
        constants: By name.
        curves: All runs that were made.
        phases: The phase of each of them; None where the sharpness was not measured far enough.
        mode: ``"bisect"`` or ``"grid"``.
        window: ``"paper"`` or ``"catapult"``.
        grid_step: Distance of grid points in ``log2 c``.
        eps_sharp: Relative rise of sharpness that did not count.
        steps: Steps of a run.
        cutoff: Loss beyond which a run has diverged.
        cost: What it took.
    """

    seeds: tuple[int, ...]
    loss0: Array
    sharpness0: Array
    constants: Mapping[str, Constant]
    curves: EarlyCurves
    phases: tuple[Phase | None, ...]
    mode: str
    window: str
    grid_step: float
    eps_sharp: float
    steps: int
    cutoff: float
    cost: Cost

    def __getitem__(self, name: str) -> Constant:
        """Return one constant.

        Raises:
            InvalidInput: It was not looked for.
        """
        if name not in self.constants:
            raise InvalidInput(
                explain(
                    f"Asked for {name!r}",
                    f"there are {', '.join(self.constants)}",
                    "Choose one of these; c_barrier needs barrier=True",
                )
            )
        return self.constants[name]

    def aggregate(
        self,
        quantiles: Sequence[float] = (0.25, 0.75),
        *,
        bootstrap: int = 2000,
        level: float = 0.95,
        log: bool = False,
    ) -> dict[str, Summary]:
        """Return mean, quantiles and a bootstrap interval of each constant over seeds, those beyond the grid left out.

        Args:
            quantiles: Levels of error bars.
            bootstrap: Resamples of the seeds.
            level: Probability of the interval.
            log: Average in ``log2 c``.
        """
        return {
            name: summarise(one.value, quantiles=quantiles, bootstrap=bootstrap, level=level, log=log)
            for name, one in self.constants.items()
        }

    @property
    def data(self) -> xr.Dataset:
        """Brackets as a dataset with dimensions ``seed`` and ``constant``."""
        names = list(self.constants)

        def table(attribute: str, dtype: Any = None) -> tuple[tuple[str, str], NDArray[Any]]:
            columns = [np.asarray(getattr(self.constants[n], attribute), dtype=dtype) for n in names]
            return ("seed", "constant"), np.stack(columns, axis=1)

        found = xr.Dataset(
            {
                "c": table("value"),
                "c_low": table("low"),
                "c_high": table("high"),
                "status": table("status", "U16"),
                "fallback": table("fallback"),
                "loss0": ("seed", self.loss0),
                "sharpness0": ("seed", self.sharpness0),
            },
            coords={"seed": list(self.seeds), "constant": names},
        )
        return found.assign_attrs(
            search=self.mode, window=self.window, grid_step=self.grid_step, eps_sharp=self.eps_sharp,
            steps=self.steps, cutoff=self.cutoff,
        )  # fmt: skip

    def plot(self) -> Figure:
        """Draw the constants of every seed against ``c``, with brackets, and where a quadratic loss would turn."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, one in self.constants.items():
            inside = one.found
            figure.add_scatter(
                x=one.value[inside],
                y=[str(seed) for seed, good in zip(self.seeds, inside) if good],
                error_x={
                    "type": "data",
                    "array": (one.high - one.value)[inside],
                    "arrayminus": (one.value - one.low)[inside],
                },
                mode="markers",
                marker={"symbol": MARKERS.get(name, "circle"), "size": 10},
                name=name,
            )
        figure.add_vline(x=2, line_dash="dash")
        figure.update_xaxes(type="log", title="c = learning rate x sharpness at initialisation", dtick=np.log10(2))
        return figure.update_yaxes(title="seed", type="category").update_layout(title="Critical constants")

    def __repr__(self) -> str:
        head = f"CriticalConstants of {len(self.seeds)} seeds, mode {self.mode}, window {self.window}"
        rows = [f"  {name:<10} {summary!r}" for name, summary in self.aggregate(bootstrap=1).items()]
        doubts = sum(int(one.fallback.any()) for one in self.constants.values())
        tail = [f"  {doubts} constants needed the whole grid for some seed"] if doubts else []
        return "\n".join([head, *rows, *tail, f"  {self.cost!r}"])
