"""Train R copies of a network side by side, and follow loss and sharpness of each."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.sweeps.batched_checks import check_known, check_runs
from thalweg.sweeps.batched_lanczos import BASIS, RowEigenvalues, top_eigenvalues
from thalweg.sweeps.stack import RowOperator, Stack

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

VECTORS = 12
"""Vectors per row beside the basis of Lanczos: points, gradients, guesses, what a step takes."""


@dataclass(frozen=True, eq=False, repr=False)
class Curves:
    r"""Loss and sharpness of R runs over T steps of gradient descent.

    Attributes:
        lr: Learning rates, shape ``(R,)``.
        loss: ``L_t`` on all data, shape ``(R, T + 1)``. Where it is not finite, and after a row was taken out, it is
            infinity, so ``loss <= cutoff`` is the test for a row that trains. NaN after a row stopped at its ceiling.
        sharpness: Largest eigenvalue of the Hessian, shape ``(R, T + 1)``; NaN where it was not measured, where a
            product overflowed, and from the step on at which a row was taken out. Where it exceeds a row's ceiling, a
            lower bound.
        residual: ``|H v - lambda v|`` of each, same shape.
        diverged: First step at which ``not L <= cutoff``, shape ``(R,)``; -1 for rows that trained to the end.
        products: Hessian products of single rows.
        gradients: Gradients of single rows that were evaluated, those that came with a Hessian's graph included.
        forwards: Losses of single rows that were evaluated without a gradient.
        seconds: How long it took.
        unconverged: Measurements that stopped at their budget, above their tolerance.
        final: Points at the end, shape ``(R, P)``, NaN for rows that were taken out; None unless asked for.
    """

    lr: np.ndarray
    loss: np.ndarray
    sharpness: np.ndarray
    residual: np.ndarray
    diverged: np.ndarray
    products: int
    gradients: int
    forwards: int
    seconds: float
    unconverged: int = 0
    final: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of steps, ``T``."""
        return int(self.loss.shape[1]) - 1

    def plot(self) -> Figure:
        """Draw losses, and sharpness where it was measured, over steps; a line per row, coloured by learning rate."""
        import plotly.graph_objects as go
        from plotly.colors import sample_colorscale
        from plotly.subplots import make_subplots

        measured = np.isfinite(self.sharpness).any()
        figure = make_subplots(rows=1, cols=2 if measured else 1, subplot_titles=["loss", "sharpness"][: 1 + measured])
        order = np.argsort(np.argsort(self.lr)) / max(len(self.lr) - 1, 1)
        steps = np.arange(self.steps + 1)
        for row, colour in enumerate(sample_colorscale("Viridis", order.tolist())):
            style: dict[str, Any] = {"line": {"color": colour}, "name": f"lr {self.lr[row]:.4g}", "showlegend": False}
            kept = np.isfinite(self.loss[row])
            figure.add_trace(go.Scatter(x=steps[kept], y=self.loss[row, kept], **style), 1, 1)
            kept = np.isfinite(self.sharpness[row])
            if measured:
                figure.add_trace(go.Scatter(x=steps[kept], y=self.sharpness[row, kept], **style), 1, 2)
        figure.update_xaxes(title="step").update_yaxes(type="log")
        return figure

    def __repr__(self) -> str:
        gone = int((self.diverged >= 0).sum())
        return (
            f"Curves of {len(self.lr)} runs, {self.steps} steps, lr {self.lr.min():.4g} to {self.lr.max():.4g}, "
            f"{gone} diverged; {self.products} products, {self.gradients} gradients, {self.forwards} losses, "
            f"{self.seconds:.2f} s"
        )


def train_stack(
    stack: Stack,
    W0: Tensor,
    lr: Tensor | np.ndarray | Sequence[float],
    steps: int,
    *,
    index: Tensor | Sequence[int] | None = None,
    measure: Collection[int] | Literal["all"] = "all",
    tol: float = 1e-3,
    cutoff: float = 1e5,
    batches: Sequence[Tensor] | Tensor | None = None,
    loss0: Tensor | None = None,
    gradient0: Tensor | None = None,
    sharpness0: Tensor | None = None,
    guess0: Tensor | None = None,
    ceiling: Tensor | None = None,
    keep_final: bool = False,
    max_products: int = 300,
    seed: int = 0,
) -> Curves:
    r"""Train rows by gradient descent, ``w_{t+1} = w_t - \eta_r g(w_t)``, and measure them on all data on the way.

    After every step, the last included, rows with ``not L_t <= cutoff`` are taken out. Rows that share a start share
    its loss, its first gradient and its sharpness: these are computed once a start, or not at all where they are given.
    Where sharpness is measured, loss and gradient come with the Hessian's graph. Memory is that of as many rows as the
    stack's budget holds; the others wait.

    Args:
        stack: Model, loss and data.
        W0: Starts, shape ``(S, P)``, or ``(P,)`` for one that all rows share.
        lr: Learning rates, shape ``(R,)``.
        steps: Steps ``T``, 0 or more.
        index: Which start each row has, shape ``(R,)``; default row r has start r, or all the only one.
        measure: Steps 0 to T at which sharpness is measured, ``"all"``, or none: ``()``.
        tol: Relative residual of the sharpness; its error is mostly the square of that.
        cutoff: Loss above which a row has diverged.
        batches: Sample indices of each step, T of them, each ``(B,)`` for all rows or ``(R, B)``; default full batch.
        loss0: Losses at the starts, shape ``(S,)``, where known.
        gradient0: Full-batch gradients at the starts, shape ``(S, P)``, where known.
        sharpness0: Sharpness at the starts, shape ``(S,)``, where known.
        guess0: What to start the first measurements from, shape ``(S, P)``, such as ``RowEigenvalues.guess``.
        ceiling: Levels of sharpness, shape ``(R,)``; a row stops after the first measurement from step 1 on that
            exceeds its own, and that measurement as soon as it is known to.
        keep_final: Whether to return the points at the end.
        max_products: Of one measurement of one row.
        seed: Of Lanczos' random vector.

    Returns:
        `Curves`.

    Raises:
        InvalidInput: Shapes do not fit, a number is out of range, or a learning rate is not finite.

    Example:
        >>> from thalweg.problem import Problem
        >>> x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
        >>> stack = Stack(Problem(torch.nn.Linear(1, 1, bias=False).double(), torch.nn.MSELoss(), (x, 0 * x)))
        >>> found = train_stack(stack, torch.ones(1, dtype=torch.float64), [0.5, 0.9, 1.1], 2)  # of L = w^2
        >>> found.loss.round(6).tolist()
        [[1.0, 0.0, 0.0], [1.0, 0.64, 0.4096], [1.0, 1.44, 2.0736]]
        >>> found.gradients, found.sharpness[:, 0].tolist()  # one shared, then two a row
        (7, [2.0, 2.0, 2.0])
    """
    began = time.perf_counter()
    starts = W0.detach().unsqueeze(0) if W0.ndim == 1 else W0.detach()
    rates = torch.as_tensor(np.asarray(lr, dtype=np.float64) if not isinstance(lr, Tensor) else lr).double().cpu()
    if index is None:
        place = torch.zeros(len(rates), dtype=torch.int64) if len(starts) == 1 else torch.arange(len(starts))
    else:
        place = torch.as_tensor(index).cpu()
    wanted = set(range(steps + 1)) if isinstance(measure, str) else set(measure)
    check_runs(stack, starts, rates, place, steps, wanted, cutoff, measure)
    given = {"loss0": loss0, "gradient0": gradient0, "sharpness0": sharpness0, "guess0": guess0}
    check_known(given, starts, batches, steps, len(rates), ceiling)
    level = torch.full_like(rates, torch.inf) if ceiling is None else ceiling.detach().to("cpu", torch.float64)
    plan = _Plan(stack, rates, place, steps, frozenset(wanted), tol, cutoff, batches, max_products, seed, level)
    first = _First(plan, starts.to(stack.problem.device, stack.problem.dtype), **given)
    size = stack.rows_that_fit(VECTORS + (BASIS if wanted else 0))
    loss = np.full((len(rates), steps + 1), np.inf)
    sharpness, residual = np.full_like(loss, np.nan), np.full_like(loss, np.nan)
    final = torch.full((len(rates), stack.dimension), torch.nan, dtype=stack.problem.dtype) if keep_final else None
    count = first.count
    for low in range(0, len(rates), size):
        rows = torch.arange(low, min(low + size, len(rates)))
        chunk = _Chunk(plan, first, rows, loss, sharpness, residual, count)
        chunk.run()
        if final is not None:
            final[chunk.rows] = chunk.W.to("cpu")
    bad = loss > cutoff  # NaN is that of a row that stopped
    diverged = np.where(bad.any(axis=1), bad.argmax(axis=1), -1)
    return Curves(
        rates.numpy(), loss, sharpness, residual, diverged, count.products, count.gradients, count.forwards,
        time.perf_counter() - began, count.unconverged, final,
    )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    stack: Stack
    rates: Tensor
    place: Tensor
    steps: int
    measure: frozenset[int]
    tol: float
    cutoff: float
    batches: Sequence[Tensor] | Tensor | None
    max_products: int
    seed: int
    ceiling: Tensor

    def eigenvalues(
        self, W: Tensor, guess: Tensor | None, operator: RowOperator | None, above: Tensor | None = None
    ) -> RowEigenvalues:
        return top_eigenvalues(
            self.stack, W, start=guess, tol=self.tol, max_products=self.max_products, seed=self.seed,
            operator=operator, above=above,
        )  # fmt: skip


@dataclass
class _Count:
    products: int = 0
    gradients: int = 0
    forwards: int = 0
    unconverged: int = 0

    def take(self, found: RowEigenvalues, above: Tensor | None = None) -> None:
        self.products += int(found.products.sum())
        settled = found.converged if above is None else found.converged | (found.values > above)
        self.unconverged += int((~settled).sum())


class _First:
    """What rows of one start share: loss, full-batch gradient, sharpness, and a guess for the next."""

    def __init__(
        self, plan: _Plan, starts: Tensor, loss0: Tensor | None, gradient0: Tensor | None, sharpness0: Tensor | None,
        guess0: Tensor | None,
    ) -> None:  # fmt: skip
        stack, self.count, self.starts = plan.stack, _Count(), starts
        needs_gradient = plan.steps > 0 and plan.batches is None
        self.gradient = None if gradient0 is None else gradient0.to(starts)
        self.loss = None if loss0 is None else loss0.detach().to("cpu", torch.float64)
        if (needs_gradient and self.gradient is None) or (needs_gradient and self.loss is None):
            values, self.gradient = stack.value_and_gradient(starts)
            self.loss = values.to("cpu", torch.float64)
            self.count.gradients += len(starts)
        elif self.loss is None:
            self.loss = stack.loss(starts).to("cpu", torch.float64)
            self.count.forwards += len(starts)
        self.guess = None if guess0 is None else guess0.to(starts)
        self.sharpness = None if sharpness0 is None else sharpness0.detach().to("cpu", torch.float64)
        self.residual = torch.full((len(starts),), torch.nan, dtype=torch.float64)
        if 0 in plan.measure and self.sharpness is None:
            found = plan.eigenvalues(starts, self.guess, None)
            self.sharpness, self.residual, self.guess = found.values, found.residuals, found.guess
            self.count.take(found)


class _Chunk:
    """Some rows, from the first step to the last. ``rows`` are those that still train; ``W`` and ``guess`` theirs."""

    def __init__(
        self, plan: _Plan, first: _First, rows: Tensor, loss: np.ndarray, sharpness: np.ndarray, residual: np.ndarray,
        count: _Count,
    ) -> None:  # fmt: skip
        self.plan, self.first, self.rows, self.count = plan, first, rows, count
        self.loss, self.sharpness, self.residual = loss, sharpness, residual
        self.W = first.starts[plan.place[rows]]
        self.guess = None if first.guess is None else first.guess[plan.place[rows]]

    def run(self) -> None:
        """Step, evaluate, take out what has diverged, measure."""
        plan, first = self.plan, self.first
        place = plan.place[self.rows]
        assert first.loss is not None
        gradient = None if first.gradient is None else first.gradient[place]
        if 0 in plan.measure and first.sharpness is not None:
            self.sharpness[self.rows, 0], self.residual[self.rows, 0] = first.sharpness[place], first.residual[place]
        gradient = self._enter(0, first.loss[place], gradient)
        for step in range(1, plan.steps + 1):
            if not len(self.rows):
                return
            if plan.batches is not None:
                batch = torch.as_tensor(plan.batches[step - 1])
                _, gradient = plan.stack.value_and_gradient(self.W, batch[self.rows] if batch.ndim == 2 else batch)
                self.count.gradients += len(self.rows)
            assert gradient is not None
            self.W = self.W - plan.rates[self.rows].to(self.W).unsqueeze(1) * gradient
            gradient = self._evaluate(step)

    def _evaluate(self, step: int) -> Tensor | None:
        """Measure what is asked for at ``step``; return the full-batch gradient where the next step needs it."""
        stack, last = self.plan.stack, step == self.plan.steps
        gradient = None
        if step not in self.plan.measure:
            if last or self.plan.batches is not None:
                values = stack.loss(self.W)
                self.count.forwards += len(self.rows)
            else:
                values, gradient = stack.value_and_gradient(self.W)
                self.count.gradients += len(self.rows)
            return self._enter(step, values.to("cpu", torch.float64), gradient)
        operator = stack.products(self.W)
        self.count.gradients += len(self.rows)
        gradient = operator.gradient
        values = operator.value.to("cpu", torch.float64)
        kept = torch.nonzero(values <= self.plan.cutoff).squeeze(1)
        gradient = self._enter(step, values, gradient)
        if len(kept):
            above = self.plan.ceiling[self.rows]
            found = self.plan.eigenvalues(self.W, self.guess, operator.select(kept), above)
            self.count.take(found, above)
            self.sharpness[self.rows, step], self.residual[self.rows, step] = found.values, found.residuals
            self.guess = found.guess
            over = found.values > above
            self.loss[self.rows[over], step + 1 :] = np.nan
            gradient = self._keep(torch.nonzero(~over).squeeze(1), gradient)
        return gradient

    def _enter(self, step: int, values: Tensor, gradient: Tensor | None) -> Tensor | None:
        """Write losses down, and let rows go that have diverged."""
        self.loss[self.rows, step] = torch.where(values.isnan(), torch.inf, values)
        return self._keep(torch.nonzero(values <= self.plan.cutoff).squeeze(1), gradient)

    def _keep(self, kept: Tensor, gradient: Tensor | None) -> Tensor | None:
        if len(kept) == len(self.rows):
            return gradient
        self.rows, self.W = self.rows[kept], self.W[kept]
        self.guess = None if self.guess is None else self.guess[kept]
        return None if gradient is None else gradient[kept]
