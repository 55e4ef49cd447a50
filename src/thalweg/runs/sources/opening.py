"""``trajectory(source)``: from whatever holds checkpoints to one checked sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from thalweg._vectors import Pattern, matcher
from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs.sources.hub import fetch, repository
from thalweg.runs.sources.layouts import Entry, Found, find
from thalweg.runs.sources.names import clean, natural, not_trained, tied
from thalweg.runs.sources.recorded import is_run, read_run
from thalweg.runs.sources.sequence import Checkpoint, Trajectory, agree, none_selected
from thalweg.runs.sources.steps import StepRule, lacking, number
from thalweg.runs.sources.stored import InMemory, Stored, TensorInfo, Unreadable
from thalweg.runs.sources.weights import read_json

Missing = Literal["error", "skip"]
CHUNK = 1 << 22
"""Elements compared at once where two tensors may be tied."""


def trajectory(
    source: str | Path | Sequence[str | Path] | Trajectory,
    *,
    steps: StepRule | None = None,
    only: Collection[int] | Callable[[int], bool] | None = None,
    select: Pattern | None = None,
    trainable: Pattern | None = None,
    missing: Missing = "error",
    reader: Callable[[Path], Mapping[str, Tensor]] | None = None,
    drop_pages: bool = False,
    told: Callable[[str, int, int], None] = lambda name, place, count: None,
) -> Trajectory:
    """Open checkpoints as one ordered sequence ``theta_1 ... theta_T``; headers are read, weights are not.

    Steps are read from names: the number after "step"; where no name has that, after "iter", after "checkpoint",
    after "epoch"; else the last number. Only trained parameters are taken: no buffers, no integers, tied ones once.
    Names, shapes and dtypes must be the same in all checkpoints.

    Args:
        source: A run folder; a folder of checkpoints, each a file (safetensors, or of ``torch.save``), a folder of
            shards with their index, or of ``torch.distributed.checkpoint``; a glob; a list of paths; a repository in
            the hub's local cache; or its name on the hub, ``OWNER/NAME`` or ``hf://OWNER/NAME``.
        steps: Another rule: a regular expression whose first group is the number, or a function from a name to a number
            or None.
        only: Which steps to take.
        select: Which parameters to take, by name.
        trainable: Which tensors are trained parameters, in place of the rules for names.
        missing: What to do where a checkpoint is damaged or lacks a shard: "error", or "skip" and note it in ``gaps``.
            Steps that are absent from a regular sequence are noted in either case.
        reader: Loads one checkpoint of a format of your own, from its path to tensors by name. What it returns is kept
            as long as the trajectory, so return memory-mapped tensors where they are large.
        drop_pages: Tell the system after each read that it need not keep the file in memory, where it can be told.
        told: Called before each checkpoint is opened or downloaded with its name, place and their number.

    Returns:
        A `Trajectory`.

    Raises:
        InvalidInput: There are no checkpoints, two have one step, or they differ in names, shapes or dtypes; the
            message names the first difference.
        RunFolderError: A checkpoint is damaged, and ``missing`` is "error".
        MissingExtra: The source is on the hub and huggingface_hub is not installed.

    Example:
        >>> from safetensors.torch import save_file
        >>> for step in (0, 100, 200):
        ...     save_file({"w": torch.full((3,), float(step))}, f"step{step}.safetensors")
        >>> path = trajectory(".")
        >>> path.steps, path.rule
        ((0, 100, 200), "the number after 'step'")
        >>> path.read(1, "w", 1, 3)
        tensor([100., 100.])
    """
    if missing not in ("error", "skip"):
        raise InvalidInput(explain(f"missing is {missing!r}", "it is 'error' or 'skip'", "Pass one of them"))
    wanted = _wanted(only)
    if isinstance(source, Trajectory):
        chosen = [place for place, step in enumerate(source.steps) if wanted(step)]
        found = source if len(chosen) == len(source) else source.window(chosen)
        return found if select is None else found.select(select)
    recorded = not isinstance(source, Sequence) or isinstance(source, str)
    if recorded and reader is None and is_run(Path(str(source))):
        checkpoints, schedule = read_run(Path(str(source)), wanted)
        return _assemble(checkpoints, [], "steps of the run", {}, schedule, select, trainable, drop_pages)
    name = repository(source) if not _there(source) else None
    found_here = fetch(name, steps, wanted, told) if name else find(source)
    numbered = number([entry.name for entry in found_here.entries], steps)
    entries, gaps = _ordered(found_here, numbered.steps, wanted)
    checkpoints = []
    for place, (step, entry) in enumerate(entries):
        told(entry.name, place, len(entries))
        try:
            checkpoints.append(_open(step, entry, reader))
        except Unreadable as error:
            if missing == "error":
                raise _damaged(step, entry, error) from error
            gaps.append(f"Step {step} ({entry.name}) is skipped: {error.path}: {error.reason}.")
    if not checkpoints:
        raise InvalidInput(
            explain(
                f"No checkpoint of {source} can be read", " ".join(gaps[-1:]) or "none is left", "Repair them first"
            )
        )
    config = next((c for _, e in entries if (c := read_json(e.weights.place / "config.json"))), {})
    schedule = _logged(entries, [checkpoint.step for checkpoint in checkpoints])
    return _assemble(checkpoints, gaps, numbered.rule, config, schedule, select, trainable, drop_pages)


def _there(source: str | Path | Sequence[str | Path]) -> bool:
    return not isinstance(source, str) or Path(source).expanduser().exists()


def _wanted(only: Collection[int] | Callable[[int], bool] | None) -> Callable[[int], bool]:
    if only is None:
        return lambda step: True
    if callable(only):
        return only
    chosen = frozenset(only)
    return lambda step: step in chosen


def _ordered(
    found: Found, steps: Sequence[int | None], wanted: Callable[[int], bool]
) -> tuple[list[tuple[int, Entry]], list[str]]:
    """Sort checkpoints by step; note those without one, and steps that a regular sequence lacks."""
    gaps = list(found.notes)
    if len(found.entries) == 1 and steps[0] is None:
        steps = [0]
    pairs: dict[int, Entry] = {}
    for step, entry in zip(steps, found.entries):
        if step is None:
            gaps.append(f"{entry.name} is left out: its name has no step.")
        elif not wanted(step):
            continue
        elif step in pairs:
            raise InvalidInput(
                explain(
                    f"Step {step} is there twice: {pairs[step].name} and {entry.name}",
                    "a trajectory has one point a step",
                    "Remove one, or pass a rule that tells them apart, steps=r'...step(\\d+)' with one group; what it "
                    "does not match is left out",
                )
            )
        else:
            pairs[step] = entry
    if not pairs:
        names = ", ".join(entry.name for entry in found.entries[:4])
        raise InvalidInput(
            explain(
                f"None of the {len(found.entries)} checkpoints has a step that was asked for: {names}",
                "steps are read from names",
                "Pass a rule with steps=, a regular expression with one group or a function",
            )
        )
    ordered = sorted(pairs.items())
    for before, after, gone in lacking([step for step, _ in ordered]):
        some = ", ".join(map(str, gone[:3])) + (f" ... ({len(gone)} in all)" if len(gone) > 3 else "")
        gaps.append(f"Between {before} and {after} the regular sequence lacks {some}.")
    return ordered, gaps


def _open(step: int, entry: Entry, reader: Callable[[Path], Mapping[str, Tensor]] | None) -> Checkpoint:
    weights = entry.weights
    label = str(weights.files[0] if len(weights.files) == 1 else weights.place)
    if reader is None:
        tensors, files = weights.read()
        return Checkpoint(step, label, tensors, files)
    loaded: dict[str, Stored] = {}
    for path in weights.files or (weights.place,):
        for name, tensor in clean(reader(path)).items():
            same = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else None
            loaded[name] = InMemory(TensorInfo(name, tuple(tensor.shape), tensor.dtype), tensor, same)
    return Checkpoint(step, label, loaded)


def _damaged(step: int, entry: Entry, error: Unreadable) -> RunFolderError:
    return RunFolderError(
        explain(
            f"The checkpoint {entry.name} (step {step}) cannot be read: {error.path}: {error.reason}",
            "every checkpoint must be whole before the first is read",
            "Restore the file, or go on without this checkpoint with missing='skip' (--missing skip)",
        )
    )


def _assemble(
    checkpoints: list[Checkpoint],
    gaps: list[str],
    rule: str,
    config: Mapping[str, Any],
    schedule: Mapping[str, np.ndarray],
    select: Pattern | None,
    trainable: Pattern | None,
    drop_pages: bool,
) -> Trajectory:
    """Keep the trained parameters, tied ones once, and check that all checkpoints have them alike."""
    left_out: dict[str, str] = {}
    given = None if trainable is None else matcher(trainable)
    takes = matcher(select)

    def keep(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
        kept = {}
        for name in sorted(tensors, key=natural):
            info = replace(tensors[name].info, name=name)
            floating = info.dtype.is_floating_point and info.numel
            why = not_trained(info) if given is None or not floating else None if given(name) else "not trainable"
            if why is None and takes(name):
                kept[name] = tensors[name]
            else:
                left_out.setdefault(name, why or "not selected")
        return kept

    kept = [replace(checkpoint, tensors=keep(checkpoint.tensors)) for checkpoint in checkpoints]
    first = kept[0]
    if not first.tensors:
        pattern = select if select is not None else trainable
        if pattern is not None:
            raise none_selected(pattern, list(checkpoints[0].tensors))
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:4])
        raise InvalidInput(
            explain(
                f"{first.label} holds no trained parameter",
                reasons or "it is empty",
                "Pass another source, or say with trainable= which tensors are trained",
            )
        )
    told = config.get("tie_word_embeddings")
    ties = tied(
        first.tensors, first.tensors, told if isinstance(told, bool) else None, lambda a, b: _equal(first, a, b)
    )
    for checkpoint in kept:
        for name, other in ties.items():
            a, b = (checkpoint.tensors.get(key) for key in (name, other))
            if a is not None and b is not None and a.same is not None and a.same != b.same:
                raise InvalidInput(
                    explain(
                        f"{name!r} and {other!r} are one tensor at step {first.step} and two at step {checkpoint.step}",
                        "a trajectory is one model's",
                        "Leave one of them out with select=",
                    )
                )
    left_out |= {name: f"tied to {other}" for name, other in ties.items()}
    kept = [replace(c, tensors={n: t for n, t in c.tensors.items() if n not in ties}) for c in kept]
    infos = [replace(tensor.info, name=name) for name, tensor in kept[0].tensors.items()]
    agree(kept, infos)
    return Trajectory(
        kept,
        infos,
        gaps=gaps,
        left_out=left_out,
        schedule=schedule,
        rule=rule,
        config=config,
        drop_pages=drop_pages,
    )


def _equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Compare two tensors of one shape bit by bit, up to the first difference."""
    first, second = checkpoint.tensors[a], checkpoint.tensors[b]
    for start in range(0, first.info.numel, CHUNK):
        stop = min(start + CHUNK, first.info.numel)
        try:
            x, y = (tensor.read(start, stop)[0].view(torch.uint8) for tensor in (first, second))
        except Unreadable as error:
            raise RunFolderError(
                explain(
                    f"{a!r} of {checkpoint.label} cannot be read: {error.path}: {error.reason}",
                    "it is compared with the embedding, to which it may be tied",
                    "Restore the file",
                )
            ) from error
        if not torch.equal(x, y):
            return False
    return True


def _logged(entries: Sequence[tuple[int, Entry]], steps: Sequence[int]) -> dict[str, np.ndarray]:
    """Read what transformers' Trainer logged: ``trainer_state.json`` of the last checkpoint, at the exact steps."""
    history = read_json(entries[-1][1].weights.place / "trainer_state.json").get("log_history", [])
    place = {step: number for number, step in enumerate(steps)}
    found: dict[str, np.ndarray] = {}
    for line in history if isinstance(history, list) else []:
        at = place.get(line.get("step", -1)) if isinstance(line, dict) else None
        for name, value in line.items() if at is not None else ():
            if name in ("loss", "learning_rate", "grad_norm", "eval_loss") and isinstance(value, (int, float)):
                found.setdefault(name, np.full(len(steps), np.nan))[at] = value
    return found
