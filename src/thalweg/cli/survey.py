"""The measurements of ``thalweg spectrum``, stage by stage, gathered in one labelled data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from thalweg.cli.stages import StageMeter, Stopped, Watched
from thalweg.cli.subject import Subject
from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.operators import Operator, hessian
from thalweg.operators.hessian import LayoutName
from thalweg.problem import memory
from thalweg.rules import effective_hessian
from thalweg.spectra.choice import Choice, choose

Ends = Literal["both", "largest", "smallest"]
OperatorName = Literal["hessian", "gauss-newton", "fisher"]

CURVATURE = "loss / weight^2"
ENOUGH = 1000
"""Products of one estimate where no budget is given."""
PROBES, STEPS = 10, 40
"""Random vectors of the density, and Lanczos steps from each."""
GRID = 700
"""Points at which the density is written."""
FEWEST = 8
"""Steps below which a density has no shape."""
LAYERS = 40
"""More layers than this are put together by the first parts of their names."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        k: Eigenpairs from each end; 0 leaves them out.
        ends: Which ends of the spectrum; None: both, of what cannot be negative the largest.
        density: Whether to estimate the spectral density.
        trace: Whether to estimate the trace.
        per_layer: Whether to examine each layer's block.
        target: Relative standard error at which an estimate stops.
        tol: Relative residual of an eigenpair; None: the solver's default.
        operator: Which curvature.
        preconditioned: Whether to see it as the update rule does.
        layout: How Hessian products are computed.
        budget: Products in all, at most; None: each estimator's own limit.
        seed: Seed of all random vectors.
    """

    k: int = 4
    ends: Ends | None = None
    density: bool = True
    trace: bool = True
    per_layer: bool = True
    target: float = 0.05
    tol: float | None = None
    operator: OperatorName = "hessian"
    preconditioned: bool = False
    layout: LayoutName = "auto"
    budget: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Block:
    """The curvature within one layer: size, largest eigenvalue, trace, their errors, and what was not reached."""

    parameters: int
    eigenvalue: float
    residual: float
    trace: float
    trace_error: float
    unmet: tuple[str, ...]


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Put the parameters of one module together, and modules by the first parts of their names where they are many.

    Args:
        names: Names of parameters.

    Returns:
        The names in each layer, in the order of their first.

    Example:
        >>> groups(["0.weight", "0.bias", "2.weight"])
        {'0': ['0.weight', '0.bias'], '2': ['2.weight']}
    """
    depth = max(name.count(".") for name in names) if names else 0
    found: dict[str, list[str]] = {}
    for parts in range(max(depth, 1), 0, -1):
        found = {}
        for name in names:
            module = name.split(".")[:-1] or [name]
            found.setdefault(".".join(module[:parts]), []).append(name)
        if len(found) <= LAYERS:
            break
    return found


class Survey:
    """Measures a `Subject` by a `Plan`; ``data`` holds what is known so far.

    Args:
        subject: Problem, weights, rule.
        plan: What to measure.
        meter: Shows progress.
        asked: Whether the user wants to stop.
    """

    def __init__(self, subject: Subject, plan: Plan, meter: StageMeter, asked: Callable[[], bool]) -> None:
        self.subject, self.plan, self._meter, self._asked = subject, plan, meter, asked
        self._parts: list[xr.Dataset] = []
        self._costs: list[tuple[str, int, float]] = []
        self._facts: dict[str, object] = {}
        self._left = plan.budget
        self._stages = [
            (name, work)
            for name, work, wanted in (
                ("eigenvalues", self._eigenvalues, plan.k > 0),
                ("edge", self._edge, plan.operator == "hessian" and subject.state is not None),
                ("trace", self._trace, plan.trace),
                ("density", self._density, plan.density),
                ("layers", self._layers, plan.per_layer),
            )
            if wanted
        ]

    def run(self) -> Iterator[str]:
        """Work, and yield the name of each stage once its results are in ``data``."""
        self._begin()
        self._meter.begin(len(self._stages))
        try:
            for number, (name, work) in enumerate(self._stages):
                self._meter.stage(name)
                began, self._before = time.monotonic(), self._spent
                self._share = None if self._left is None else max(self._left // (len(self._stages) - number), 1)
                try:
                    found = work()
                except InvalidInput as error:
                    if self._share is None:
                        raise
                    found = "left out, for want of products"  # an estimator says how many it needs at least
                    self._facts |= {f"{name}_converged": False, f"{name}_stop": str(error)}
                products = self._spent - self._before
                self._costs.append((name, products, time.monotonic() - began))
                if self._left is not None:
                    self._left -= products
                self._meter.finish(f"{found}, {products:,} products, {time.monotonic() - began:.1f} s")
                yield name
        finally:
            self._meter.close()

    @property
    def missing(self) -> list[str]:
        """Stages that are not done."""
        return [name for name, _ in self._stages[len(self._costs) :]]

    @property
    def partly(self) -> bool:
        """Whether the stage under way has left a part of its results."""
        return "layers" in self.missing and "layers_cover" in self._facts

    @property
    def data(self) -> xr.Dataset:
        """What is known so far, with units, sources and costs."""
        names, products, seconds = zip(*self._costs) if self._costs else ((), (), ())
        cost = xr.Dataset(
            {
                "stage_products": _variable("stage", products, "products", "products of each stage"),
                "stage_seconds": _variable("stage", seconds, "s", "time of each stage"),
                "stage_gradients": _variable(
                    "stage",
                    np.asarray(seconds) / self._gradient_seconds,
                    "gradients",
                    "time of each stage in evaluations of the gradient",
                ),
                "gradient_seconds": _number(self._gradient_seconds, "s", "time of one evaluation of the gradient"),
                "peak_memory": _number(peak_memory(self.subject.problem.device), "bytes", "peak memory of the process"),
            },
            coords={"stage": _variable("stage", np.array(names, dtype=np.str_), "1", "stage")},
        )
        if not self._costs:
            cost = cost.drop_dims("stage")
        facts = self._facts | {"complete": not self.missing, "missing": ", ".join(self.missing)}
        return xr.merge([*self._parts, cost]).assign_attrs(facts)

    def _begin(self) -> None:
        """Evaluate the loss and gradient, time it, and build the operator."""
        subject, plan = self.subject, self.plan
        problem = subject.problem
        if problem.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(problem.device)
        value, gradient = problem.value_and_gradient(subject.w)
        if not bool(torch.isfinite(value) & torch.isfinite(gradient).all()):
            raise NonFinite(
                explain(
                    f"At {subject.source} the loss is {value.item():.4g}, and its gradient is not finite everywhere",
                    "there is no curvature at such a point",
                    "Take an earlier --step, or look at the weights",
                )
            )
        times = []
        for _ in range(3):
            began = time.monotonic()
            problem.gradient(subject.w)
            times.append(time.monotonic() - began)
        self._gradient_seconds = max(min(times), 1e-9)
        self._curvature = Watched(self._make(), self._tick)
        self._operator = self._seen(self._curvature)
        self._before, self._extra = 0, 0
        self._start: torch.Tensor | None = None
        rule, step = subject.rule, subject.step or 0
        self._facts = {
            "operator": plan.operator,
            "preconditioned": plan.preconditioned,
            "dimension": problem.dimension,
            "samples": problem.samples,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "device": str(problem.device),
            "model": type(problem.model).__name__,
            "source": subject.source,
            "name": subject.name,
            "step": subject.step,
            "seed": plan.seed,
            "target": plan.target,
            "k": plan.k,
            "ends": self._ends,
            "rule": type(rule).__name__ if rule is not None else None,
            "optimizer": rule.describe() if rule is not None else None,
            "comparable": self._comparable,
            "torch": torch.__version__,
            "notes": "\n".join(subject.notes),
        }
        first = {
            "loss": _number(value.item(), "loss", "loss"),
            "gradient_norm": _number(float(gradient.norm()), "loss / weight", "norm of the gradient"),
        }
        if rule is not None and np.isfinite(rule.stability_threshold(step)):
            first["stability_threshold"] = _number(
                rule.stability_threshold(step), CURVATURE, "largest stable eigenvalue of the preconditioned Hessian"
            )
        self._parts.append(xr.Dataset(first))

    @property
    def _ends(self) -> Ends:
        """Both, unless told otherwise, or one is known: at zero there is nothing to see, and much to pay."""
        return self.plan.ends or ("both" if self.plan.operator == "hessian" else "largest")

    @property
    def _comparable(self) -> bool:
        """Whether the eigenvalues are those that the threshold of the rule is for."""
        rule, state = self.subject.rule, self.subject.state
        if rule is None or state is None or self.plan.operator != "hessian":
            return False
        plain = rule.preconditioner(state) is None and (rule.decoupled or not rule.decay)
        return self.plan.preconditioned or plain

    @property
    def _spent(self) -> int:
        return self._curvature.products + self._extra

    def _tick(self, products: int) -> None:
        if self._asked():
            raise Stopped
        self._meter.tick(products + self._extra - self._before)

    def _make(self) -> Operator:
        subject, plan = self.subject, self.plan
        problem, w = subject.problem, subject.w
        if plan.operator == "gauss-newton":
            from thalweg.operators.gauss_newton import gauss_newton

            return gauss_newton(problem, w)
        if plan.operator == "fisher":
            from thalweg.operators.fisher import empirical_fisher

            return empirical_fisher(problem, w)
        return hessian(problem, w, layout=plan.layout)

    def _seen(self, curvature: Operator) -> Operator:
        """The curvature as it is, or as the update rule sees it."""
        subject = self.subject
        if not self.plan.preconditioned:
            return curvature
        if subject.rule is None or subject.state is None:
            found = "no update rule is known" if subject.rule is None else f"{subject.rule.name}'s state is not on disk"
            raise InvalidInput(
                explain(
                    f"--preconditioned was asked for, and {found} here",
                    "the preconditioner is part of that state, which a run keeps for its start and its last saved step",
                    "Leave --preconditioned out, or take --step 0 or the last step of a run",
                )
            )
        return effective_hessian(subject.rule, subject.state, curvature)

    def _solver(self, k: int, which: Ends = "largest", start: torch.Tensor | None = None) -> Choice:
        return choose(self._operator, k, start, which=which, tol=self.plan.tol, max_products=self._share)

    def _eigenvalues(self) -> str:
        from thalweg.spectra import top_eigenpairs

        plan = self.plan
        solver = self._solver(plan.k, self._ends)
        pairs = top_eigenpairs(
            self._operator, plan.k, which=self._ends, method=solver.method, seed=plan.seed, strict=False
        )
        self._start = None if self._ends == "smallest" else pairs.vectors[:, :1]
        values = pairs.values.double().numpy()
        top = len(values) if self._ends == "largest" else 0 if self._ends == "smallest" else min(plan.k, len(values))
        ends = np.where(np.arange(len(values)) < top, 1, -1).astype(np.int8)
        self._parts.append(
            xr.Dataset(
                {
                    "eigenvalues": _variable("eigenvalue", values, CURVATURE, "eigenvalue, largest first"),
                    "eigen_residuals": _variable(
                        "eigenvalue", pairs.residuals.double().numpy(), CURVATURE, "residual of each eigenpair"
                    ),
                    "eigen_end": _variable("eigenvalue", ends, "1", "end of the spectrum: 1 largest, -1 smallest"),
                }
            )
        )
        self._facts |= {
            "eigenvalues_stop": str(pairs.stop),
            "eigenvalues_converged": pairs.stop.converged,
            "eigenvalues_method": f"{solver.method.name}: {solver.why}",
        }
        shown = ", ".join(f"{value:.4g}" for value in values[: plan.k])
        return f"{shown} (residual at most {float(pairs.residuals.max()):.1e})"

    def _edge(self) -> str:
        """Compare the sharpness as the rule sees it with the rule's threshold at this step."""
        from thalweg.rules.edge import edge

        subject = self.subject
        assert subject.rule is not None
        assert subject.state is not None  # or this stage would not be there
        start = self._start
        if start is not None and not self.plan.preconditioned:  # in the coordinates P^1/2 w
            diagonal = subject.rule.preconditioner(subject.state)
            start = start if diagonal is None else start * diagonal.to(start).sqrt().reshape(-1, 1)
        found = edge(
            subject.problem,
            subject.rule,
            subject.w,
            subject.state,
            operator=self._curvature,
            method=self._solver(1, start=start).method,
            start=start,
            seed=self.plan.seed,
            strict=False,
        )
        limit = subject.rule.stability_threshold(subject.step or 0)
        self._parts.append(
            xr.Dataset(
                {
                    "edge_sharpness": _number(found.sharpness, CURVATURE, "sharpness as the update rule sees it"),
                    "edge_residual": _number(found.residual, CURVATURE, "residual of that sharpness"),
                }
            )
        )
        self._facts |= {"edge_convention": found.convention, "edge_converged": found.eigenpairs.stop.converged}
        return (
            f"sharpness {found.sharpness:.4g} is {found.sharpness / limit:.1%} of the stability threshold {limit:.4g}"
        )

    def _trace(self) -> str:
        from thalweg.spectra.trace import trace

        products = self._share or ENOUGH
        vectors = 3 * (products // 2) * self._operator.size * self._operator.dtype.itemsize
        fits = vectors < memory.available(self._operator.device) // 4
        found = trace(
            self._operator,
            method="xtrace" if fits else "hutchinson",  # the first needs fewer products, and keeps vectors
            target=self.plan.target,
            max_products=products,
            seed=self.plan.seed,
            strict=False,
        )
        self._keep_estimate("trace", found, "trace")
        return f"{float(found.value):.4g} ± {float(found.standard_error):.2g}"

    def _keep_estimate(self, name: str, found: Any, words: str) -> None:
        self._parts.append(
            xr.Dataset(
                {
                    name: _number(float(found.value), CURVATURE, words),
                    f"{name}_standard_error": _number(
                        float(found.standard_error), CURVATURE, f"standard error of the {words}"
                    ),
                }
            )
        )
        self._facts |= {
            f"{name}_stop": str(found.stop),
            f"{name}_converged": found.stop.converged,
            f"{name}_method": found.method,
            f"{name}_samples": found.samples,
        }

    def _density(self) -> str:
        from thalweg.spectra.density import spectral_density

        probes, steps = PROBES, STEPS
        if self._share is not None:  # fewer steps before fewer probes: with few probes the error itself is unsure
            steps = max(min(STEPS, self._share // PROBES), min(FEWEST, STEPS))
            probes = min(PROBES, self._share // steps)
        found = spectral_density(self._operator, probes=probes, steps=steps, seed=self.plan.seed, strict=False)
        width = found.default_width()
        low, high = float(found.nodes.min()), float(found.nodes.max())
        grid, mean, error = found.density(torch.linspace(low - 7 * width, high + 7 * width, GRID), width)
        moment = found.moment(1)
        size = self._operator.size
        self._parts.append(
            xr.Dataset(
                {
                    "density": _variable("value", mean, "weight^2 / loss", "share of the eigenvalues per unit"),
                    "density_standard_error": _variable(
                        "value", error, "weight^2 / loss", "standard error of the density"
                    ),
                    "density_nodes": _variable(("probe", "node"), found.nodes, CURVATURE, "Ritz values of each probe"),
                    "density_weights": _variable(("probe", "node"), found.weights, "1", "weight of each Ritz value"),
                    "density_width": _number(width, CURVATURE, "standard deviation of the kernel"),
                    "density_trace": _number(
                        size * float(moment.value), CURVATURE, "trace by the first moment of the density"
                    ),
                    "density_trace_standard_error": _number(
                        size * float(moment.standard_error), CURVATURE, "standard error of that trace"
                    ),
                },
                coords={"value": _variable("value", grid, CURVATURE, "eigenvalue")},
            )
        )
        self._facts |= {"density_stop": str(found.stop), "density_converged": found.stop.converged}
        return f"{found.nodes.shape[0]} probes of {found.nodes.shape[1]} steps"

    def _layers(self) -> str:
        """Examine the principal block of each layer; what is interrupted keeps the layers before."""
        layout = self.subject.problem.layout
        found = groups(layout.names)
        rows: list[tuple[str, Block]] = []
        try:
            for name, members in found.items():
                rows.append((name, self._block(members, len(found))))
        finally:
            self._keep_layers(rows, whole=len(rows) == len(found))
        name, best = max(rows, key=lambda row: row[1].trace)
        return f"{len(rows)} layers, the largest trace in {name}: {best.trace:.4g} ± {best.trace_error:.2g}"

    def _block(self, members: Sequence[str], layers: int) -> Block:
        from thalweg.spectra import top_eigenpairs
        from thalweg.spectra.trace import trace

        chosen = set(members)
        block = self._operator.restrict(self.subject.problem.layout, lambda name: name in chosen)
        share = None if self._share is None else max(self._share // (2 * layers), 1)
        solver = choose(block, 1, tol=self.plan.tol, max_products=share)
        pairs = top_eigenpairs(block, 1, method=solver.method, seed=self.plan.seed, strict=False)
        total = trace(block, target=self.plan.target, max_products=share or ENOUGH, seed=self.plan.seed, strict=False)
        return Block(
            parameters=block.size,
            eigenvalue=float(pairs.values[0]),
            residual=float(pairs.residuals[0]),
            trace=float(total.value),
            trace_error=float(total.standard_error),
            unmet=tuple(str(stop) for stop in (pairs.stop, total.stop) if not stop.converged),
        )

    def _keep_layers(self, rows: Sequence[tuple[str, Block]], *, whole: bool) -> None:
        if not rows:
            return
        blocks = [block for _, block in rows]
        columns = (
            ("layer_parameters", [float(b.parameters) for b in blocks], "1", "parameters of each layer"),
            ("layer_eigenvalue", [b.eigenvalue for b in blocks], CURVATURE, "largest eigenvalue of each block"),
            ("layer_residual", [b.residual for b in blocks], CURVATURE, "residual of that eigenvalue"),
            ("layer_trace", [b.trace for b in blocks], CURVATURE, "trace of each block"),
            ("layer_trace_standard_error", [b.trace_error for b in blocks], CURVATURE, "standard error of that trace"),
        )
        self._parts.append(
            xr.Dataset(
                {name: _variable("layer", values, units, words) for name, values, units, words in columns},
                coords={"layer": _variable("layer", np.array([name for name, _ in rows], np.str_), "1", "layer")},
            )
        )
        unmet = sorted({stop for block in blocks for stop in block.unmet})
        self._facts |= {"layers_cover": whole, "layers_converged": not unmet, "layers_stop": " ".join(unmet)}


def _variable(dim: Any, values: Any, units: str, words: str) -> xr.Variable:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    values = np.asarray(values)
    if values.dtype == np.int64:  # the file format has 32 bits at most; float64 is exact up to 2^53
        values = values.astype(np.float64)
    return xr.Variable(dim, values, {"units": units, "long_name": words})


def _number(value: float, units: str, words: str) -> xr.Variable:
    return _variable((), float(value), units, words)


def peak_memory(device: torch.device) -> float:
    """Return the most memory held so far in bytes: on the accelerator, else by the process; NaN where unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
