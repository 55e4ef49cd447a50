"""`central_flow`: processes side by side from one start, and what they say of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, NotConverged, explain
from thalweg.flows.central import CentralMap
from thalweg.flows.continuous import CentralFlow
from thalweg.flows.edge import EdgeFlow
from thalweg.flows.labels import OWN, dataset_of, row_of
from thalweg.flows.laws import LIMIT
from thalweg.flows.midpoint import Midpoint
from thalweg.flows.observables import Observable, check_names, observe
from thalweg.flows.process import Discrete, Process
from thalweg.flows.reference import CentralReference, Euler
from thalweg.flows.registry import law_of
from thalweg.flows.result import FlowResult
from thalweg.flows.rod import RodFlow
from thalweg.flows.saving import Keeper, identity
from thalweg.flows.settings import FlowSettings, Settings
from thalweg.flows.stable import StableFlow
from thalweg.flows.stationary_flow import StationaryFlow
from thalweg.problem import Problem
from thalweg.rules import Rule, State
from thalweg.runs.meter import Meter, Silent

PROCESSES = ("discrete", "midpoint", "central", "stable", "edge", "rod", "stationary")

MEMORY = (
    "The rule averages gradients, and self-stabilisation is delayed by its memory: averages are predicted less well "
    "than without momentum, and the variance is underestimated, the more the longer the memory is."
)
"""What a user of a forecast with momentum is told."""
WIDE = 0.05
"""A result whose effective eigenvalues pass the limit by more says so."""


def central_flow(
    problem: Problem,
    rule: Rule,
    time: int,
    *,
    w: Tensor | None = None,
    state: State | None = None,
    warm_start: int = 0,
    mode: Literal["map", "flow", "reference"] = "map",
    settings: Settings | Euler | None = None,
    processes: Sequence[str] = ("discrete", "central"),
    observables: Mapping[str, Observable] | None = None,
    meter: Meter | None = None,
    state_path: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
) -> FlowResult:
    r"""Forecast the time-averaged path of ``rule`` for ``time`` steps, beside the rule itself if asked.

    The central flow is the rule's own small-step motion plus half the gradient of ``<H, Sigma>``, where ``Sigma`` is
    the covariance of the oscillation at the edge of stability. It is not fitted: at each time it is the positive
    semidefinite matrix that keeps every eigenvalue of ``P^{-1} H`` at or below 2, and has support only where it is 2.

    Args:
        problem: Model, loss and data, all of it: the theory is that of full-batch training. The loss must be smooth.
        rule: `GradientDescent`, `ScalarRMSProp` or `RMSProp`, with any schedule and weight decay; in the map also
            `HeavyBall`, `Nesterov`, `Adam` and `AdamW`, by a derivation of our own that is less exact the longer the
            memory is (see ``notes`` of the result).
        time: Units of time, each one step of the rule.
        w: Starting weights, shape ``(P,)``; default ``problem.initial``.
        state: State of the rule there; default its initial one.
        warm_start: Steps of the rule itself before the flows begin; rules with averages of squares need a few.
        mode: ``"map"``: the rule's exact step and the penalty, with few gradients. ``"flow"``: the differential
            equation itself to a given accuracy, in long steps; it is *not* closer to the rule, whose steps are of
            length one. ``"reference"``: Euler substeps of the equation with fresh derivatives, slow; with many of
            them it comes to the flow.
        settings: `Settings` of the map, `FlowSettings` of the flow, or `Euler` for the reference.
        processes: Which run: any of ``discrete``, ``midpoint``, ``central``, ``stable``, ``edge`` and ``rod``
            (gradient descent only), ``stationary`` (RMSProp and its scalar form). ``central`` always does.
        observables: Functions of flat weights to follow too, by name, such as ``{"test_loss": test_problem.value}``.
            Each is evaluated once per process and twice per direction that oscillates, at each time.
        meter: Shown each time.
        state_path: A safetensors file to keep what the next unit of time depends on, and the times so far.
        resume: Whether to go on from there, to the same bits in the same environment; a forecast that is complete
            is extended by a larger ``time``. Where nothing was saved yet it begins.
        save_every: Units of time between two savings; by default some seconds, at a bounded cost.

    Returns:
        A `FlowResult`. Its ``data`` has, over ``time``: ``loss_PROCESS``, ``squared_gradient_PROCESS``,
        ``predicted_loss``, ``predicted_squared_gradient``, ``critical``, ``effective_eigenvalues`` (of ``P^{-1} H``;
        the limit is 2), ``predicted_variance`` (of ``u_i' P (w_t - w(t))``), ``measured_variance`` (its square now),
        ``distance_PROCESS`` (from the discrete run), ``distance_PROCESS_midpoint``, ``travelled`` (of the discrete
        run), ``effective_step`` (mean of ``1 / P``), ``residual``; and ``NAME_PROCESS`` and ``predicted_NAME`` of each
        observable. Over ``time`` and ``coordinate``, for 25 single weights: ``squared_gradient_sample_PROCESS``
        and ``predicted_squared_gradient_sample``.

    Raises:
        InvalidInput: The rule has no known flow, a process is unknown, or the rule is unstable at the start.
        NotDifferentiable: The loss has no third derivative that can be trusted, such as a ReLU network's.
        NotConverged: Eigenpairs or the oscillation could not be found, or the flow lost the limit; ``error.result``
            is the forecast until then.
        NonFinite: A process diverges; ``error.result`` as above. A stable flow that becomes too stiff ends alone.
        RunFolderError, StorageError: The state cannot be read or written.

    Example:
        >>> import torch
        >>> from thalweg.rules import GradientDescent
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        >>> x = torch.randn(20, 3, dtype=torch.float64)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, torch.sin(x.sum(1, keepdim=True))))
        >>> flow = central_flow(problem, GradientDescent(lr=0.2), time=30)
        >>> flow.mode, flow.data.sizes["time"]
        ('map', 30)

    Source: arXiv 2410.24206; numbers of equations there were not at hand.
    """
    unknown = sorted(set(processes) - set(PROCESSES))
    if unknown or time < 1 or warm_start < 0:
        raise InvalidInput(
            explain(
                f"central_flow got processes={list(processes)}, time={time}, warm_start={warm_start}",
                f"it runs {', '.join(PROCESSES)} for at least one unit of time",
                "Correct the argument",
            )
        )
    if resume and state_path is None:
        raise InvalidInput(explain("resume=True was given alone", "nothing was saved", "Name the file: state_path="))
    followed = observables or {}
    check_names(followed, OWN)
    law = law_of(rule)
    if law.remembers and (mode != "map" or "stable" in processes):
        raise InvalidInput(
            explain(
                f"{rule.name} was asked for in {mode} mode with processes={list(processes)}",
                "flows in continuous time are derived for rules without momentum only",
                'Use mode="map", without the stable process',
            )
        )
    w = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    state = rule.init(w) if state is None else state
    keeper = _keeper(state_path, save_every, problem, rule, w, state, processes, settings, mode, warm_start, followed)
    saved = keeper.take_up(time, problem.device) if resume else None
    if saved is not None:
        w, state = saved.start, saved.state
    for _ in range(warm_start if saved is None else 0):
        w, state = rule.advance(w, state, problem.gradient(w))
    keeper.begin(w, state)
    running: dict[str, Process] = {}
    if "discrete" in processes:
        running["discrete"] = Discrete(problem, law, w, state)
    if "midpoint" in processes:
        running["midpoint"] = Midpoint(problem, law, w, state)
    if getattr(settings, "ablated", False) and not law.share:
        raise InvalidInput(
            explain(
                f"{rule.name} without the penalty on curvature was asked for",
                "it has no averages of squares, so there is no metric alone that could keep the limit",
                "Ablate scalar RMSProp, RMSProp or Adam",
            )
        )
    if mode == "map":
        running["central"] = CentralMap(problem, law, w, state, _settings(settings, Settings))
    elif mode == "flow":
        running["central"] = CentralFlow(problem, law, w, state, _settings(settings, FlowSettings))
    elif mode == "reference":
        running["central"] = CentralReference(problem, law, w, state, _settings(settings, Euler))
    else:
        raise InvalidInput(
            explain(f"The mode {mode!r} is unknown", "it names how the flow is computed", "Use map, flow or reference")
        )
    if "stable" in processes:
        running["stable"] = StableFlow(problem, law, w, state)
    if "edge" in processes:
        running["edge"] = EdgeFlow(problem, law, w, state)
    if "rod" in processes:
        running["rod"] = RodFlow(problem, law, w, state)
    if "stationary" in processes:
        running["stationary"] = StationaryFlow(problem, law, w, state)
    meter = meter or Silent()
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    if saved is not None:
        rows, notes = saved.rows, saved.notes
        running = {name: process for name, process in running.items() if name in saved.processes}
        for name, process in running.items():
            process.load_state_dict(saved.processes[name])
    meter.init(time, len(rows))
    keeper.open()
    try:
        for t in range(len(rows), time):
            frames = {name: process.step() for name, process in running.items() if name != "stable"}
            if "stable" in running:
                try:
                    frames["stable"] = running["stable"].step()
                except NonFinite as error:  # it is there to compare with, and the others go on
                    notes.append(f"The stable flow ended at time {t}: {error}")
                    del running["stable"]
            bad = [name for name, frame in frames.items() if not np.isfinite(frame.values["loss"])]
            if bad:
                raise NonFinite(
                    explain(
                        f"The loss of the {bad[0]} process is {frames[bad[0]].values['loss']} at time {t}",
                        "the learning rate is too large for this start",
                        "Lower it, or warm up",
                    )
                )
            rows.append(row_of(frames, w) | observe(followed, frames))
            meter.step({"step": t + 1, "loss": rows[-1]["predicted_loss"], "critical": rows[-1]["critical"]})
            keeper.after(rows, running, notes, last=t + 1 == time)
    except (NotConverged, NonFinite) as error:
        if rows:
            stop = f"It ended at time {len(rows)} of {time}: {error}"
            raise type(error)(str(error), _result(rows, mode, running, stop, notes, followed)) from error
        raise
    finally:
        keeper.close()
        meter.close()
    return _result(rows, mode, running, f"All {time} units of time were computed.", notes, followed)


def _keeper(
    path: str | Path | None,
    every: int | None,
    problem: Problem,
    rule: Rule,
    w: Tensor,
    state: State,
    processes: Sequence[str],
    settings: Any,
    mode: str,
    warm_start: int,
    followed: Mapping[str, Observable],
) -> Keeper:
    if path is None:
        return Keeper(None, {})
    known = identity(
        problem, rule, w, state, processes, settings, mode=mode, warm_start=warm_start, observables=list(followed)
    )
    return Keeper(Path(path), known, every)


def _result(
    rows: list[dict[str, Any]],
    mode: str,
    running: dict[str, Process],
    stop: str,
    said: Sequence[str],
    followed: Mapping[str, Observable],
) -> FlowResult:
    central = running["central"]
    excess = getattr(central, "excess", 0.0)
    notes = [*said, *([MEMORY] if central.law.remembers else [])]
    if excess > WIDE:
        notes.append(
            f"An effective eigenvalue came to {LIMIT + excess:.3g}, past the limit of {LIMIT:g}: it changes by more in "
            "one step than its derivative tells, and the forecast is less sure from there on."
        )
    return FlowResult(
        data=dataset_of(rows, list(followed), central.w.numel()),
        mode=mode,
        points={name: process.point for name, process in running.items()},
        cost={name: process.ledger.equivalents / len(rows) for name, process in running.items()},
        stop=stop,
        notes=tuple(notes),
    )


def _settings(given: Any, kind: Any) -> Any:
    if given is not None and not isinstance(given, kind):
        raise InvalidInput(
            explain(
                f"settings is a {type(given).__name__}",
                f"this mode takes {kind.__name__}",
                f"Pass {kind.__name__}(...)",
            )
        )
    return given or kind()
