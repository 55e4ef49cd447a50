"""Every way to cut a job, what each takes, and the fastest that fits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.errors import InvalidInput, explain
from thalweg.problem.holdings import DEFAULT_PRODUCTS, Job, Line, holdings
from thalweg.problem.losses import leading_size
from thalweg.problem.probes import PHASES, Growth, Order, first_samples, grow, probe
from thalweg.problem.units import size

if TYPE_CHECKING:
    from thalweg.problem.problem import Problem

PlannedLayout = Literal["linearised", "double_backward"]


@dataclass(frozen=True)
class Part:
    """One line of a plan: what it is, how many bytes, and why."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Choice:
    """One way to cut a job: how products are taken, samples at a time, vectors of the basis."""

    layout: PlannedLayout | None
    size: int
    basis: int | None


class Planner:
    """The probes of one problem, and what they say about every way to do the job."""

    def __init__(self, problem: Problem, job: Job, k: int, budget: int, layout: str) -> None:
        self.problem, self.job, self.k, self.budget = problem, job, k, budget
        self.vector = problem.dimension * torch.empty(0, dtype=problem.dtype).element_size()
        self.largest = max(leading_size(batch) or 1 for batch in problem._batches)
        mixed = any(isinstance(m, _BatchNorm) and m.training for m in problem.model.modules())
        self.cuttable = problem._batches.samples is not None and not mixed
        self.total = problem._batches.samples or self.largest * problem.batch_count
        self.orders: tuple[Order, ...] = {
            "value": ("value",),
            "gradient": ("gradient",),
            "critical_sharpness": ("gradient", "value"),
        }.get(job, ("product",))  # type: ignore[assignment]
        w = problem.initial
        room = max(budget - 3 * self.vector, 0)
        whole = self.total if self.cuttable else self.largest
        self.growth = {
            order: Growth([probe(problem, w, first_samples(problem, whole), order)])
            if mixed
            else grow(problem, w, order, room, whole)
            for order in self.orders
        }
        curved = self.orders == ("product",)
        both: tuple[PlannedLayout, ...] = ("linearised", "double_backward")
        self.layouts: tuple[PlannedLayout | None, ...] = (
            (None,) if not curved else both if layout == "auto" else tuple(n for n in both if n == layout)
        )
        start = time_of_pass(w)
        self.pass_seconds = start
        self.sizes = sorted({self._even(2**i) for i in range(self.total.bit_length())} | {self.total})
        if not self.cuttable:
            self.sizes = [self.largest]

    def _even(self, size: int) -> int:
        """The size that cuts the data into as many batches as ``size`` does, all about equally long."""
        return math.ceil(self.total / math.ceil(self.total / size))

    def count(self, size: int) -> int:
        """Batches of ``size`` samples."""
        return math.ceil(self.total / size) if self.cuttable else self.problem.batch_count

    def parts(self, choice: Choice) -> tuple[Part, ...]:
        """What is alive at the worst moment of the job."""
        moments = []
        for order in self.orders:
            held = holdings(self.job, order, self.k, choice.basis, self.problem.dtype, self.problem.dimension)
            growth, graphs = self.growth[order], 0
            if choice.layout == "linearised":
                graphs = growth.kept(choice.size) * self.count(choice.size)
            beside = graphs - growth.kept(choice.size) if graphs else 0
            for phase in PHASES[order]:
                worst = growth.bytes(phase, choice.size)
                if order != "product" and self.count(choice.size) > 1:  # the batches' values, and these stacked
                    worst += 2 * self.count(choice.size) * self.problem.dtype.itemsize
                kept = min(growth.kept(choice.size), worst) if phase == "multiply" else 0
                lines = self._vectors(held.during)
                lines += self._graph_parts(choice, beside + kept, worst - kept, phase)
                moments.append(lines)
            for moment in held.outside:
                lines = self._vectors(moment)
                if graphs:
                    lines += self._graph_parts(choice, graphs, 0, "multiply")
                moments.append(lines)
        return tuple(max(moments, key=lambda lines: sum(part.bytes for part in lines)))

    def _vectors(self, lines: tuple[Line, ...]) -> list[Part]:
        return [Part(name, round(count * self.vector), why) for name, count, why in lines if count]

    def _graph_parts(self, choice: Choice, kept: int, work: int, phase: str) -> list[Part]:
        batches = self.count(choice.size)
        whose = f"one batch of {choice.size:,}"
        if choice.layout == "linearised":
            whose = f"{batches} kept batches of {choice.size:,}" if batches > 1 else "all samples, kept"
        doing = {
            "value": "the forward pass",
            "gradient": "forward and backward pass",
            "record": "recording the gradient's graph",
            "multiply": "multiplying with it",
        }[phase]
        lines = []
        if kept:
            lines.append(Part("graph", kept, f"saved tensors of {whose}"))
        if work:
            lines.append(Part("work", work, f"{doing}, {choice.size:,} sample{'s' * (choice.size > 1)} at a time"))
        return lines

    def peak(self, choice: Choice) -> int:
        """Most bytes of the job."""
        return sum(part.bytes for part in self.parts(choice))

    def seconds(self, choice: Choice, products: int) -> float:
        """Seconds of the job."""
        batches = self.count(choice.size)
        if self.orders != ("product",):
            once = {"value": 0 if self.job != "value" else 1, "gradient": 1}
            times = {
                order: products if self.job == "critical_sharpness" and order == "value" else once[order]
                for order in self.orders
            }
            return sum(
                times[order] * batches * self.growth[order].seconds(PHASES[order][0], choice.size)
                for order in self.orders
            )
        growth = self.growth["product"]
        record, multiply = (batches * growth.seconds(phase, choice.size) for phase in PHASES["product"])
        algebra = 4 * min(choice.basis or 0, products) * self.pass_seconds
        if choice.layout == "linearised":
            return record + products * (multiply + algebra)
        return products * (record + multiply + algebra)

    def choose(self, wanted: int | None, fixed: bool) -> Choice:
        """The fastest way that fits; of equally fast ones that with the least memory.

        Args:
            wanted: Vectors of the basis, if there is one.
            fixed: Whether it must have so many.

        Raises:
            InvalidInput: None fits.
        """
        bases = [wanted] if fixed or wanted is None else shrinking(wanted, min(self.k + 3, wanted))
        for basis in bases:
            # A basis that takes more than half of what is allowed leaves little for batches: try fewer vectors first.
            greedy = basis is not None and basis != bases[-1] and basis * self.vector > self.budget / 2
            fitting = [
                choice
                for layout in self.layouts
                for choice in (Choice(layout, size, basis) for size in self.sizes)
                if self.peak(choice) <= self.budget
            ]
            if fitting and not greedy:
                guess = DEFAULT_PRODUCTS[self.job](self.k, basis)
                best = min(self.seconds(choice, guess) for choice in fitting)
                good = [choice for choice in fitting if self.seconds(choice, guess) <= 1.05 * best]
                return min(good, key=self.peak)
        least_choice = min(
            (Choice(layout, size, bases[-1]) for layout in self.layouts for size in self.sizes), key=self.peak
        )
        needed = self.peak(least_choice)
        listed = ", ".join(f"{part.name} {size(part.bytes)}" for part in self.parts(least_choice))
        raise InvalidInput(
            explain(
                f"The budget of {size(self.budget)} is too small for {self.job} with {self._cut(least_choice)}, "
                f"which needs {size(needed)}, {size(needed - self.budget)} more: {listed}",
                "no smaller cut of this job is known",
                f"Allow budget={needed} or more, {self._ways_out(fixed)}",
            )
        )

    def _ways_out(self, fixed: bool) -> str:
        """What else takes less."""
        ways = ["choose fewer parameters"]
        if self.largest > 1 and not self.cuttable:
            ways.append("give the data in smaller batches")
        if fixed and self.job in ("eigenpairs", "density"):
            ways.append("leave basis=None")
        if self.layouts == ("linearised",):
            ways.append('take layout="auto"')
        if self.problem.dtype == torch.float64:
            ways.append("work in float32")
        return ", ".join([*ways[:-1], f"or {ways[-1]}"])

    def _cut(self, choice: Choice) -> str:
        what = "one sample at a time" if choice.size == 1 else f"batches of {choice.size:,}"
        return what if choice.basis is None else f"{what} and a basis of {choice.basis}"


def time_of_pass(w: torch.Tensor) -> float:
    """Seconds to read two vectors of the length of ``w``: the unit of a solver's own work."""
    w @ w
    start = time.perf_counter()
    for _ in range(3):
        w @ w
    if w.is_cuda:
        torch.cuda.synchronize(w.device)
    return (time.perf_counter() - start) / 3


def shrinking(wanted: int, least: int) -> list[int | None]:
    """Basis sizes to try: as wanted, then less by a third each time, down to the least."""
    found: list[int | None] = []
    while wanted > least:
        found.append(wanted)
        wanted = 2 * wanted // 3
    return [*found, least]
