"""``thalweg map``: the whole path of the weights, each number beside its null, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from thalweg.cli.console import complain, say, talk, warnings_as_notes
from thalweg.cli.map_cost import device_of, held, map_meter, pause, peak, predicted, rates, size
from thalweg.cli.map_options import Told, parse
from thalweg.cli.map_work import Opened, Target, anchor_of, compute, decay_for, facts, mapped, open_source, target
from thalweg.errors import ThalwegError

if TYPE_CHECKING:
    from thalweg.trajectories.gram_result import Grams
    from thalweg.trajectories.map import TrajectoryMap

SHOWN = 24
"""Groups that are listed; the file and the page have all of them."""


def main(arguments: Sequence[str]) -> int:
    """Map as the options say; return the exit code."""
    told = parse(arguments)
    device_of(told.device)
    console = talk()
    with warnings_as_notes():
        opened = open_source(told)
        where = target(told, opened)
        anchor_of(told, opened.path)
        decay_for(told, opened)  # what is wrong is said before hours of reading
        return _map(told, opened, where, console)


def _map(told: Told, opened: Opened, where: Target, console: Console) -> int:
    _describe(opened)
    total = _predict(told, opened)
    if told.replace:
        _clear(where)
    noun = "read" if told.resident else "checkpoint" if told.sketch else "task" if told.spread else "tile"
    meter, before, high = map_meter(console, total, noun), held(), peak()
    try:
        found = compute(told, opened, where, meter)
    except KeyboardInterrupt:
        say(f"Stopped. {_kept(told, opened, where)}")
        return 130
    except ThalwegError:
        if meter.reached:
            say(_kept(told, opened, where))
        raise
    measured = peak() - before if peak() > high else 0
    return _finish(told, opened, where, found, mapped(told, opened, found), measured)


def _describe(opened: Opened) -> None:
    """Say what was found."""
    path = opened.path
    say(f"{path}; {path.rule}")
    for gap in path.gaps:
        complain(gap, "note")
    if path.left_out:
        some = ", ".join(f"{name} ({why})" for name, why in list(path.left_out.items())[:3])
        more = f" and {len(path.left_out) - 3} more" if len(path.left_out) > 3 else ""
        say(f"Left out: {some}{more}")


def _predict(told: Told, opened: Opened) -> int:
    """Say what it will take, before it is taken; return the bytes to read."""
    from thalweg.trajectories.gram_plan import gram_plan
    from thalweg.trajectories.grouping import fused_parts
    from thalweg.trajectories.resident import checkpoint_reads

    path, device = opened.path, device_of(told.device)
    if told.sketch is not None:
        say(f"To read: {size(path.nbytes * len(path))}, one checkpoint after the other, for estimates")
        return path.nbytes * len(path)
    if told.resident is not None:
        reads = checkpoint_reads(len(path), told.resident)
        say(f"To read: {size(reads * path.nbytes)} in {reads:,} reads of a checkpoint, {told.resident} kept in memory")
        return reads * path.nbytes
    plan = gram_plan(path, told.share, parts=fused_parts(path), exact=told.exact, device=device)
    seconds, limit = predicted(plan, rates(path, plan, device, told.exact))
    each = " in each process" if told.spread else ""
    time = "" if told.spread else f"about {pause(seconds)}, limited by {limit}; "
    say(
        f"To read: {size(plan.total_bytes)}, each byte once, {size(plan.read_bytes)} at a time; {time}"
        f"memory up to {size(plan.peak_bytes)}{each}"
    )
    return plan.total_bytes


def _finish(told: Told, opened: Opened, where: Target, found: Grams, made: TrajectoryMap, measured: int) -> int:
    from thalweg.report.trajectory_page import marks_of, write_map_page
    from thalweg.report.trajectory_words import caveats, headline
    from thalweg.runs.files import storing
    from thalweg.trajectories.stored import save_map

    with storing(where.data.parent):
        where.data.parent.mkdir(parents=True, exist_ok=True)
    found.save(where.grams)
    save_map(made, where.data, facts(told, opened, found))
    marks = marks_of(made)
    for sentence in headline(made, marks):
        say(sentence)
    say("")
    say(str(made.table()))
    _groups(made)
    for note in caveats(made, marks):
        if note not in opened.path.gaps:
            complain(note, "note")
    say(_cost(found, measured))
    say(f"Results: {where.data}")
    say(f"Page: {write_map_page(made, where.page, opened.name, marks)}")
    run = opened.run
    whole = told.out is None and not told.partial and told.sketch is None
    if run is not None and whole and not run.folder.in_use() and (run.path / "report.html").is_file():
        from thalweg.report import write_report

        say(f"Report: {write_report(run)}")
    return 0


def _groups(made: TrajectoryMap) -> None:
    """List the groups: similarity beside that of a random walk, from the origin and from the start."""
    names = [name for name in made.groups if name != "whole"]
    if not names:
        return
    wide = max(len("group"), *(len(name) for name in names[:SHOWN]))
    say("")
    say(
        f"{'group'.ljust(wide)}{'similarity'.rjust(12)}{'walk'.rjust(8)}{'relative'.rjust(10)}{'walk'.rjust(8)}"
        f"{'turning'.rjust(9)}{'walk'.rjust(6)}{'moved'.rjust(9)}"
    )
    for name in names[:SHOWN]:
        table = made.table(name)
        off, relative, turning = table["omega_off"], table["relative"], table["turning"]
        say(
            f"{name.ljust(wide)}{off.value:12.3f}{off.walk:8.3f}{relative.value:10.3f}{relative.walk:8.3f}"
            f"{turning.value:8.0f}°{turning.walk:5.0f}°{table['displacement'].value:9.3g}"
        )
    if len(names) > SHOWN:
        say(f"and {len(names) - SHOWN} more groups, in the file and on the page")
    say("")


def _cost(found: Grams, measured: int) -> str:
    """Say what it cost."""
    text = f"Read {size(found.bytes_read)} in {pause(found.seconds)}"
    if found.bytes_read and found.seconds > 0:
        text += f" ({found.bytes_read / found.seconds / 1e9:.2g} GB/s, {found.flops / 1e9:.3g} GFLOP)"
    if found.reused:
        text += f"; {found.reused} tensors were finished before"
    if measured > 0:
        text += f"; memory {size(measured)}"
    return text


def _clear(where: Target) -> None:
    """Forget the tensors that were finished."""
    from thalweg.runs.files import storing

    with storing(where.tensors):
        for file in where.tensors.glob("gram-*.safetensors"):
            file.unlink()


def _kept(told: Told, opened: Opened, where: Target) -> str:
    """Say what is left of work that did not end."""
    if told.resident is not None or told.sketch is not None:
        return "Nothing was written."
    done = len(list(where.tensors.glob("gram-*.safetensors")))
    if not done:
        return "No tensor was finished."
    return f"Finished tensors are kept in {where.tensors} ({done} files): the same command goes on from there."
