"""``plan``: what a job will take, and how to cut it so that it fits, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from thalweg.errors import InvalidInput, explain
from thalweg.problem import memory
from thalweg.problem.batches import tensors_in
from thalweg.problem.heads import LanguageModelLoss
from thalweg.problem.holdings import DEFAULT_BASIS, DEFAULT_PRODUCTS, Job
from thalweg.problem.linear_head import default_chunk
from thalweg.problem.planner import Choice, Part, PlannedLayout, Planner
from thalweg.problem.probes import AGREEMENT, misfit
from thalweg.problem.units import duration, size

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from thalweg.problem.problem import Problem


@dataclass(frozen=True)
class Plan:
    """How to do a job within a budget, and what it will take.

    Attributes:
        job: What is planned.
        peak_bytes: Most bytes that the job holds at a time, beyond what is there before it (model and data).
        seconds: What it takes on this machine as it is now: the right order of magnitude.
        batch_size: Samples to evaluate at a time; None where the data comes in batches already made.
        chunk: Tokens whose logits exist at a time; None where the loss has no chunks.
        layout: For ``hessian(problem, layout=...)``; None where no product is taken.
        basis: Vectors of the Krylov basis, for ``Lanczos(basis=...)`` or ``spectral_density(steps=...)``; None where
            there is none.
        products: Hessian products that ``seconds`` counts on.
        parts: What is alive at the worst moment; their bytes add up to ``peak_bytes``.
        budget: Bytes that were allowed.
        present_bytes: Model and data, which are there already.
        misfit: Relative error with which the smaller probes predicted the largest one; None for fewer than three.
        problem: The problem that was planned for.
    """

    job: Job
    peak_bytes: int
    seconds: float
    batch_size: int | None
    chunk: int | None
    layout: PlannedLayout | None
    basis: int | None
    products: int
    parts: tuple[Part, ...]
    budget: int
    present_bytes: int
    misfit: float | None
    problem: Problem

    def apply(self) -> Problem:
        """Return the same problem, cut as planned; it shares model and data and is not checked again.

        Example:
            >>> from thalweg.problem import Problem
            >>> model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
            >>> problem = Problem(model, torch.nn.MSELoss(), (torch.randn(1000, 20), torch.randn(1000, 1)))
            >>> problem.plan("product", budget=100_000).apply().batch_count > 1
            True
        """
        problem = self.problem
        loss = problem._function.loss
        if self.chunk is not None and isinstance(loss, LanguageModelLoss):
            problem = problem.with_loss(loss.with_chunk(self.chunk))
        return problem if self.batch_size is None else problem.recut(self.batch_size)

    def __repr__(self) -> str:
        how = [
            None if self.batch_size is None else f"batch_size={self.batch_size}",
            None if self.chunk is None else f"chunk={self.chunk}",
            None if self.layout is None else f"layout={self.layout!r}",
            None if self.basis is None else f"basis={self.basis}",
        ]
        lines = [
            f"Plan({self.job}: {size(self.peak_bytes)} of {size(self.budget)} allowed, about {duration(self.seconds)}, "
            f"{', '.join(text for text in how if text)})"
        ]
        width = max(len(part.name) for part in self.parts)
        lines += [f"  {part.name:<{width}}  {size(part.bytes):>9}  {part.why}" for part in self.parts]
        lines.append(f"  {'there before':<{width}}  {size(self.present_bytes):>9}  model and data; not in the sum")
        if self.misfit is None:
            lines.append("  Too few samples for a third probe to confirm that bytes grow as assumed.")
        elif abs(self.misfit) > AGREEMENT:
            way = "more" if self.misfit > 0 else "less"
            lines.append(f"  Smaller probes predicted {abs(self.misfit):.0%} {way} than the largest one then took.")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw what is alive at the worst moment, piece upon piece, under the budget."""
        import plotly.graph_objects as go

        figure = go.Figure(
            [go.Bar(name=part.name, x=[self.job], y=[part.bytes / 1e6], hovertext=part.why) for part in self.parts]
        )
        figure.add_hline(y=self.budget / 1e6, line_dash="dash", annotation_text="budget")
        return figure.update_layout(barmode="stack", title=f"Peak memory: {self.job}", yaxis_title="MB")


def plan(
    problem: Problem,
    job: Job = "eigenpairs",
    *,
    k: int = 1,
    budget: int | None = None,
    layout: PlannedLayout | Literal["auto"] = "auto",
    basis: int | None = None,
    products: int | None = None,
) -> Plan:
    """Predict peak memory and time of ``job``; see `Problem.plan`."""
    _check(job, k, budget, layout, basis, products)
    allowed = memory.available(problem.device) // 2 if budget is None else budget
    problem, chunk = _chunked(problem, allowed)
    planner = Planner(problem, job, k, allowed, layout)
    wanted = DEFAULT_BASIS[job](k)
    if wanted is not None:  # jobs without a basis ignore the argument
        wanted = min(basis or wanted, problem.dimension)
    choice = planner.choose(wanted, fixed=basis is not None)
    return _write(planner, choice, chunk, products)


def _write(planner: Planner, choice: Choice, chunk: int | None, products: int | None) -> Plan:
    counted = products or DEFAULT_PRODUCTS[planner.job](planner.k, choice.basis)
    fits = [found for growth in planner.growth.values() if (found := misfit(growth)) is not None]
    return Plan(
        job=planner.job,
        peak_bytes=planner.peak(choice),
        seconds=planner.seconds(choice, counted),
        batch_size=choice.size if planner.cuttable else None,
        chunk=chunk,
        layout=choice.layout,
        basis=choice.basis,
        products=counted,
        parts=planner.parts(choice),
        budget=planner.budget,
        present_bytes=_present(planner.problem),
        misfit=max(fits, key=abs) if fits else None,
        problem=planner.problem,
    )


def _chunked(problem: Problem, budget: int) -> tuple[Problem, int | None]:
    """Give a language model's loss a chunk if it has none: two blocks of logits within an eighth of the budget."""
    loss = problem._function.loss
    if not isinstance(loss, LanguageModelLoss):
        return problem, None
    if loss.chunk is not None:
        return problem, loss.chunk
    head = problem.model.get_output_embeddings()  # type: ignore[operator]
    vocabulary = head.weight.shape[0]
    row = vocabulary * torch.empty(0, dtype=problem.dtype).element_size()
    chunk = max(min(default_chunk(vocabulary), budget // (16 * row)), 16)
    return problem.with_loss(loss.with_chunk(chunk)), chunk


def _present(problem: Problem) -> int:
    """Bytes of model and data."""
    tensors = [*problem.model.parameters(), *problem.model.buffers()]
    for batch in problem._batches:
        tensors += tensors_in(batch)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _check(job: str, k: int, budget: int | None, layout: str, basis: int | None, products: int | None) -> None:
    known = get_args(PlannedLayout)
    if job not in get_args(Job) or layout not in ("auto", *known):
        raise InvalidInput(
            explain(
                f"plan got job={job!r}, layout={layout!r}",
                "one of them is unknown",
                f"Choose a job among {', '.join(get_args(Job))}; a layout among auto, {' and '.join(known)}",
            )
        )
    numbers = {"k": k, "budget": budget, "basis": basis, "products": products}
    bad = [f"{name}={value}" for name, value in numbers.items() if value is not None and value < 1]
    if bad:
        raise InvalidInput(explain(f"plan got {', '.join(bad)}", "they must be positive", "Pass None for defaults"))
