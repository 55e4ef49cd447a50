"""Critical constants of early training: where in ``c = eta lambda_0`` runs change their phase."""

from __future__ import annotations

from typing import Literal

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.phases.critical_result import Constant, CriticalConstants, Status
from thalweg.phases.early import EarlyRuns, check_start
from thalweg.phases.early_book import Book, Point
from thalweg.phases.labels import Phase, Window, check_window, diverges, loss_rises, phase_of
from thalweg.phases.search import Turn, first_true

Mode = Literal["bisect", "grid"]
CHUNK = 8
"""Grid points run at a time by the grid; what lies beyond the first divergence is dropped."""


def critical_constants(
    runs: EarlyRuns,
    *,
    mode: Mode = "bisect",
    grid_step: float = 0.1,
    start: float = 0.0,
    stop: float = 10.0,
    window: Window = "paper",
    eps_sharp: float = 0.0,
    barrier: bool = True,
    points: int = 101,
    probes: int = 1,
    near: float = 1.0,
) -> CriticalConstants:
    r"""Find the critical constants of every seed on the grid ``c = 2^x``, ``x = start + k grid_step``.

    With ``\eta = c / \lambda_0`` and ``t = 1 .. T`` (arXiv 2302.12250)

    .. math::
        c_{loss} &= \min \{c : \max_t L_t > L_0\}, &
        c_{sharp} &= \min \{c : \max_t \lambda_t > (1 + \epsilon) \lambda_0\}, \\
        c_{max} &= \max \{c : L_t \le K \text{ for all } t\}, &
        c_{barrier} &= \min \{c : \max_\alpha L((1 - \alpha) \theta_0 + \alpha \theta_T) > L_0\}.

    Each comes as a bracket of neighbouring grid points and its geometric mean. The grid ends at the first ``c`` that
    diverges; a run that diverges counts as risen, so that where no trained run has a barrier, it lies in the bracket
    of ``c_max``.

    ``mode="grid"`` runs every ``c`` and measures every step. ``mode="bisect"`` gets the same answers for a few percent
    of that, as long as each indicator turns once: ``c_loss`` from forward passes along the first gradient, confirmed by
    runs; ``c_max`` by runs without sharpness, all of them within ``near`` octaves below it and above ``c_loss``, as
    runs there are chaotic; ``c_sharp`` from sharpness after the first step, confirmed at all steps. Sharpness that
    rises is measured no further than to a lower bound that says so. ``probes`` more points below each turn are looked
    at; where anything contradicts a single turn, the constant of that seed is found by asking every point of the grid,
    and its ``fallback`` says so.

    Args:
        runs: Initialisations that can be trained for a few steps (networks: `network_runs`).
        mode: ``"bisect"`` or ``"grid"``.
        grid_step: Distance of grid points in ``log2 c``.
        start: ``log2 c`` of the first grid point.
        stop: ``log2 c`` beyond which nothing is looked for.
        window: ``"paper"``: all steps count; ``"catapult"``: those of a catapult (see `phases.labels`). With
            cross-entropy, sharpness rises within ten steps for reasons of its own, and the latter is what one wants.
        eps_sharp: Relative rise of sharpness that does not count; 0.05 for a zero-initialised output.
        barrier: Whether to find ``c_barrier``, which takes many forward passes.
        points: Points on the segment for it.
        probes: Checks of monotonicity for each constant, in ``mode="bisect"``.
        near: Octaves that are checked whole: below ``c_max``, above ``c_loss``, and below the ``c`` whose first step
            raises the loss.

    Returns:
        Brackets per seed, the curves of all runs made, their phases, and what it cost.

    Raises:
        InvalidInput: A setting is out of range, or ``runs`` holds no seed.
        NonFinite: Loss or sharpness at initialisation is not finite, or a sharpness is NaN in a run that does not
            diverge.

    Example:
        >>> from thalweg.phases.early_network import network_runs
        >>> runs = network_runs(depth=2, width=8, seeds=(0, 1), samples=40)
        >>> found = critical_constants(runs, grid_step=0.5, barrier=False)
        >>> bool(np.all(found["c_loss"].high <= found["c_max"].high)), len(found["c_sharp"].value)
        (True, 2)
    """
    check_start(runs)
    check_window(window)
    good = mode in ("bisect", "grid") and 0 < grid_step < np.inf and start < stop and eps_sharp >= 0 and points >= 2
    if not good or probes < 0 or not 0 <= near < np.inf:
        raise InvalidInput(
            explain(
                f"mode {mode!r}, grid_step {grid_step}, start {start}, stop {stop}, eps_sharp {eps_sharp}, "
                f"{points} points, {probes} probes, near {near}",
                "the grid runs upward from start to stop in positive steps, by 'bisect' or 'grid'",
                "Correct the argument that breaks this",
            )
        )
    before = runs.cost
    book = Book(runs, start, grid_step, window, eps_sharp)
    last = int(np.floor((stop - start) / grid_step + 1e-9))
    search = _grid if mode == "grid" else _bisect
    turns = search(book, last, points if barrier else 0, probes, round(near / grid_step))
    curves = book.curves()
    return CriticalConstants(
        seeds=runs.seeds,
        loss0=np.array(runs.loss0, dtype=np.float64),
        sharpness0=np.array(runs.sharpness0, dtype=np.float64),
        constants={name: _constant(name, found, book, monotone) for name, (found, monotone) in turns.items()},
        curves=curves,
        phases=tuple(_phase(book, point) for point in sorted(book.losses)),
        mode=mode,
        window=window,
        grid_step=grid_step,
        eps_sharp=eps_sharp,
        steps=runs.steps,
        cutoff=runs.cutoff,
        cost=runs.cost - before,
    )


_Turns = dict[str, tuple[list[Turn], list[bool]]]


def _grid(book: Book, last: int, points: int, probes: int, near: int) -> _Turns:
    seeds = range(len(book.runs.seeds))
    ends = [last] * len(seeds)
    open_, begin = list(seeds), 0
    while open_ and begin <= last:
        chunk = range(begin, min(begin + CHUNK, last + 1))
        gone = dict(zip([(i, k) for i in open_ for k in chunk], book.diverged([(i, k) for i in open_ for k in chunk])))
        for i in list(open_):
            first = next((k for k in chunk if gone[i, k]), None)
            if first is not None:
                ends[i] = first
                open_.remove(i)
        begin += CHUNK
    for i, k in [p for p in book.losses if p[1] > ends[p[0]]]:
        del book.losses[i, k], book.sharpness[i, k]
    grid = [(i, k) for i in seeds for k in range(ends[i] + 1)]
    book.measure(grid, book.every)
    answers = {
        "c_loss": book.loss_rose(grid),
        "c_sharp": [bool(book.known_rise(p)) for p in grid],
        "c_max": book.diverged(grid),
    }
    if points:
        answers["c_barrier"] = book.barrier_stands(grid, points)
    return {name: _read(grid, found, ends) for name, found in answers.items()}


def _read(grid: list[Point], answers: list[bool], ends: list[int]) -> tuple[list[Turn], list[bool]]:
    turns, monotone = [], []
    for seed, end in enumerate(ends):
        own = [yes for (i, _), yes in zip(grid, answers) if i == seed]
        first = own.index(True) if True in own else None
        low = end if first is None else (first - 1 if first else None)
        turns.append(Turn(low, first, False, len(own)))
        monotone.append(own == sorted(own))
    return turns, monotone


def _bisect(book: Book, last: int, points: int, probes: int, near: int) -> _Turns:
    seeds = range(len(book.runs.seeds))
    octave = max(1, round(1 / book.step))
    two = round((1.0 - book.start) / book.step)  # c = 2, where a quadratic loss would turn
    step = first_true(
        book.first_rose,
        [two] * len(seeds),
        lowest=0,
        highest=last,
        stride=max(1, octave // 2),
        probes=probes,
        near=near,
        growth=1,  # far above, a network may be dead, with a loss below the first
    )
    loss = first_true(
        book.loss_rose,
        [_below(turn) for turn in step],
        lowest=0,
        highest=[last if turn.high is None else turn.high for turn in step],
        known=_rises(book, [turn.high for turn in step], range(min(two, last), last + 1, max(1, octave // 2))),
        probes=probes,
    )
    book.train([(i, k) for i, turn in enumerate(loss) for k in range(_below(turn), min(_below(turn) + near, last) + 1)])
    known = [_divergences(book, i) for i in seeds]
    most = first_true(
        book.diverged,
        [min(last, _below(turn) + octave // 2) for turn in loss],
        lowest=[turn.low or 0 for turn in loss],
        highest=last,
        known=known,
        stride=max(1, octave // 2),
        probes=probes,
        near=near,
        growth=1,
    )
    ends = [last if turn.high is None else turn.high for turn in most]
    final = [{} if turn.high is None else {turn.high: True} for turn in most]
    early = first_true(
        book.sharpness_rose_first,
        [_below(turn) for turn in loss],
        lowest=0,
        highest=ends,
        known=final,
        stride=octave,
        probes=min(probes, 1),
    )
    sharp = first_true(
        book.sharpness_rose,
        [_below(turn) for turn in early],
        lowest=0,
        highest=[end if turn.high is None else turn.high for turn, end in zip(early, ends)],
        known=[{} if turn.high is None else {turn.high: True} for turn in early],
        probes=0,
    )
    found = {"c_loss": _both(step, loss), "c_sharp": _both(early, sharp), "c_max": most}
    if points:
        found["c_barrier"] = first_true(
            lambda asked: book.barrier_stands(asked, points),
            [min(_below(turn), end) for turn, end in zip(loss, ends)],
            lowest=0,
            highest=ends,
            known=final,
            stride=max(1, octave // 2),
            probes=min(probes, 1),
        )
    return {name: (turns, [not turn.fallback for turn in turns]) for name, turns in found.items()}


def _below(turn: Turn) -> int:
    return 0 if turn.low is None else turn.low


def _both(first: list[Turn], then: list[Turn]) -> list[Turn]:
    """The second search's answers; a doubt of either is one of both."""
    return [Turn(b.low, b.high, a.fallback or b.fallback, a.asked + b.asked) for a, b in zip(first, then)]


def _rises(book: Book, highs: list[int | None], lattice: range) -> list[dict[int, bool]]:
    """Where the loss is known to rise: where the first step says, and if it never does, up to a first on a lattice."""
    found: list[dict[int, bool]] = [{} if high is None else {high: True} for high in highs]
    points = [(i, k) for i, high in enumerate(highs) if high is None for k in lattice]
    for (i, k), yes in zip(points, book.loss_rose(points)):
        if not any(found[i].values()):
            found[i][k] = yes
    return found


def _divergences(book: Book, seed: int) -> dict[int, bool]:
    return {k: diverges(book.losses[i, k], book.runs.cutoff) for i, k in book.losses if i == seed}


def _constant(name: str, turns: list[Turn], book: Book, monotone: list[bool]) -> Constant:
    status = [Status.BELOW if t.low is None else Status.ABOVE if t.high is None else Status.FOUND for t in turns]
    return Constant(
        name=name,
        low=np.array([0.0 if t.low is None else book.c(t.low) for t in turns]),
        high=np.array([np.inf if t.high is None else book.c(t.high) for t in turns]),
        status=tuple(status),
        fallback=np.array([t.fallback for t in turns]),
        monotone=np.array(monotone),
    )


def _phase(book: Book, point: Point) -> Phase | None:
    """The phase of a run, or None where its sharpness was not measured far enough to tell."""
    loss = book.losses[point]
    rise = book.known_rise(point)
    if rise is None:
        return None
    if rise and not diverges(loss, book.runs.cutoff):
        return Phase.CATAPULT if loss_rises(loss, book.window) else Phase.INCREASE
    filled = np.where(np.isnan(book.sharpness[point]), -np.inf, book.sharpness[point])
    filled[0] = book.runs.sharpness0[point[0]]
    return phase_of(loss, filled, cutoff=book.runs.cutoff, window=book.window, eps_sharp=book.eps_sharp)
