"""Where a forecast stands, on disk: what its next unit of time depends on and what it has found, in one file."""

from __future__ import annotations

import hashlib
import json
import time as clock
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NumericalWarning, RunFolderError, SchemaError, explain
from thalweg.flows.process import Process
from thalweg.problem import Problem
from thalweg.rules import Rule, State
from thalweg.runs.files import opening, read_tensors, storing, write_tensors
from thalweg.runs.interrupts import Interrupts
from thalweg.runs.manifest import first_difference, package_versions, plain
from thalweg.runs.state import Pace

SCHEMA = 1
"""Version of these files."""


@dataclass(frozen=True)
class Standing:
    """What a saved forecast holds.

    Attributes:
        rows: Numbers of each time that is done.
        start: Weights at time 0, shape ``(P,)``: those after the warm start.
        state: State of the rule there.
        processes: ``state_dict`` of each process that still runs.
        notes: What was said so far.
        seconds: What it has taken.
    """

    rows: list[dict[str, Any]]
    start: Tensor
    state: State
    processes: dict[str, dict[str, Tensor]]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def identity(
    problem: Problem, rule: Rule, w: Tensor, state: State, processes: Sequence[str], settings: Any, **more: Any
) -> dict[str, Any]:
    """Describe in plain types what the numbers of a forecast depend on, but for how long it is."""
    digest = hashlib.blake2b(w.detach().to("cpu").contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16)
    return {
        "rule": plain(rule),
        **{key: plain(value) for key, value in more.items()},
        "settings": plain(settings),
        "processes": sorted({*processes, "central"}),
        "problem": {"dimension": problem.dimension, "samples": problem.samples, "dtype": str(problem.dtype)},
        "fingerprint": problem.fingerprint(),
        "start": {"step": int(state["step"]), "weights": digest.hexdigest()},
    }


class Keeper:
    """Saves a forecast as it goes on, so that killing it costs some seconds of work, and takes it up again.

    While it is open the first Ctrl-C ends the present unit of time, saves and stops; the second stops at once. The
    file is replaced whole or not at all, and holds tensors and text only.

    Args:
        path: The safetensors file; None keeps nothing and leaves Ctrl-C alone.
        identity: What `identity` returns; a saved forecast goes on only where it is the same.
        every: Save after every so many units; None: every five seconds, at a bounded cost.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], every: int | None = None) -> None:
        if every is not None and every < 1:
            raise InvalidInput(explain(f"save_every is {every}", "it counts units of time", "Pass 1 or more, or None"))
        self.path, self._identity, self._pace = path, json.loads(json.dumps(dict(identity))), Pace(every)
        self._interrupts = Interrupts() if path is not None else None
        self._origin: tuple[Tensor, State] | None = None
        self._began, self._before = clock.monotonic(), 0.0

    def open(self) -> None:
        """Begin to listen to Ctrl-C."""
        if self._interrupts is not None:
            self._interrupts.__enter__()

    def close(self) -> None:
        """Leave Ctrl-C to whom it belonged."""
        if self._interrupts is not None:
            self._interrupts.__exit__(None, None, None)

    def take_up(self, time: int, device: torch.device) -> Standing | None:
        """Return what is saved, or None where nothing is yet.

        Raises:
            InvalidInput: It is another forecast, or is longer than ``time``; the message names the first difference.
            RunFolderError: The file is damaged.
            SchemaError: A newer thalweg wrote it.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, text = read_tensors(self.path)
        note = _note(self.path, text)
        differs = first_difference(note["identity"], self._identity)
        if differs:
            raise InvalidInput(
                explain(
                    f"The forecast in {self.path} is another one: {differs.replace('in the folder', 'there')}",
                    "the times to come would not belong to the times that are there",
                    "Resume with the same settings, or begin anew in another file (--out) or in its place (--replace)",
                )
            )
        if time < note["time"]:
            raise InvalidInput(
                explain(
                    f"The forecast in {self.path} has {note['time']} units of time, and {time} are asked for",
                    "a forecast is extended, never shortened",
                    f"Ask for at least {note['time']}, or select from its result",
                )
            )
        changed = first_difference(note["environment"], _environment(device))
        if changed:
            warnings.warn(
                explain(
                    f"The forecast goes on in another environment: {changed.replace('in the folder', 'before')}",
                    "sums may then be rounded differently",
                    "Read it as one forecast, but do not expect it bit for bit",
                ),
                NumericalWarning,
                stacklevel=3,
            )
        try:
            found = _standing(tensors, note, device)
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise _damaged(self.path, error) from error
        self._before = found.seconds
        return found

    def begin(self, start: Tensor, state: State) -> None:
        """Note where time 0 is."""
        self._origin = (start.detach().clone(), {key: tensor.clone() for key, tensor in state.items()})

    def after(self, rows: list[dict[str, Any]], running: Mapping[str, Process], notes: list[str], last: bool) -> None:
        """Save after a unit of time where it is time to, or ``last``, or asked for by Ctrl-C.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; what is done is saved.
        """
        if self.path is None or self._interrupts is None:
            return
        if last or self._interrupts.asked or self._pace.due(len(rows)):
            self._pace.start()
            self._write(rows, running, notes)
            self._pace.done()
        if self._interrupts.asked:
            raise KeyboardInterrupt

    def _write(self, rows: list[dict[str, Any]], running: Mapping[str, Process], notes: list[str]) -> None:
        assert self.path is not None
        assert self._origin is not None
        start, state = self._origin
        tensors = {"start": start} | {f"rule/{key}": tensor for key, tensor in state.items()}
        for name, process in running.items():
            tensors |= {f"process/{name}/{key}": tensor for key, tensor in process.state_dict().items()}
        # The last bits of a product depend on how a matrix lies in memory, so that is kept too.
        orders = {k: o for k, t in tensors.items() if (o := _order(t)) != sorted(o)}
        tensors = {key: t.permute(orders[key]) if key in orders else t for key, t in tensors.items()}
        table, names, wide = _packed(rows)
        note = {
            "schema": SCHEMA,
            "kind": "forecast",
            "time": len(rows),
            "identity": self._identity,
            "environment": _environment(start.device),
            "seconds": self._before + clock.monotonic() - self._began,
            "notes": notes,
            "orders": orders,
            "moved": sorted(key for key, t in tensors.items() if t.device.type != "cpu"),
            "columns": names,
            "wide": wide,
        }
        with storing(self.path.parent):
            self.path.parent.mkdir(exist_ok=True)
        write_tensors(self.path, tensors | table, json.dumps(note))


def saved_progress(path: Path) -> tuple[int, float] | None:
    """Return how many units of time a saved forecast has, and the seconds that they took; None where none is saved.

    Raises:
        RunFolderError: The file is damaged.
        SchemaError: A newer thalweg wrote it.
    """
    if not path.exists():
        return None
    with opening(path) as handle:
        note = _note(path, (handle.metadata() or {}).get("note", ""))
    return int(note["time"]), float(note["seconds"])


def _standing(tensors: dict[str, Tensor], note: dict[str, Any], device: torch.device) -> Standing:
    moved = set(note["moved"])
    for key, order in note["orders"].items():
        tensors[key] = tensors[key].permute([order.index(i) for i in range(len(order))])
    placed = {key: t.to(device) if key in moved else t for key, t in tensors.items()}
    processes: dict[str, dict[str, Tensor]] = {}
    for key, tensor in placed.items():
        if key.startswith("process/"):
            _, name, rest = key.split("/", 2)
            processes.setdefault(name, {})[rest] = tensor
    return Standing(
        rows=_unpacked(tensors, note["columns"], note["wide"], int(note["time"])),
        start=placed["start"],
        state={key.removeprefix("rule/"): t for key, t in placed.items() if key.startswith("rule/")},
        processes=processes,
        notes=[str(line) for line in note["notes"]],
        seconds=float(note["seconds"]),
    )


def _packed(rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Rows as tensors: numbers in columns with a mask, vectors end to end with their lengths (-1: none)."""
    keys = list({key: None for row in rows for key in row})
    wide = [key for key in keys if any(isinstance(row.get(key), Tensor) for row in rows)]
    known = torch.tensor([[key in row for key in keys] for row in rows])
    values = [[0.0 if key in wide or row.get(key) is None else float(row[key]) for key in keys] for row in rows]
    nothing = torch.tensor([[key in row and row[key] is None for key in keys] for row in rows])
    table = {"rows/known": known, "rows/none": nothing, "rows/values": torch.tensor(values, dtype=torch.float64)}
    for key in wide:
        found = [row.get(key) for row in rows]
        table[f"rows/{key}/lengths"] = torch.tensor([-1 if v is None else len(v) for v in found])
        parts = [v.detach().to("cpu", torch.float64) for v in found if v is not None]
        table[f"rows/{key}/values"] = torch.cat(parts)
    return table, keys, wide


def _unpacked(tensors: dict[str, Tensor], keys: list[str], wide: list[str], time: int) -> list[dict[str, Any]]:
    table = (tensors[f"rows/{name}"].tolist() for name in ("known", "none", "values"))
    rows: list[dict[str, Any]] = [
        {key: None if empty else value for key, ok, empty, value in zip(keys, *lines) if ok} for lines in zip(*table)
    ]
    if len(rows) != time:
        raise ValueError(f"{len(rows)} rows for {time} units of time")
    for key in wide:
        lengths = tensors[f"rows/{key}/lengths"].tolist()
        parts = iter(torch.split(tensors[f"rows/{key}/values"], [n for n in lengths if n >= 0]))
        for row, length in zip(rows, lengths):
            if length >= 0:
                row[key] = next(parts)
    return rows


def _order(tensor: Tensor) -> list[int]:
    """Axes by how far apart their neighbours lie in memory, farthest first."""
    strides: list[int] = list(tensor.stride())
    return sorted(range(tensor.ndim), key=lambda i: (-strides[i] * (tensor.shape[i] > 1), i))


def _environment(device: torch.device) -> dict[str, Any]:
    return {"device": str(device), "threads": torch.get_num_threads(), "packages": package_versions()}


def _note(path: Path, text: str) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(text)
        if note["kind"] != "forecast":
            raise ValueError(f"kind {note['kind']!r}")
        schema = int(note["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if schema > SCHEMA:
        raise SchemaError(
            explain(
                f"The file {path} has schema {schema}",
                f"this version of thalweg reads schemas up to {SCHEMA}",
                "Go on with the version that wrote it",
            )
        )
    return note


def _damaged(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        explain(
            f"The file {path} is no saved forecast: {type(error).__name__}: {error}",
            "it must hold what the next unit of time depends on",
            "Begin anew: --replace, or another file (--out)",
        )
    )
