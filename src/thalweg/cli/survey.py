"""The measurement of ``thalweg spectrum``: stage by stage, within a budget, gathered in one labelled data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from thalweg.cli import estimates
from thalweg.cli.curvature import as_the_rule_sees, comparable, curvature_of, refuse_nothing
from thalweg.cli.estimates import CURVATURE, FEWEST_PROBES, FEWEST_STEPS, FEWEST_TRACE, Bench, Finding
from thalweg.cli.layers import layers, least_products
from thalweg.cli.plan import Plan
from thalweg.cli.stages import StageMeter, Stopped, Watched
from thalweg.cli.subject import Subject
from thalweg.errors import NonFinite, explain
from thalweg.runs.analyses import attributes, scalar, variable


@dataclass(frozen=True)
class Stage:
    """A measurement of its own.

    Attributes:
        name: What it is called in files and on the terminal.
        work: Yields what it has found so far, better each time.
        least: Products below which it finds nothing of worth.
    """

    name: str
    work: Callable[[Bench], Iterator[Finding]]
    least: int


def stages(subject: Subject, plan: Plan) -> list[Stage]:
    """Return what the plan asks for; what matters most comes first."""
    size, pairs = subject.problem.dimension, plan.k * (2 if plan.both_or_one == "both" else 1)
    known = (
        (plan.k > 0, Stage("eigenvalues", estimates.eigenvalues, 2 * pairs + 4)),
        (plan.operator == "hessian" and subject.state is not None, Stage("edge", estimates.edge, 5)),
        (plan.trace, Stage("trace", estimates.trace, min(FEWEST_TRACE, size))),
        (plan.density, Stage("density", estimates.density, FEWEST_PROBES * min(FEWEST_STEPS, size))),
        (plan.per_layer, Stage("layers", layers, least_products(subject.problem.layout))),
    )
    return [stage for wanted, stage in known if wanted]


def grant(needs: Sequence[int], left: int) -> int:
    """Return what the first of several stages may take of ``left`` products; 0 if they are too few for it.

    In turn, each stage for which it suffices gets what it needs; what is then left is for all of these alike.

    Example:
        >>> grant([20, 50, 10], 40), grant([50, 10], 20)
        (25, 0)
    """
    runs = 0
    granted = needs[0] if needs[0] <= left else 0
    for need in needs:
        if need <= left:
            left, runs = left - need, runs + 1
    return granted + left // runs if granted else 0


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
        self._stages = stages(subject, plan)
        self._found: dict[str, Finding] = {}
        self._costs: list[tuple[str, int, float]] = []

    def run(self) -> Iterator[str]:
        """Work, and yield the name of each stage once its results are in ``data``.

        Raises:
            Stopped: The user asked for it; ``data`` keeps what was found.
            NonFinite: The loss, its gradient or a product is NaN or infinite.
            NotDifferentiable: There is no second derivative.
            InvalidInput: The preconditioner is asked for, and not known.
        """
        self._counted = 0
        self._begin()
        self._meter.begin(len(self._stages))
        try:
            for number, stage in enumerate(self._stages):
                self._meter.stage(stage.name)
                began = time.monotonic()
                if number == 0:
                    refuse_nothing(self._bench.operator, self.subject, self.plan)
                if self.plan.budget is not None:
                    left = self.plan.budget - self._curvature.products
                    needs = [later.least for later in self._stages[number:]]
                    if number == 0:  # what matters most runs with whatever there is
                        needs[0] = max(min(needs[0], left), 1)
                    self._bench.share = grant(needs, max(left, 1 - number))
                if self._bench.share == 0:
                    self._found[stage.name] = self._left_out(stage)
                else:
                    for finding in stage.work(self._bench):
                        self._found[stage.name] = finding
                products, seconds = self._curvature.products - self._counted, time.monotonic() - began
                self._counted += products
                self._costs.append((stage.name, products, seconds))
                self._meter.finish(f"{self._found[stage.name].said}, {products:,} products, {seconds:.1f} s")
                yield stage.name
        finally:
            self._meter.close()

    @property
    def missing(self) -> list[str]:
        """Stages that are not done."""
        return [stage.name for stage in self._stages[len(self._costs) :]]

    @property
    def partly(self) -> bool:
        """Whether the stage under way has left a part of its results."""
        return len(self._found) > len(self._costs)

    @property
    def data(self) -> xr.Dataset:
        """What is known so far, with units, sources and costs."""
        names, products, seconds = zip(*self._costs) if self._costs else ((), (), ())
        gradients = np.asarray(seconds) / self._gradient_seconds
        peak = peak_memory(self.subject.problem.device)
        cost = xr.Dataset(
            {
                "stage_products": variable("stage", products, "products", "products of each stage"),
                "stage_seconds": variable("stage", seconds, "s", "time of each stage"),
                "stage_gradients": variable("stage", gradients, "gradients", "time of each stage, in gradients"),
                "gradient_seconds": scalar(self._gradient_seconds, "s", "time of one evaluation of the gradient"),
                "peak_memory": scalar(peak, "bytes", "peak memory of the process, or of the accelerator"),
            },
            coords={"stage": variable("stage", np.array(names, dtype=np.str_), "1", "stage")},
        )
        if not self._costs:
            cost = cost.drop_dims("stage")
        facts = dict(self._facts)
        for finding in self._found.values():
            facts |= finding.facts
        facts |= {"complete": not self.missing, "missing": ", ".join(self.missing)}
        parts = [self._first, *(finding.data for finding in self._found.values()), cost]
        return xr.merge(parts).assign_attrs(attributes(facts))

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
        self._gradient_seconds = _time_of(lambda: problem.gradient(subject.w))
        self._first = self._at_the_point(value.item(), float(gradient.norm()))
        self._facts = self._setting()
        self._curvature = Watched(curvature_of(subject, plan), self._tick)
        operator = as_the_rule_sees(subject, plan, self._curvature)
        self._bench = Bench(subject, plan, self._curvature, operator)

    def _tick(self, products: int) -> None:
        if self._asked():
            raise Stopped
        self._meter.tick(products - self._counted)

    def _left_out(self, stage: Stage) -> Finding:
        told = f"It takes at least {stage.least:,} products, and the budget has not so many left: raise --budget."
        facts = {f"{stage.name}_converged": False, f"{stage.name}_stop": told, f"{stage.name}_left_out": True}
        return Finding(f"left out, as it takes at least {stage.least:,} products", facts=facts)

    def _at_the_point(self, loss: float, gradient: float) -> xr.Dataset:
        first = {
            "loss": scalar(loss, "loss", "loss"),
            "gradient_norm": scalar(gradient, "loss / weight", "norm of the gradient"),
        }
        rule, step = self.subject.rule, self.subject.step or 0
        if rule is not None and np.isfinite(limit := rule.stability_threshold(step)):
            words = "largest stable eigenvalue of the preconditioned Hessian"
            first["stability_threshold"] = scalar(limit, CURVATURE, words)
        return xr.Dataset(first)

    def _setting(self) -> dict[str, object]:
        subject, plan, problem, rule = self.subject, self.plan, self.subject.problem, self.subject.rule
        return {
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
            "budget": plan.budget,
            "k": plan.k,
            "ends": plan.both_or_one,
            "rule": type(rule).__name__ if rule is not None else None,
            "optimizer": rule.describe() if rule is not None else None,
            "comparable": comparable(subject, plan),
            "torch": torch.__version__,
            "notes": "\n".join(subject.notes),
        }


def _time_of(work: Callable[[], object]) -> float:
    """Return the shortest of three times in seconds."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        work()
        times.append(time.monotonic() - began)
    return max(min(times), 1e-9)


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
