"""Thick-restart Lanczos: one vector at a time, to a residual, with nothing missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.spectra.hidden import MISS, REACH, Edges, look, start_saw_all
from thalweg.spectra.krylov import Krylov
from thalweg.spectra.merge import merge
from thalweg.spectra.results import Stop
from thalweg.spectra.task import Array, Found, Task, wanted

Need = Callable[[Array], list[int]]
FREE = 2**28
"""Bytes of basis that a solver takes without being asked: every restart costs products."""
LONGEST = 400
"""Vectors of basis that it takes so: beyond, keeping them orthogonal costs more than restarts do."""


def positive(owner: str, **fields: float | None) -> None:
    """Refuse settings that are not positive."""
    bad = [f"{name}={value}" for name, value in fields.items() if value is not None and not value > 0]
    if bad:
        raise InvalidInput(explain(f"{owner} got {', '.join(bad)}", "they must be positive", "Pass None for defaults"))


def longest_basis(task: Task) -> int:
    """Vectors up to which a basis grows before it restarts, unless told otherwise."""
    cheap = FREE // (task.operator.dtype.itemsize * task.operator.space.length)
    return max(default_basis(task), min(cheap, LONGEST))


def default_basis(task: Task) -> int:
    """Vectors for which there is room from the beginning."""
    return 3 * task.count + 30


@dataclass(frozen=True)
class Lanczos:
    """Thick-restart Lanczos with full reorthogonalisation (after Wu and Simon, 2000).

    A pair has converged when ``|A v - theta v| <= tol max(|theta|, 1e-3 |A|)``; the error of its value is at most
    that, and usually its square over the gap.

    Attributes:
        tol: Relative residual; default 1e-7 in float64, 1e-4 below.
        max_products: Budget; default ``20 P`` up to 10,000.
        basis: Vectors kept at once. More need fewer products and more memory; default ``3 k + 30``, and where that
            does not do, up to 400 if these fit into 256 MiB.
        check_multiplicity: For k > 1, look in the complement of the space for eigenvalues that a single starting
            vector cannot see (copies of repeated ones), until missing one has probability below 1e-3.
        certify: Confirm the residuals by fresh products at the end.

    Raises:
        InvalidInput: A field is out of range.
    """

    tol: float | None = None
    max_products: int | None = None
    basis: int | None = None
    check_multiplicity: bool = True
    certify: bool = True

    def __post_init__(self) -> None:
        positive("Lanczos", tol=self.tol, max_products=self.max_products, basis=self.basis)

    @property
    def name(self) -> str:
        """As results show it."""
        return "Lanczos" if self.basis is None else f"Lanczos(basis={self.basis})"

    def solve(self, task: Task) -> Found:
        """Converge the wanted pairs, then look for hidden ones until none is left to find."""
        return _Solve(task, self).run()


class _Solve:
    """One task: a main run, then looks at what it could not see."""

    def __init__(self, task: Task, method: Lanczos) -> None:
        self.task, self.method = task, method
        self.capacity = max(method.basis or default_basis(task), task.count + 2)
        self.longest = max(method.basis or longest_basis(task), task.count + 2)
        self.norm = 0.0
        self.doubt = False
        """Whether the start may have hidden something that the run has not ruled out."""

    def run(self) -> Found:
        """Solve."""
        task = self.task
        space = self._space("start")
        self.doubt = task.start is not None
        found = self._converge(space, self._sum(task.start), lambda v: wanted(v, task.k, task.which), task.count)
        if not self.doubt and (task.k == 1 or not self.method.check_multiplicity):
            return found
        fetched = [task.against, found.rows]
        extra = 0
        for attempt in range(task.room):
            if not found.stop.converged:
                break
            best = found.values[wanted(found.values, task.k, task.which)]
            edges = Edges.of(task, best, self.norm, REACH if self.doubt else 0.0)
            before = task.spent
            # A copy is orthogonal to the whole space; what a start has missed may only be nearly so.
            known = fetched if self.doubt else [*space.against, space.rows[: space.size]]
            hint, chance = look(task, known, edges, self._stream("probe", attempt), self.method.basis)
            extra += task.spent - before
            if hint is None:
                if chance >= MISS:
                    what = "an" if self.doubt else "a repeated"
                    stated = f"{what} eigenvalue may have been missed, with probability up to {chance:.1g}"
                    found = replace(found, notes=(*found.notes, stated))
                elif extra:
                    what = "what the start may have missed" if self.doubt else "repeated eigenvalues"
                    stated = f"{extra} products looked for {what}"
                    found = replace(found, notes=(*found.notes, stated))
                break
            space = self._space("complement", attempt, against=fetched)
            more = self._converge(space, hint, self._belongs(found.values, edges), 0)
            fetched.append(more.rows)
            note = f"{len(more.values)} of the values had been hidden: repeated, or nearly"
            found = merge(task, found, more, self.norm, note)
        return replace(found.take(wanted(found.values, task.k, task.which)), norm=self.norm)

    def _sum(self, start: Tensor | None) -> Tensor | None:
        """One vector with an equal share of each guess: its Krylov space soon holds what each of them knows."""
        if start is None:
            return None
        lengths = self.task.operator.space.norm(start)
        return (start / lengths.clamp_min(torch.finfo(start.dtype).tiny)[:, None]).sum(dim=0)

    def _belongs(self, values: Array, edges: Edges) -> Need:
        """Positions of new Ritz values that would be among the wanted ones of old and new together."""

        def need(ritz: Array) -> list[int]:
            together = np.concatenate([values, ritz])
            order = np.argsort(together, kind="stable")
            best = set(order[wanted(together[order], self.task.k, self.task.which)].tolist())
            return [i for i in edges.beyond(ritz) if i + len(values) in best]

        return need

    def _stream(self, *names: str | int) -> torch.Generator:
        return _rng.generator(self.task.seed, "lanczos", *names)

    def _space(self, *names: str | int, against: list[Tensor | None] | None = None) -> Krylov:
        blocks = [self.task.against] if against is None else against
        free = self.task.operator.size - sum(len(block) for block in blocks if block is not None)
        return Krylov(self.task.operator, max(min(self.capacity, free), 1), self._stream(*names), *blocks)

    def _converge(self, space: Krylov, start: Tensor | None, need: Need, at_least: int) -> Found:
        """Expand and restart until the pairs that ``need`` names have converged."""
        task = self.task
        space.begin(start)
        clock = _Clock(min(at_least, space.capacity))
        best, since = np.inf, 0
        while True:
            space.expand()
            exhausted = space.room == 0 or space.beta == 0.0 or task.spent >= task.budget
            if space.size < space.capacity and not exhausted and not clock.due(space.size):
                continue
            values, coordinates, residuals = space.ritz()
            self.norm = max(self.norm, space.norm)
            picked = need(values)
            full = space.room == 0
            short = not full and len(picked) < at_least
            ratio = residuals[picked] / np.maximum(task.limits(values[picked], self.norm), 1e-300)
            worst = float(ratio.max(initial=0.0))
            clock.read(space.size, worst if picked and not short else np.inf)
            since = 0 if worst < 0.5 * best else since + 1
            best = min(best, worst)
            stop = None
            if full or (space.beta == 0.0 and not short):
                stop = Stop.INVARIANT
            elif picked and worst <= 1.0 and not short:
                if self.doubt and start_saw_all(task, space, values[picked], self.norm):
                    self.doubt = False
                if not self.doubt or not space.whole or space.size >= min(self.longest, space.size + space.room):
                    stop = Stop.CONVERGED
            elif since > 20 * space.capacity and worst < 100 and space.eps > 1e-10:
                stop = Stop.STAGNATED
            elif task.spent >= task.budget:
                stop = Stop.BUDGET
            if stop is not None:
                live = space.beta > 0.0
                last = space.rows[space.size : space.size + 1]
                last = last.clone() if live else torch.zeros_like(last)  # a view would keep the whole basis
                shares = space.beta * coordinates[-1:, picked].T
                return Found.of(
                    task, values[picked], space.vectors(coordinates[:, picked]), stop, self.norm, last, shares
                )
            if space.size == space.capacity:
                longer = min(2 * space.capacity, self.longest, space.size + space.room)
                if longer > space.capacity:
                    space.extend(longer)
                    continue
                kept = self._keep(values, picked)
                space.restart(values[kept], coordinates[:, kept])
                clock.restart(space.size)

    def _keep(self, values: Array, picked: list[int]) -> list[int]:
        """Wanted pairs and their neighbours: half of what is left, which is where the next ones come from."""
        size = len(values)
        extra = max((size - len(picked)) * 2 // 5, 1)
        count = min(len(picked) + extra, size - 1)
        if self.task.which == "both":
            return wanted(values, max(count // 2, 1), "both")
        return wanted(values, count, self.task.which)


class _Clock:
    """When to look at Ritz values next: half of what the residuals' decay says is still missing.

    Looking costs an eigendecomposition of the projected matrix, which beside cheap products is not free.
    """

    def __init__(self, first: int) -> None:
        self.next = first
        self.last: tuple[int, float] | None = None

    def due(self, size: int) -> bool:
        """Whether to look at this size."""
        return size >= self.next

    def read(self, size: int, worst: float) -> None:
        """Plan from the worst ratio of residual to limit."""
        wait = 1
        if np.isfinite(worst) and worst > 1.0:
            if self.last is not None and worst < self.last[1] and size > self.last[0]:
                rate = np.log(self.last[1] / worst) / (size - self.last[0])
                wait = int(min(0.5 * np.log(worst) / rate, size / 16))
            self.last = (size, worst)
        self.next = size + max(wait, 1)

    def restart(self, size: int) -> None:
        """Forget: sizes count anew."""
        self.next, self.last = size + 1, None
