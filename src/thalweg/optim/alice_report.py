"""What Alice's steps go by: bounds or curvature, Hessian or glass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, denominator, find
from thalweg.optim.alice_layout import local
from thalweg.optim.alice_settings import BOUNDS, Coefficients

if TYPE_CHECKING:
    from thalweg.optim.alice import Alice


@dataclass(frozen=True)
class GroupReport:
    """One group's step, summed over its coordinates (on this process).

    Args:
        coordinates: How many have state.
        upper: Share of them at the upper bound.
        lower: Share at the lower bound (those with no gradient at all count here).
        interior: Share whose length curvature decides.
        density: Mean of the glass density, gradient squared per length; NaN where it is not kept.
        curvature: Mean of the curvature that the step uses; NaN where there is none.
        linear: ``sum |g| d``, in units of the loss: the decrease if the loss were linear.
        hessian: ``sum h d^2/2``, what curvature takes off that.
        glass: ``sum c rho^(1/2) d^(3/2)``, what glass takes off that.
    """

    coordinates: int
    upper: float
    lower: float
    interior: float
    density: float
    curvature: float
    linear: float
    hessian: float
    glass: float

    @property
    def predicted(self) -> float:
        """Predicted decrease of the loss for the whole step (omega = 1)."""
        return self.linear - self.hessian - self.glass

    @property
    def glass_share(self) -> float:
        """Share of glass in what second-order terms take off the linear decrease; NaN where they take nothing."""
        return self.glass / (self.hessian + self.glass) if self.hessian + self.glass > 0 else math.nan


@dataclass(frozen=True)
class AliceReport:
    """The groups' reports."""

    groups: tuple[GroupReport, ...]

    def __repr__(self) -> str:
        head = "group  coordinates  at upper  at lower  interior  mean rho   mean h     decrease   glass share"
        lines = [
            f"{i:5d}  {g.coordinates:11d}  {g.upper:8.1%}  {g.lower:8.1%}  {g.interior:8.1%}  {g.density:9.3g}"
            f"  {g.curvature:9.3g}  {g.predicted:9.3g}  {_share(g.glass_share):>11}"
            for i, g in enumerate(self.groups)
        ]
        return "\n".join([head, *lines])

    def plot(self) -> Any:
        """Draw the shares of coordinates by group."""
        import plotly.graph_objects as go

        names = [f"group {i}" for i in range(len(self.groups))]
        figure = go.Figure()
        for name in ("upper", "interior", "lower"):
            figure.add_bar(x=names, y=[getattr(g, name) for g in self.groups], name=name)
        return figure.update_layout(barmode="stack", yaxis={"title": "share of coordinates", "tickformat": ".0%"})


def report_on(optimizer: Alice) -> AliceReport:
    """Make the report from the present state and settings, changing neither."""
    return AliceReport(tuple(_group(optimizer, group) for group in optimizer.param_groups))


@torch.no_grad()
def _group(optimizer: Alice, group: dict[str, Any]) -> GroupReport:
    sums = dict.fromkeys(("n", "upper", "lower", "density", "curvature", "linear", "hessian", "glass"), 0.0)
    for parameter in group["params"]:
        state = optimizer.state.get(parameter)
        if not state or "mean" not in state:
            continue
        k = optimizer.coefficients_of(group, state, ahead=0 if float(state["step"]) > 0 else 1)
        for name, value in _sums(_piece(parameter, state), k).items():
            sums[name] += value
    n = sums["n"]

    def share(name: str) -> float:
        return sums[name] / n if n else math.nan

    return GroupReport(
        coordinates=int(n),
        upper=share("upper"),
        lower=share("lower"),
        interior=1 - share("upper") - share("lower"),
        density=share("density"),
        curvature=share("curvature"),
        linear=sums["linear"],
        hessian=sums["hessian"],
        glass=sums["glass"],
    )


def _piece(parameter: Tensor, state: dict[str, Any]) -> Piece:
    names = ("descent", "mean", "square", "glass", "curvature")
    views = {name: None if state.get(name) is None else local(state[name]) for name in names}
    views["descent"] = torch.empty_like(views["mean"])  # type: ignore[arg-type]
    own = local(parameter)
    return Piece(own, own, second=None, first=None, rest=None, reach=0.0, **views)  # type: ignore[arg-type]


def _sums(piece: Piece, k: Coefficients) -> dict[str, float]:
    """Sum, in float64, over one parameter."""
    free = piece.mean.abs() / denominator(piece, k)
    find(piece, k, torch.empty_like(piece.mean))
    length, size = piece.descent.abs().double(), piece.mean.abs().double()
    unit: Tensor | float = 1.0
    if k.limit_method != "fixed":
        unit = size if k.limit_method == "sgdm" else size / (piece.square.double().sqrt() + k.eps)
    lower = (free <= k.lower * unit) | (size == 0)
    upper = ~lower & ~(free < k.upper * unit)
    # With rho out of the way the denominator is h + eps.
    h = None if k.hess_comp == "zero" else _curvature(piece, k)
    constant = math.sqrt(8 / 9 * BOUNDS["gaussian"]) if k.constant == BOUNDS["gaussian"] else math.sqrt(1 / 3)
    found = {
        "n": float(size.numel()),
        "upper": float(upper.sum()),
        "lower": float(lower.sum()),
        "density": math.nan if piece.glass is None else float(piece.glass.double().sum()),
        "curvature": math.nan if h is None else float(h.sum()),
        "linear": float((size * length).sum()),
        "hessian": 0.0 if h is None else float((h * length**2).sum() / 2),
        "glass": 0.0,
    }
    if k.glass and piece.glass is not None:
        found["glass"] = float((constant * piece.glass.double().sqrt() * length**1.5).sum())
    return found


def _curvature(piece: Piece, k: Coefficients) -> Tensor:
    from dataclasses import replace

    return denominator(piece, replace(k, glass=False)).double() - k.eps


def _share(value: float) -> str:
    """A share in percent; a step of no length has none."""
    return "-" if math.isnan(value) else f"{value:.1%}"
