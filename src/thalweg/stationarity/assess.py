"""Has training settled, and on what: the whole question put to one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.stationarity import objections, refusals
from thalweg.stationarity.agreement import Agreement, agreement
from thalweg.stationarity.descent import Descent, descent_ratio
from thalweg.stationarity.evidence import rows
from thalweg.stationarity.fresh_step import FreshSteps, fresh_steps
from thalweg.stationarity.holm import holm
from thalweg.stationarity.level import Level, floor_of, level
from thalweg.stationarity.logs import KINDS, ORDER, History, Trace, history
from thalweg.stationarity.verdict import ADVICE, MEANING, Kind, Open, Verdict, decide
from thalweg.stationarity.windows import SKIP, Window, change_inside, segments, whole_epochs


def assess(
    source: Any,
    *,
    window: tuple[int, int] | None = None,
    segment: int = -1,
    skip: float = SKIP,
    floor: float | None = None,
    columns: Mapping[str, str] | None = None,
    permutations: int = 199,
    seed: int = 0,
) -> Verdict:
    """Say whether training has settled, and on what: on a point, or on a distribution in which weights keep moving.

    Constant stretches of learning rate, batch size and decay are found from the log; of the last one the second half
    is looked at, in whole epochs where the log tells them. The loss says whether anything has settled, the unbiased
    gradient level what it is; the other observables say how far: function space, norms, directions, weights. Sums that
    telescope are no part of it.

    Args:
        source: A `Run` or its folder, an ``xarray.Dataset`` with ``step`` and ``loss``, a CSV file, or a mapping of
            arrays. Columns are those of `thalweg.runs.gradient_probe.GradientProbe` and
            `thalweg.stationarity.observables.Observables`.
        window: First and last step, in place of the window that is found.
        segment: Which constant stretch, counted as a list is.
        skip: Share of it, at its start, that is left out.
        floor: Squared gradient norm that counts as bounded away from zero; None: 5 % of the mean level over the first
            1 % of the steps.
        columns: For a CSV file: which column is the loss and so on, where that is not guessed.
        permutations: Of the block tests.
        seed: Of these.

    Returns:
        The verdict with its evidence. A log that allows none has kind ``"undecided"``, and says why.

    Raises:
        InvalidInput: The source cannot be read, or an argument is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> U = np.full(4000, np.nan); U[::20] = 1 + 0.1 * rng.standard_normal(200)
        >>> found = assess({"loss": 2 + 0.1 * rng.standard_normal(4000), "gradient_unbiased": U})
        >>> found.kind, found.window
        ('invariant regime', steps 2,000 to 3,999)
        >>> assess({"loss": 2 + 0.1 * rng.standard_normal(4000)}).undecided[0].reason.split(". ")[0]
        'The log holds no gradient level'
    """
    known = history(source, columns)
    return assess_history(
        known, window=window, segment=segment, skip=skip, floor=floor, permutations=permutations, seed=seed
    )


def assess_history(
    known: History,
    *,
    window: tuple[int, int] | None = None,
    segment: int = -1,
    skip: float = SKIP,
    floor: float | None = None,
    permutations: int = 199,
    seed: int = 0,
) -> Verdict:
    """Do what `assess` does with what `thalweg.stationarity.logs.history` has read."""
    if not 0 <= skip < 1 or (floor is not None and not floor > 0) or permutations < 99:
        raise InvalidInput(
            explain(
                f"skip is {skip}, floor {floor}, permutations {permutations}",
                "a share lies below 1, a squared norm that counts is positive, and 99 permutations are the fewest",
                "Correct the argument",
            )
        )
    found = segments(known.loss.steps, known.settings)
    chosen, why = _window(known, found, window, segment, skip)
    if why is not None:
        return _verdict("undecided", [Open(why)], chosen, found, known)
    loss = agreement(known.loss.inside(chosen.start, chosen.stop).values, "loss", permutations=permutations, seed=seed)
    gradient = _level(known, chosen, floor)
    others = _observables(known, chosen, permutations, seed)
    descent, fresh = _descent(known, chosen), _fresh(known, chosen)
    factor = 1.0 if window is not None else 1 / (1 - skip)
    waits = _open(loss, gradient, chosen, factor)
    fatal = gradient is None or gradient.probes < objections.PROBES or math.isnan(gradient.unbiased)
    kind: Kind = "undecided" if fatal or gradient is None else decide(loss, gradient)
    decided = kind != "undecided"
    return _verdict(kind, [] if decided else waits, chosen, found, known, loss, gradient, others, descent, fresh)


def _window(
    known: History, found: Sequence[Window], window: tuple[int, int] | None, segment: int, skip: float
) -> tuple[Window, str | None]:
    if window is not None:
        start, stop = window
        if not start < stop or stop < known.loss.steps[0] or start > known.loss.steps[-1]:
            raise InvalidInput(
                explain(
                    f"The window is {start} to {stop}",
                    f"the run goes from step {known.loss.steps[0]} to {known.loss.steps[-1]}",
                    "Give a first and a last step within",
                )
            )
        chosen = Window(start, min(stop, int(known.loss.steps[-1])))
        why = change_inside(chosen, found)
        inside = [piece for piece in found if piece.start <= chosen.start <= piece.stop]
        return Window(chosen.start, chosen.stop, inside[0].settings if inside else {}), why
    if not -len(found) <= segment < len(found):
        raise InvalidInput(
            explain(f"There is no segment {segment}", f"the run has {len(found)}", "Count from 0, or back from -1")
        )
    piece = found[segment]
    held = int(piece.holds(known.loss.steps).sum())
    if len(found) > 1 and held < refusals.ENOUGH:
        return piece, objections.never_constant(piece.settings, held)
    return whole_epochs(piece.after(skip), known.epochs, piece.start), None


def _level(known: History, window: Window, floor: float | None) -> Level | None:
    whole = known.gradient.get("unbiased")
    if whole is None:
        return None

    def inside(key: str) -> Trace | None:
        found = known.gradient.get(key)
        return None if found is None else found.inside(window.start, window.stop)

    def mean(key: str) -> float:
        found = inside(key)
        return math.nan if found is None or not len(found) else float(found.values.mean())

    last = int(max(known.loss.steps[-1], whole.steps[-1]))
    bound = floor if floor is not None else floor_of(whole.steps, whole.values, last)
    here = whole.inside(window.start, window.stop)
    error = inside("error")
    return level(
        here.steps,
        here.values,
        error=None if error is None else error.values,
        floor=bound,
        biased=mean("biased"),
        noise=mean("noise"),
        evaluated=mean("evaluated"),
        scale_free=mean("scale_free"),
    )


def _observables(known: History, window: Window, permutations: int, seed: int) -> dict[str, Agreement]:
    found = {}
    for name in sorted(known.observables, key=lambda name: ORDER.index(KINDS[name])):
        here = known.observables[name].inside(window.start, window.stop)
        if len(here):
            found[name] = agreement(here.values, name, permutations=permutations, seed=seed)
    return found


def _descent(known: History, window: Window) -> Descent | None:
    if known.promised is None:
        return None
    clean = next(
        (known.observables[name] for name in ("full_loss", "evaluation_loss") if name in known.observables), None
    )
    loss = (clean or known.loss).inside(window.start, window.stop)
    promised = known.promised.inside(window.start, window.stop)
    if min(len(loss), len(promised)) < 10 or not np.isfinite(loss.values).all():
        return None
    curvature = None if known.curvature is None else known.curvature.inside(window.start, window.stop)
    fits = curvature is not None and np.array_equal(curvature.steps, promised.steps)
    return descent_ratio(
        loss.steps,
        loss.values,
        promised.steps,
        promised.values,
        curvature=curvature.values if fits and curvature is not None else None,
    )


def _fresh(known: History, window: Window) -> FreshSteps | None:
    if known.fresh is None:
        return None
    here = known.fresh.inside(window.start, window.stop)
    return fresh_steps(here.values) if len(here) >= 8 else None


def _open(loss: Agreement, gradient: Level | None, window: Window, factor: float) -> list[Open]:
    """Return what is not decided, with the steps that would decide it."""
    found = []
    if loss.state in ("open", "changed"):
        more = None
        if loss.needed is not None and loss.n > 1:
            each = window.steps / (loss.n - 1)
            more = max(1, math.ceil((loss.needed * each - window.steps) * factor))
        # what to do is said in steps of the run then, and no longer in snapshots of the window
        why = (
            loss.why
            if more is None or (loss.test is not None and loss.test.refused is None)
            else _without_remedy(loss.why)
        )
        found.append(Open(why, more))
    if gradient is None:
        found.append(Open(objections.no_gradients()))
    elif gradient.probes < objections.PROBES and math.isnan(gradient.unbiased):
        more = None
        if gradient.every is not None:
            more = max(1, math.ceil((objections.PROBES * gradient.every - window.steps) * factor))
        found.append(Open(gradient.why if more is None else _without_remedy(gradient.why), more))
    elif gradient.state in ("open", "between"):
        found.append(Open(gradient.why, _probes_wanted(gradient, window, factor)))
    return found


def _without_remedy(text: str) -> str:
    return text.rsplit(". ", 1)[0] + "."


def _probes_wanted(gradient: Level, window: Window, factor: float) -> int | None:
    """Return the steps after which the interval of the level would let go of the floor, if errors shrink as usual."""
    low, high = gradient.interval
    if math.isnan(gradient.floor) or math.isnan(low) or gradient.state == "between":
        return None
    wanted = gradient.floor / 2 if low <= 0 else abs(gradient.unbiased - gradient.floor)
    half = (high - low) / 2
    if not wanted > 0 or half <= wanted:
        return None
    grown = (half / wanted) ** 2
    return math.ceil((grown - 1) * window.steps * factor) if grown < 1e4 else None


def _verdict(
    kind: Kind,
    waits: list[Open],
    window: Window,
    found: tuple[Window, ...],
    known: History,
    loss: Agreement | None = None,
    gradient: Level | None = None,
    others: Mapping[str, Agreement] | None = None,
    descent: Descent | None = None,
    fresh: FreshSteps | None = None,
) -> Verdict:
    others = others or {}
    tests = {
        name: x.test.p for name, x in ({"loss": loss} | dict(others)).items() if x is not None and x.test is not None
    }
    adjusted = dict(zip(tests, holm(list(tests.values())).tolist())) if tests else {}
    words = [MEANING[kind]]
    if kind == "undecided" and loss is not None:
        words.append(
            {
                "settled": "The loss itself has settled, as far as this window can tell.",
                "falling": "The loss itself is still falling.",
                "rising": "The loss itself rises or jumps.",
                "changed": "The loss kept its level, and its distribution changed.",
                "open": "Whether the loss has settled is open.",
            }[loss.state]
        )
    words += _depth(kind, others, adjusted)
    return Verdict(
        kind,
        " ".join(words),
        rows(loss, gradient, others, adjusted, descent, fresh),
        tuple(waits),
        ADVICE[kind] if kind != "undecided" or loss is None or loss.state != "falling" else ADVICE["still training"],
        window,
        found,
        loss,
        gradient,
        others,
        adjusted,
        descent,
        fresh,
        known,
        known.notes,
    )


def _depth(kind: Kind, others: Mapping[str, Agreement], adjusted: Mapping[str, float]) -> list[str]:
    """Say how far below the loss the same holds; weights that have not mixed are expected, and no objection."""
    if not kind.startswith(("invariant", "stationary", "settled")) or not others:
        return []
    names = {"loss": "the loss on fixed data", "function": "what the network computes", "norm": "the norms"}
    names |= {"direction": "the directions of the weights", "weight": "the weights themselves"}
    states: dict[str, list[str]] = {"settled": [], "moving": [], "open": []}
    for kind_of in ORDER:
        here = [(name, x) for name, x in others.items() if KINDS[name] == kind_of]
        if not here:
            continue
        moving = any(
            x.state in ("falling", "rising", "changed") and not adjusted.get(name, 0.0) > 0.05 for name, x in here
        )
        settled = all(x.state == "settled" for _, x in here)
        states["moving" if moving else "settled" if settled else "open"].append(names[kind_of])
    said = {"settled": "Settled, too: {}.", "moving": "Still changing: {}.", "open": "Not decided in this window: {}."}
    return [said[state].format(", ".join(found)) for state, found in states.items() if found]
