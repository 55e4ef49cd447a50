"""Where a run stands: everything the next step depends on, in one file that is replaced atomically."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from thalweg.errors import RunFolderError, SchemaError, explain
from thalweg.runs.files import clear_temporaries, read_tensors, storing, write_tensors

SCHEMA = 1
NAME = "latest.safetensors"


@dataclass
class Position:
    """The state of training before step ``step`` is evaluated.

    Random streams and the loader's place are functions of the seed and of ``step``: nothing more is needed.

    Attributes:
        step: Updates done.
        w: Weights, shape ``(P,)``.
        rule: State of the update rule.
        previous: The last update ``w_t - w_{t-1}``, shape ``(P,)``, or None at the start.
        path: Length of the path so far, ``sum_{s < step} ||w_{s+1} - w_s||``.
        first_loss: Loss at the start, or None before it is known.
        diverged: Whether the loss is beyond the limit of divergence.
        measures: State of each measure by its name.
    """

    step: int
    w: Tensor
    rule: dict[str, Tensor]
    previous: Tensor | None = None
    path: float = 0.0
    first_loss: float | None = None
    diverged: bool = False
    measures: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def save_position(folder: Path, position: Position) -> None:
    """Replace the saved position in ``folder`` atomically."""
    tensors = {"w": position.w}
    if position.previous is not None:
        tensors["previous"] = position.previous
    tensors |= {f"rule/{key}": tensor for key, tensor in position.rule.items()}
    for name, state in position.measures.items():
        tensors |= {f"measure/{name}/{key}": tensor for key, tensor in state.items()}
    note = {
        "schema": SCHEMA,
        "step": position.step,
        "path": position.path.hex(),
        "first_loss": None if position.first_loss is None else position.first_loss.hex(),
        "diverged": position.diverged,
        "measures": list(position.measures),
    }
    with storing(folder):
        folder.mkdir(exist_ok=True)
    write_tensors(folder / NAME, tensors, json.dumps(note))


def load_position(folder: Path, device: torch.device) -> Position | None:
    """Read the saved position, or return None where none was saved yet.

    Raises:
        RunFolderError: The file is damaged.
        SchemaError: A newer thalweg wrote it.
    """
    path = folder / NAME
    clear_temporaries(folder)
    if not path.exists():
        return None
    tensors, text = read_tensors(path)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        note = json.loads(text)
        if note["schema"] > SCHEMA:
            raise SchemaError(
                explain(
                    f"The file {path} has schema {note['schema']}",
                    f"this thalweg reads schemas up to {SCHEMA}",
                    "Upgrade thalweg: pip install --upgrade thalweg",
                )
            )
        measures: dict[str, dict[str, Tensor]] = {str(name): {} for name in note["measures"]}
        for name, tensor in tensors.items():
            if name.startswith("measure/"):
                _, measure, key = name.split("/", 2)
                measures[measure][key] = tensor
        return Position(
            step=int(note["step"]),
            w=tensors["w"],
            rule={name.removeprefix("rule/"): t for name, t in tensors.items() if name.startswith("rule/")},
            previous=tensors.get("previous"),
            path=float.fromhex(note["path"]),
            first_loss=None if note["first_loss"] is None else float.fromhex(note["first_loss"]),
            diverged=bool(note["diverged"]),
            measures=measures,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            explain(
                f"The file {path} is damaged: {type(error).__name__}: {error}",
                "it must hold what the next step depends on",
                "Read the run with open_run; to train again, take another folder (--out)",
            )
        ) from error


class Pace:
    """Decides when to save, so that saving costs a bounded share of the time.

    Args:
        every: Save every so many steps; None: once ``seconds`` have passed, and twenty times what the last
            saving took.
        seconds: Least time between two savings.
    """

    def __init__(self, every: int | None, seconds: float = 5.0) -> None:
        self._every, self._seconds, self._cost = every, seconds, 0.0
        self._last = time.perf_counter()
        self._started = self._last

    def due(self, step: int) -> bool:
        """Whether to save before ``step`` is evaluated."""
        if self._every is not None:
            return step % self._every == 0
        return time.perf_counter() - self._last >= max(self._seconds, 20 * self._cost)

    def start(self) -> None:
        """Note that a saving begins."""
        self._started = time.perf_counter()

    def done(self) -> None:
        """Note that it ended."""
        self._last = time.perf_counter()
        self._cost = self._last - self._started
