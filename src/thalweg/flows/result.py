"""A forecast beside the run that it forecasts: labelled data, comparisons, figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from thalweg.errors import InvalidInput, explain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    r"""How well the central flow predicts the discrete run, from the time ``onset`` at which it becomes critical.

    Loss curves are smoothed by a Gaussian of width ``sigma`` before they are compared: the flow predicts averages.
    Over windows shorter than the bursts of the oscillation the comparison measures the bursts.

    Attributes:
        onset: First time with oscillation; NaN if there is none (then the whole run is compared).
        sigma: Width of the Gaussian, in steps.
        loss_error: Mean of ``|predicted - discrete| / discrete``.
        loss_error_max: Its maximum.
        loss_error_without: The same mean for the loss at the flow, without its oscillation.
        squared_gradient_error: Mean relative error of the averaged squared gradient.
        distance: End distance from the discrete run over how far that has come.
        stable_distance: The same for the stable flow; NaN without one.
        midpoint_distance: Of the central flow from the midpoint process; NaN without one.
        midpoint_loss_error: Mean of ``|loss at the flow - loss at the midpoint| / loss at the midpoint``; NaN without.
        variance_ratio: Measured over predicted squared displacement, averaged over time and summed over directions.
        variance_correlation: Correlation of the smoothed measured and predicted sums; NaN where either is constant.
        largest_eigenvalue: Of ``P^{-1} H`` along the flow after the onset; the limit is 2.
    """

    onset: float
    sigma: float
    loss_error: float
    loss_error_max: float
    loss_error_without: float
    squared_gradient_error: float
    distance: float
    stable_distance: float
    midpoint_distance: float
    midpoint_loss_error: float
    variance_ratio: float
    variance_correlation: float
    largest_eigenvalue: float

    def __repr__(self) -> str:
        begin = "no oscillation" if np.isnan(self.onset) else f"critical from t={self.onset:g}"
        return (
            f"Comparison({begin}; predicted loss off by {self.loss_error:.2%} on average, {self.loss_error_max:.2%} "
            f"at most (sigma={self.sigma:g}), {self.loss_error_without:.2%} without oscillation; end distance "
            f"{self.distance:.2%} of travel; variance measured/predicted {self.variance_ratio:.2f})"
        )


@dataclass(frozen=True)
class FlowResult:
    """What `central_flow` returns.

    Attributes:
        data: Dimensions ``time`` (steps of the rule), ``eigenvalue``; variables with units: see `central_flow`.
        mode: ``"map"`` (the rule's own step and the penalty), ``"flow"`` (the differential equation to a given
            accuracy) or ``"reference"`` (Euler substeps of the equation).
        points: End weights of each process, by name.
        cost: Gradient-equivalents per unit of time, by process.
        stop: Why the forecast ended.
        notes: What limits it.
    """

    data: xr.Dataset
    mode: str
    points: dict[str, Tensor]
    cost: dict[str, float]
    stop: str
    notes: tuple[str, ...] = ()

    @property
    def processes(self) -> tuple[str, ...]:
        """What ran side by side."""
        return tuple(self.points)

    def compare(self, sigma: float = 20.0) -> Comparison:
        """Compare the central flow with the discrete run.

        Args:
            sigma: Width of the Gaussian that smooths both, in steps.

        Raises:
            InvalidInput: The forecast ran without the discrete process, or is too short.
        """
        if "loss_discrete" not in self.data:
            raise InvalidInput(
                explain(
                    "There is no discrete run in this result",
                    "nothing to compare with",
                    'Ask for processes=("discrete", "central")',
                )
            )
        if not sigma > 0 or self.data.sizes["time"] < 3:
            raise InvalidInput(
                explain(
                    f"sigma is {sigma} and the forecast has {self.data.sizes['time']} times",
                    "averages need a width and some times",
                    "Use sigma=20 on a longer forecast",
                )
            )
        variance = self._column("predicted_variance").fillna(0).sum("eigenvalue").values
        active = np.flatnonzero(variance > 0)
        onset = int(active[0]) if len(active) else 0

        def smooth(name: str) -> Array:
            return np.asarray(gaussian_filter1d(self.data[name].values, sigma))[onset:]

        truth = smooth("loss_discrete")
        error = np.abs(smooth("predicted_loss") - truth) / truth
        squares = smooth("squared_gradient_discrete")
        measured = self._column("measured_variance").fillna(0).sum("eigenvalue").values
        ratio = float(measured[onset:].mean() / variance[onset:].mean()) if len(active) else np.nan
        pair = [gaussian_filter1d(v, sigma)[onset:] for v in (measured, variance)]
        varies = len(active) > 2 and all(float(v.std()) > 0 for v in pair)
        travelled = float(self.data["travelled"].values[-1])

        def end(name: str) -> float:
            return float(self.data[name].values[-1]) / travelled if name in self.data else np.nan

        middle = self.data["loss_midpoint"].values[onset:] if "loss_midpoint" in self.data else None
        at_flow = self.data["loss_central"].values[onset:]
        return Comparison(
            onset=float(self.data["time"].values[onset]) if len(active) else np.nan,
            sigma=float(sigma),
            loss_error=float(error.mean()),
            loss_error_max=float(error.max()),
            loss_error_without=float((np.abs(smooth("loss_central") - truth) / truth).mean()),
            squared_gradient_error=float((np.abs(smooth("predicted_squared_gradient") - squares) / squares).mean()),
            distance=end("distance_central"),
            stable_distance=end("distance_stable"),
            midpoint_distance=end("distance_central_midpoint"),
            midpoint_loss_error=np.nan if middle is None else float((np.abs(at_flow - middle) / middle).mean()),
            variance_ratio=ratio,
            variance_correlation=float(np.corrcoef(*pair)[0, 1]) if varies else np.nan,
            largest_eigenvalue=float(np.nanmax(self.data["effective_eigenvalues"].values[onset:])),
        )

    def plot(self, sigma: float = 20.0) -> Figure:
        """Draw loss (discrete, smoothed, predicted), effective eigenvalues against the limit, and distances."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(
            rows=2,
            cols=2,
            subplot_titles=("Loss", "Effective eigenvalues", "Oscillation variance", "Distance from the discrete run"),
        )
        time = self.data["time"].values

        def line(row: int, col: int, values: Array, name: str, **style: object) -> None:
            figure.add_trace(go.Scatter(x=time, y=values, name=name, mode="lines", **style), row=row, col=col)

        if "loss_discrete" in self.data:
            raw = self.data["loss_discrete"].values
            line(1, 1, raw, "discrete", line={"color": "rgba(120,120,120,0.4)", "width": 1})
            line(
                1, 1, gaussian_filter1d(raw, sigma), f"discrete, smoothed over {sigma:g} steps", line={"color": "#444"}
            )
        line(1, 1, self.data["predicted_loss"].values, "predicted average", line={"color": "#c0392b"})
        line(1, 1, self.data["loss_central"].values, "at the central flow", line={"color": "#2471a3", "dash": "dot"})
        if "loss_stable" in self.data:
            line(1, 1, self.data["loss_stable"].values, "stable flow", line={"color": "#7d8c2f", "dash": "dash"})
        for name, color in (("edge", "#8e44ad"), ("rod", "#117a65")):
            if f"predicted_loss_{name}" in self.data:
                values = self.data[f"predicted_loss_{name}"].values
                line(1, 1, values, f"{name} flow, mean of both ends", line={"color": color})
        if "predicted_loss_stationary" in self.data:
            values = self.data["predicted_loss_stationary"].values
            line(1, 1, values, "stationary flow, predicted average", line={"color": "#ca6f1e"})
        for i in range(self.data.sizes["eigenvalue"]):
            values = self.data["effective_eigenvalues"].values[:, i]
            line(1, 2, values, f"eigenvalue {i + 1}", showlegend=False)
            predicted = self._column("predicted_variance").values[:, i]
            if np.isfinite(predicted).any():
                line(2, 1, predicted, f"predicted along {i + 1}", showlegend=False)
        figure.add_hline(y=2.0, line_dash="dash", line_color="#888", row=1, col=2)
        if "measured_variance" in self.data:
            measured = self._column("measured_variance").fillna(0).sum("eigenvalue").values
            line(2, 1, gaussian_filter1d(measured, sigma), "measured, all directions, smoothed", line={"color": "#444"})
        for name in ("central", "stable", "midpoint", "edge", "rod", "stationary"):
            if f"distance_{name}" in self.data:
                line(2, 2, self.data[f"distance_{name}"].values, f"to {name}")
        figure.update_xaxes(title_text="time (steps)")
        return figure.update_layout(title=f"Central flow, {self.mode} mode", height=700)

    def __repr__(self) -> str:
        cost = ", ".join(f"{name} {c:.1f}" for name, c in self.cost.items())
        length = self.data.sizes["time"]
        return f"FlowResult({self.mode} mode, {length} units of time; gradients a unit: {cost}; {self.stop})"

    def _column(self, name: str) -> xr.DataArray:
        if name in self.data:
            return self.data[name]
        return xr.full_like(self.data["effective_eigenvalues"], np.nan)
