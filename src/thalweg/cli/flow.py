"""``thalweg flow``: forecast the time-averaged path of an optimizer, compare, and write the page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from thalweg.cli.config import threads, to_dict
from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.flow_meter import flow_meter
from thalweg.cli.flow_options import Told, parse
from thalweg.cli.flow_start import Subject, subject
from thalweg.cli.interrupt import CtrlC
from thalweg.cli.meter import duration
from thalweg.errors import InvalidInput, NotConverged, ThalwegError, explain
from thalweg.runs.files import inside, storing

if TYPE_CHECKING:
    from thalweg.flows.result import FlowResult


def main(arguments: Sequence[str]) -> int:
    """Forecast as the options say; return the exit code."""
    told, start = parse(arguments)
    console = talk()
    with warnings_as_notes():
        if start is None:
            _check_free(_target(told, None), told)  # before the data is loaded
        found = subject(told, start, say)
        target = _target(told, found)
        _check_free(target, told)
        config = told.settings.as_run(told.time)
        with threads(config, found.problem):
            return _forecast(told, found, target, console)


def _forecast(told: Told, found: Subject, target: Path, console: Console) -> int:
    from thalweg.flows.forecast import central_flow
    from thalweg.flows.laws import largest_rate
    from thalweg.flows.result import FlowResult
    from thalweg.flows.saving import saved_progress
    from thalweg.flows.subspace import Unstable

    problem, rule = found.problem, found.rule
    say(f"{found.source}; {problem.dimension:,} parameters, {problem.samples:,} samples")
    say(f"{rule.describe()}; {told.time:,} units of time in {told.mode} mode")
    processes = told.processes or _processes(found)
    state = _state_of(target)
    before = saved_progress(state) if told.resume else None
    if told.resume and before is None:
        say(f"Nothing was saved in {state} yet: beginning at time 0.")
    elif before is not None:
        say(f"Going on from time {before[0]:,} of {told.time:,}.")
    spent = before[1] if before is not None else 0.0
    if told.replace:
        with storing(state):
            state.unlink(missing_ok=True)
    pressed = CtrlC("Stopping after this unit of time, and saving; Ctrl-C again leaves at once.")
    meter, began = flow_meter(console, pressed.listen), time.monotonic()
    try:
        result = central_flow(
            problem,
            rule,
            told.time,
            w=found.w,
            state=found.state,
            warm_start=told.warm_start,
            mode=told.mode,  # type: ignore[arg-type]  # the library names the modes that it has
            processes=processes,
            meter=meter,
            state_path=state,
            resume=told.resume,
            save_every=told.save_every,
        )
    except KeyboardInterrupt:
        kept = saved_progress(state)
        told_of = "nothing was written" if kept is None else f"time {kept[0]:,} is saved; go on with --resume"
        say(f"Stopped after {meter.reached:,} of {told.time:,} units of time: {told_of}.")
        return 130
    except Unstable as error:
        if callable(rule.lr):
            raise
        most = largest_rate(rule, float(rule.lr), error.sharpness)
        raise InvalidInput(
            f"{error} By its eigenvalues the largest stable learning rate here is {most:.3g}."
        ) from error
    except NotConverged as error:
        if not isinstance(error.result, FlowResult):
            raise
        complain(str(error))
        _finish(told, found, error.result, target, time.monotonic() - began + spent)
        return 1
    except ThalwegError:
        if meter.reached:
            say(f"Failed after {meter.reached:,} of {told.time:,} units of time: nothing was written.")
        raise
    return _finish(told, found, result, target, time.monotonic() - began + spent)


def _finish(told: Told, found: Subject, result: FlowResult, target: Path, seconds: float) -> int:
    from thalweg.flows.stored import save_flow
    from thalweg.report.flow_page import write_flow_page
    from thalweg.report.flow_words import caveats, headline

    save_flow(result, target, sigma=told.sigma, facts=facts(told, found, seconds))
    done = result.data.sizes["time"]
    say(f"{'Finished' if done == told.time else f'Ended at time {done:,} of {told.time:,}'}, {duration(seconds)}.")
    from thalweg.flows.stored import open_flow

    kept = open_flow(target)  # what is said is what the file says
    for sentence in headline(kept):
        say(sentence)
    for note in caveats(kept):
        complain(note, "note")
    say(f"Results: {target}")
    say(f"Page: {write_flow_page(target)}")
    run = found.run if found.own_rule is None else None  # the page of the run is about its own rule
    if run is not None and told.out is None and not run.folder.in_use() and (run.path / "report.html").is_file():
        from thalweg.report import write_report

        say(f"Report: {write_report(run)}")
    return 0


def facts(told: Told, found: Subject, seconds: float) -> dict[str, object]:
    """Return what the file says of the forecast beside its numbers."""
    import torch

    problem, rule = found.problem, found.rule
    prints = problem.fingerprint()
    return {
        "name": found.name,
        "source": found.source,
        "run": found.run.manifest.name if found.run is not None else None,
        "step": found.step if found.run is not None else None,
        "first_step": found.step + told.warm_start,
        "warm_start": told.warm_start,
        "time": told.time,
        "limits": "\n".join(found.notes),
        "rule": type(rule).__name__,
        "optimizer": rule.describe(),
        "run_optimizer": found.own_rule.describe() if found.own_rule is not None else None,
        "asked": found.changed or None,
        "learning_rate": None if callable(rule.lr) else float(rule.lr),
        "weight_decay": rule.decay,
        "model": type(problem.model).__name__,
        "dimension": problem.dimension,
        "samples": problem.samples,
        "dtype": str(problem.dtype),
        "device": str(problem.device),
        "seed": told.settings.seed,
        "fingerprint_model": prints.get("model"),
        "fingerprint_data": prints.get("data"),
        "seconds": seconds,
        "torch": torch.__version__,
        "config": json.dumps(to_dict(told.settings.as_run(told.time))),
    }


def _processes(found: Subject) -> tuple[str, ...]:
    """All that the rule has: flows in continuous time are known for rules without momentum only."""
    from thalweg.flows.forecast import PROCESSES
    from thalweg.flows.registry import law_of

    remembers = law_of(found.rule).remembers
    left_out = {
        "edge",
        "rod",
        "stationary",
        *(["stable"] if remembers else []),
    }  # alternative models, for those who ask
    return tuple(name for name in PROCESSES if name not in left_out)


def _target(told: Told, found: Subject | None) -> Path:
    if told.out is not None:
        return told.out.with_suffix(".nc")
    if found is not None and found.run is not None:
        asked = f"-{_in_a_name(found.changed)}" if found.changed else ""
        return inside(found.run.path, found.run.path / "analyses" / f"flow-{found.step}{asked}.nc")
    config = told.settings
    return Path(f"{config.data.name}-{config.model.name}-{config.rule.name}-flow.nc")


def _in_a_name(changed: str) -> str:
    """What is asked about, as part of a file's name: ``lr-0.3``."""
    parts = [part.partition(" instead of ")[0].removeprefix("rule.") for part in changed.split(", ")]
    return "-".join(re.sub(r"[^\w.]+", "-", part.removeprefix("schedule.")) for part in parts)


def _state_of(target: Path) -> Path:
    """Where the state of the forecast is kept: beside its results."""
    return target.with_suffix(".state.safetensors")


def _check_free(target: Path, told: Told) -> None:
    if told.resume or told.replace:
        return
    if not target.exists() and _state_of(target).exists():
        raise InvalidInput(
            explain(
                f"A forecast was interrupted and saved in {_state_of(target)}",
                "it may have taken long",
                "Go on with it (--resume), take another file (--out), or begin anew (--replace)",
            )
        )
    if target.exists():
        raise InvalidInput(
            explain(
                f"There is a forecast in {target} already",
                "it may have taken long",
                "Take another file (--out), replace it (--replace), or extend it (--resume with a larger --time)",
            )
        )
