"""What an eigensolver returns: values with their evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Stop(StrEnum):
    """Why an eigensolver ended; the value is a sentence that says what to try."""

    CONVERGED = "Every residual is below the tolerance."
    INVARIANT = "The Krylov space became invariant: the values are exact to rounding."
    BUDGET = "The budget of products ran out: raise max_products, enlarge the basis, or loosen tol."
    CONTRADICTED = (
        "Fresh products contradict the stored ones, so the operator is not symmetric, changes between products, or is "
        "rounded more coarsely than its size tells, as where a loss is nearly zero: use float64, switch off dropout "
        "and batch statistics, and look at thalweg doctor."
    )
    LEAKS = "The deflated vectors span no invariant space to the tolerance: deflate converged eigenvectors."
    STAGNATED = "Residuals stopped falling at the rounding of the products: use float64, or loosen tol."

    @property
    def converged(self) -> bool:
        """Whether the result meets its tolerance."""
        return self in (Stop.CONVERGED, Stop.INVARIANT)


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric operator, ``A v_i = theta_i v_i``.

    Attributes:
        values: Shape ``(k,)``, largest first, in the operator's units.
        vectors: Shape ``(P, k)``, orthonormal columns.
        residuals: Shape ``(k,)``, ``|A v_i - theta_i v_i|``. An eigenvalue of ``A`` lies within a
            residual of each value.
        products: Operator products that this result cost.
        stop: Why the iteration ended.
        method: The solver that was used, with its settings.
        why: Why that solver, and what its run had to say.
        certified: Whether fresh products at the end confirm the residuals.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    stop: Stop
    method: str = ""
    why: str = ""
    certified: bool = False

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:.6g} (±{r:.0e})" for v, r in zip(self.values.tolist(), self.residuals.tolist()))
        solver = f", {self.method}" if self.method else ""
        return f"Eigenpairs([{shown}], products={self.products}, stop={self.stop.name}{solver})"

    def plot(self) -> Figure:
        """Draw the values with their residuals as error bars."""
        import plotly.graph_objects as go

        figure = go.Figure(
            go.Scatter(
                x=list(range(1, len(self.values) + 1)),
                y=self.values.tolist(),
                error_y={"type": "data", "array": self.residuals.tolist()},
                mode="markers",
                name="eigenvalue",
            )
        )
        return figure.update_layout(
            title=f"{len(self.values)} eigenvalues, {self.products} products",
            xaxis_title="index",
            yaxis_title="eigenvalue",
        )
