"""The stages of ``thalweg spectrum`` that look at the whole operator: eigenvalues, edge, trace, density."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from thalweg.cli.plan import Plan
from thalweg.cli.subject import Subject
from thalweg.operators import Operator
from thalweg.problem import memory
from thalweg.runs.analyses import scalar, variable
from thalweg.spectra.choice import Choice, choose
from thalweg.spectra.estimate import EstimateStop
from thalweg.spectra.results import Stop

CURVATURE = "loss / weight^2"
ENOUGH = 1000
"""Products of one trace where no budget is given."""
PROBES, STEPS = 10, 40
"""Random vectors of the density, and Lanczos steps from each."""
FEWEST_STEPS, FEWEST_PROBES = 8, 2
"""Steps below which a density has no shape, and probes below which it has no error."""
FEWEST_TRACE = 20
"""Products below which a trace has no standard error; for an operator of fewer rows, their number."""
GRID = 700
"""Points at which the density is written."""


@dataclass
class Bench:
    """What every stage works with.

    Attributes:
        subject: Problem, weights, rule.
        plan: What to measure.
        curvature: The operator on the weights as they are.
        operator: The same as the plan wants to see it: preconditioned, or not.
        share: Products that the stage under way may take; None: as many as it needs.
        start: An eigenvector of the largest eigenvalue of ``operator``, shape ``(P, 1)``, once one is known.
    """

    subject: Subject
    plan: Plan
    curvature: Operator
    operator: Operator
    share: int | None = None
    start: Tensor | None = None

    def solver(self, k: int, start: Tensor | None = None, *, both: bool = False) -> Choice:
        """Return the eigensolver for ``k`` pairs: at the ends that the plan names, or of the largest eigenvalues."""
        which = self.plan.both_or_one if both else "largest"
        return choose(self.operator, k, start, which=which, tol=self.plan.tol, max_products=self.share)

    def reason(self, stop: Stop | EstimateStop, loosen: str) -> str:
        """Return why a stage ended, in the words of the command line.

        Args:
            stop: What the solver or estimator says.
            loosen: The option that asks for less.
        """
        if stop.name != "BUDGET":
            return str(stop)
        told = "The usual limit of products was reached" if self.share is None else "The share of the budget ran out"
        return f"{told}: {'pass' if self.share is None else 'raise'} --budget, or loosen {loosen}."


@dataclass(frozen=True)
class Finding:
    """What a stage has found so far.

    Attributes:
        said: In a few words, for the terminal.
        data: Labelled numbers.
        facts: How it went: ``STAGE_converged``, ``STAGE_stop`` and the like.
    """

    said: str
    data: xr.Dataset = field(default_factory=xr.Dataset)
    facts: dict[str, object] = field(default_factory=dict)


def eigenvalues(bench: Bench) -> Iterator[Finding]:
    """Find ``k`` eigenpairs at each end."""
    from thalweg.spectra import top_eigenpairs

    plan = bench.plan
    ends, solver = plan.both_or_one, bench.solver(plan.k, both=True)
    pairs = top_eigenpairs(bench.operator, plan.k, which=ends, method=solver.method, seed=plan.seed, strict=False)
    bench.start = None if ends == "smallest" else pairs.vectors[:, :1]
    values = pairs.values.double().cpu().numpy()
    top = {"largest": len(values), "smallest": 0, "both": min(plan.k, len(values))}[ends]
    side = np.where(np.arange(len(values)) < top, 1, -1).astype(np.int8)
    shown = ", ".join(f"{value:.4g}" for value in values[: plan.k])
    yield Finding(
        f"{shown} (residual at most {float(pairs.residuals.max()):.1e})",
        xr.Dataset(
            {
                "eigenvalues": variable("eigenvalue", values, CURVATURE, "eigenvalue, largest first"),
                "eigen_residuals": variable("eigenvalue", pairs.residuals, CURVATURE, "residual of each eigenpair"),
                "eigen_end": variable("eigenvalue", side, "1", "end of the spectrum: 1 largest, -1 smallest"),
            }
        ),
        {
            "eigenvalues_stop": bench.reason(pairs.stop, "--tol"),
            "eigenvalues_converged": pairs.stop.converged,
            "eigenvalues_method": f"{solver.method.name}: {solver.why}",
        },
    )


def edge(bench: Bench) -> Iterator[Finding]:
    """Compare the sharpness as the rule sees it with the rule's threshold at this step."""
    from thalweg.rules.edge import edge as edge_of

    subject = bench.subject
    assert subject.rule is not None
    assert subject.state is not None  # or this stage would not be there
    start = bench.start
    if start is not None and not bench.plan.preconditioned:  # in the coordinates P^1/2 w
        diagonal = subject.rule.preconditioner(subject.state)
        start = start if diagonal is None else start * diagonal.to(start).sqrt().reshape(-1, 1)
    found = edge_of(
        subject.problem,
        subject.rule,
        subject.w,
        subject.state,
        operator=bench.curvature,
        method=bench.solver(1, start).method,
        start=start,
        seed=bench.plan.seed,
        strict=False,
    )
    limit = subject.rule.stability_threshold(subject.step or 0)
    stop = found.eigenpairs.stop
    yield Finding(
        f"sharpness {found.sharpness:.4g} is {found.sharpness / limit:.1%} of the stability threshold {limit:.4g}",
        xr.Dataset(
            {
                "edge_sharpness": scalar(found.sharpness, CURVATURE, "sharpness as the update rule sees it"),
                "edge_residual": scalar(found.residual, CURVATURE, "residual of that sharpness"),
            }
        ),
        {
            "edge_convention": found.convention,
            "edge_converged": stop.converged,
            "edge_stop": bench.reason(stop, "--tol"),
        },
    )


def trace(bench: Bench) -> Iterator[Finding]:
    """Estimate the trace, with the method that needs fewest products if its vectors fit into memory."""
    from thalweg.spectra.trace import trace as trace_of

    products = bench.share or ENOUGH
    vectors = 3 * (products // 2) * bench.operator.size * bench.operator.dtype.itemsize
    found = trace_of(
        bench.operator,
        method="xtrace" if vectors < memory.available(bench.operator.device) // 4 else "hutchinson",
        target=bench.plan.target,
        max_products=products,
        seed=bench.plan.seed,
        strict=False,
    )
    value, error = float(found.value), float(found.standard_error)
    yield Finding(
        f"{value:.4g} ± {error:.2g}",
        xr.Dataset(
            {
                "trace": scalar(value, CURVATURE, "trace"),
                "trace_standard_error": scalar(error, CURVATURE, "standard error of the trace"),
            }
        ),
        {
            "trace_stop": bench.reason(found.stop, "--target"),
            "trace_converged": found.stop.converged,
            "trace_method": found.method,
            "trace_samples": found.samples,
        },
    )


def density(bench: Bench) -> Iterator[Finding]:
    """Estimate the density of eigenvalues; its first moment is a second estimate of the trace."""
    from thalweg.spectra.density import spectral_density

    probes, steps, size = PROBES, STEPS, bench.operator.size
    if bench.share is not None:  # fewer steps before fewer probes: with few probes the error itself is unsure
        steps = max(min(STEPS, bench.share // PROBES), FEWEST_STEPS)
        probes = min(PROBES, bench.share // steps)
    found = spectral_density(bench.operator, probes=probes, steps=steps, seed=bench.plan.seed, strict=False)
    width = found.default_width()
    low, high = float(found.nodes.min()), float(found.nodes.max())
    grid, mean, error = found.density(torch.linspace(low - 7 * width, high + 7 * width, GRID), width)
    moment = found.moment(1)
    total, total_error = size * float(moment.value), size * float(moment.standard_error)
    inverse = "weight^2 / loss"
    yield Finding(
        f"{found.probes} probes of {found.nodes.shape[1]} steps",
        xr.Dataset(
            {
                "density": variable("value", mean, inverse, "share of the eigenvalues per unit"),
                "density_standard_error": variable("value", error, inverse, "standard error of the density"),
                "density_nodes": variable(("probe", "node"), found.nodes, CURVATURE, "Ritz values of each probe"),
                "density_weights": variable(("probe", "node"), found.weights, "1", "weight of each Ritz value"),
                "density_width": scalar(width, CURVATURE, "standard deviation of the kernel"),
                "density_trace": scalar(total, CURVATURE, "trace by the first moment of the density"),
                "density_trace_standard_error": scalar(total_error, CURVATURE, "standard error of that trace"),
            },
            coords={"value": variable("value", grid, CURVATURE, "eigenvalue")},
        ),
        {"density_stop": str(found.stop), "density_converged": found.stop.converged},
    )
