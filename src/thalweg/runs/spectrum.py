"""The leading curvature along a run, against the rule's limit of stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from thalweg.errors import NotConverged
from thalweg.operators import Operator, hessian
from thalweg.operators.hessian import LayoutName
from thalweg.problem import Problem
from thalweg.rules import effective_hessian
from thalweg.runs.measures import Context, Measure, check_every
from thalweg.runs.metrics import Value, Variable
from thalweg.spectra import EigenTracker
from thalweg.spectra.results import Eigenpairs

_LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)


@dataclass
class Spectrum(Measure):
    r"""Leading eigenpairs ``P^-1/2 (H + gamma I) P^-1/2 u_i = lambda_i u_i``, followed along the run.

    ``H`` is the Hessian over all data, ``P`` the diagonal preconditioner that this step's update uses (one for
    gradient descent with or without momentum) and ``gamma`` the weight decay that is part of its gradient, so
    that ``lambda_i`` compares with ``stability_threshold`` for every rule. Projections are taken in
    the coordinates ``P^1/2 w``, in which the rule moves along the plain gradient: ``u_i . P^-1/2 g`` and
    ``u_i . P^1/2 (w_{t+1} - w_t)``. Signs of ``u_i`` are aligned from one measurement to the next.

    An eigenvector that joins or leaves the leading ones is an event, ``eigenvalue_birth`` or ``eigenvalue_death``.
    Where the tracker does not converge, the values it has are recorded with their true residuals, and an
    event ``not_converged`` says so; the run goes on.

    Args:
        k: Eigenpairs to follow at least.
        every: Steps between two measurements.
        threshold: Follow every eigenvalue above this fraction of the stability threshold; None: just ``k``.
        max_k: Largest number of pairs.
        tol: Relative residual ``|A u - lambda u| / lambda_1``.
        preconditioned: Whether to use the rule's ``P`` and ``gamma``; False measures the plain Hessian ``H``.
        samples: Use the first so many samples of the data only; None: all.
        layout: How Hessian products are computed; see `thalweg.hessian`. What ``"auto"`` picks first stays.
        seed: Seed of the tracker's random directions.

    Example:
        >>> Spectrum(k=2, every=5).variables["eigenvalues"].dim
        'eigenvalue'
    """

    k: int = 1
    every: int = 1
    threshold: float | None = None
    max_k: int = 20
    tol: float = 1e-3
    preconditioned: bool = True
    samples: int | None = None
    layout: LayoutName = "auto"
    seed: int = 0
    name: str = "spectrum"
    _tracker: EigenTracker = field(init=False, repr=False, compare=False)
    _layout: LayoutName = field(init=False, repr=False, compare=False, default="auto")
    _part: tuple[Problem, Problem] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        check_every(self.name, self.every)
        self._restart()

    def _restart(self) -> None:
        self._layout = self.layout
        self._tracker = EigenTracker(
            self.k,
            threshold=self.threshold,
            grow=self.threshold is not None,
            max_k=max(self.k, self.max_k),
            tol=self.tol,
            seed=self.seed,
        )

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Eigenvalues with their evidence, and the motion along their eigenvectors."""
        dim = "eigenvalue"
        return {
            "eigenvalues": Variable("loss / weight^2", "leading eigenvalues, largest first", dim),
            "eigen_residuals": Variable("loss / weight^2", "residual of each eigenpair", dim),
            "eigen_tracks": Variable("1", "identity of the eigenvector of each rank", dim),
            "eigen_products": Variable("products", "Hessian products of this measurement"),
            "sharpness": Variable("loss / weight^2", "largest eigenvalue"),
            "gradient_projection": Variable("loss / weight", "gradient along each eigenvector", dim),
            "update_projection": Variable("weight", "update along each eigenvector", dim),
        }

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Solve for the leading eigenpairs at ``context.w``; step 0 begins another run."""
        if context.step == 0:
            self._restart()
        diagonal = context.rule.preconditioner(context.state) if self.preconditioned else None
        limit = context.rule.stability_threshold(context.step)
        with hessian(self._problem(context.problem), context.w, layout=self._layout) as curvature:
            self._layout = curvature.layout_used  # the same products, and bits, for the rest of the run
            operator: Operator = curvature
            known = len(self._tracker.events)
            if self.preconditioned:
                operator = effective_hessian(context.rule, context.state, curvature)
            try:
                pairs = self._tracker.update(operator, limit, w=context.w)
                tracks = self._tracker.tracks
            except NotConverged as error:
                if not isinstance(error.result, Eigenpairs):
                    raise
                pairs = error.result
                tracks = ()
                context.note("not_converged", str(error))
            products = curvature.products
        if context.step > 0:  # at the start every track is new
            self._note_changes(context, known)
        count = min(len(pairs.values), self._tracker.count)
        vectors = pairs.vectors[:, :count]
        root = 1.0 if diagonal is None else diagonal.to(context.w.dtype).sqrt()
        values: dict[str, Value] = {
            "eigenvalues": _numbers(pairs.values[:count]),
            "eigen_residuals": _numbers(pairs.residuals[:count]),
            "eigen_products": float(products),
            "sharpness": float(pairs.values[0]),
            "gradient_projection": _numbers(vectors.T @ (context.gradient / root)),
        }
        if tracks:
            values["eigen_tracks"] = _numbers(torch.tensor(tracks))
        if context.update is not None:
            values["update_projection"] = _numbers(vectors.T @ (context.update * root))
        return values

    def _note_changes(self, context: Context, known: int) -> None:
        for kind in ("birth", "death"):
            named = [f"{e.track} at {e.value:.4g}" for e in self._tracker.events[known:] if e.kind == kind]
            if named:
                begin = "Joined" if kind == "birth" else "Left"
                context.note(f"eigenvalue_{kind}", f"{begin} the leading ones: track {', '.join(named)}")

    def state_dict(self) -> dict[str, Tensor]:
        """The tracker's state, and the layout that it started with."""
        return self._tracker.state_dict() | {"layout": torch.tensor(_LAYOUTS.index(self._layout))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self._layout = _LAYOUTS[int(state["layout"])]
        self._tracker.load_state_dict({key: tensor for key, tensor in state.items() if key != "layout"})

    def _problem(self, problem: Problem) -> Problem:
        if self.samples is None:
            return problem
        if self._part is None or self._part[0] is not problem:
            self._part = problem, problem.subset(slice(0, self.samples))
        return self._part[1]


def _numbers(tensor: Tensor) -> Value:
    numbers: Value = tensor.detach().to("cpu", torch.float64).numpy()
    return numbers
