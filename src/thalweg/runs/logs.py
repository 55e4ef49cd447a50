"""Curves out of somebody's log: CSV files and exports of Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain

Floats = NDArray[np.float64]
OTHER = "other: "

GUESSES: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "global step", "trainer global step", "steps", "iteration", "iter", "t"),
    "loss": ("loss", "train loss", "training loss", "loss train", "train loss step"),
    "sharpness": (
        "sharpness", "lambda max", "lambda", "top eigenvalue", "max eigenvalue", "hessian top eigenvalue",
        "preconditioned sharpness", "critical sharpness",
    ),
    "learning_rate": ("learning rate", "lr", "train learning rate", "train lr", "eta"),
    "batch_sharpness": ("batch sharpness",),
    "threshold": ("stability threshold", "threshold"),
}  # fmt: skip
"""Names that columns go by, best first, without case, ``_``, ``/``, ``.`` and ``-``."""
HINTS = {"sharpness": ("sharpness", "hessian", "eigenvalue", "lambda")}
"""Words in a column's name that tell what it is, where no name of `GUESSES` is there and no other column has them."""
SHOWN = 8


@dataclass(frozen=True)
class Log:
    """Curves of one run from a table.

    Attributes:
        columns: Which column each curve was read from.
        steps: Increasing, ``(n,)``.
        loss: ``(n,)``.
        sharpness: ``(n,)``, NaN where not measured; None without a column; so for what follows.
        learning_rate: ``(n,)``.
        batch_sharpness: ``(n,)``.
        threshold: ``(n,)``.
        notes: What was guessed, sorted, dropped.
        logged: Where the loss was in the table itself, ``(n,)``; elsewhere it is the one before.
        others: Every other column of numbers by its own name, ``(n,)``, NaN where not measured.
    """

    columns: Mapping[str, str]
    steps: NDArray[np.int64]
    loss: Floats
    sharpness: Floats | None
    learning_rate: Floats | None
    batch_sharpness: Floats | None
    threshold: Floats | None
    notes: tuple[str, ...]
    logged: NDArray[np.bool_]
    others: Mapping[str, Floats] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return what a segmentation into regimes takes."""
        found: dict[str, Any] = {"loss": self.loss, "steps": self.steps}
        if self.learning_rate is not None:
            found["learning_rate"] = self.learning_rate
        if self.threshold is not None:
            found["threshold"] = self.threshold
        if self.sharpness is not None:
            known = np.isfinite(self.sharpness)
            found |= {"sharpness": self.sharpness[known], "sharpness_steps": self.at[known]}
            if self.batch_sharpness is not None:
                found["batch_sharpness"] = self.batch_sharpness[known]
        return found

    @property
    def at(self) -> NDArray[np.int64]:
        """Steps of the rows."""
        return self.steps


def read_log(path: str | Path, columns: Mapping[str, str] | None = None) -> Log:
    r"""Read a table of one run.

    Columns are named in ``columns``, or guessed by `GUESSES`; an export of Weights & Biases names them
    ``run - metric``, which is understood as long as it holds one run. Rows may come in any order. Of several rows with
    one step the values are joined; where they disagree the last one counts, and that is noted.

    An empty cell was not measured; a loss that is written as NaN or infinity was, and the run diverged.

    Args:
        path: A CSV file with a header.
        columns: Column of each curve: ``{"loss": "train/nll", ...}``; keys as in `GUESSES`.

    Returns:
        A `Log`.

    Raises:
        InvalidInput: The file is missing or no table, a column is missing or ambiguous, a step is no whole number, or
            no row has a loss.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "log.csv").write_text("Step,train/loss,sharpness\n1,0.5,\n0,1.0,7\n")
        ...     log = read_log(Path(folder, "log.csv"))
        >>> log.loss.tolist(), log.notes[0]
        ([1.0, 0.5], 'Columns were guessed: step = Step, loss = train/loss, sharpness = sharpness.')
    """
    import pandas as pd

    source = Path(path)
    try:
        table = pd.read_csv(source, skipinitialspace=True, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InvalidInput(explain(f"There is no file {source}", "nothing can be read", "Check the path")) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(
            explain(f"{source} is no table: {error}", "a log is a CSV file with a header", "Export it again")
        ) from error
    names = [str(name) for name in table.columns]
    chosen, notes = _chosen(names, columns or {}, source)
    if "loss" not in chosen:
        raise InvalidInput(
            explain(
                f"{source} has no column that looks like a loss, among {', '.join(names[:20])}",
                "regimes are held against the loss",
                "Name it: columns={'loss': ...}, or --columns loss=NAME",
            )
        )
    curves = {key: _numbers(table[name].tolist(), name, key) for key, name in chosen.items()}
    if "step" not in curves:
        curves["step"] = np.arange(len(table), dtype=np.float64)
        notes.append("There is no column of steps: rows are counted.")
    taken = set(chosen.values())
    loose = {name: _loose(table[name].tolist()) for name in names if name not in taken}
    others = {name: x for name, x in loose.items() if x is not None}
    if others and not columns:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(f"Columns that were not recognised: {', '.join(list(others)[:SHOWN])}{more}.")
    return _log(chosen, curves, others, notes, source)


def _log(
    chosen: dict[str, str], curves: dict[str, Floats], others: dict[str, Floats], notes: list[str], source: Path
) -> Log:
    steps = curves.pop("step")
    curves |= {f"{OTHER}{name}": x for name, x in others.items()}
    usable = np.isfinite(steps)
    if not usable.all():
        notes.append(f"{int((~usable).sum())} rows without a step are left out.")
        steps, curves = steps[usable], {key: values[usable] for key, values in curves.items()}
    if (steps != np.round(steps)).any() or (steps < 0).any():
        raise InvalidInput(
            explain(
                f"Column {chosen.get('step')} of {source} holds something that is no step",
                "steps are whole numbers from 0 on",
                "Name another column",
            )
        )
    if (np.diff(steps) < 0).any():
        notes.append("Rows were not in the order of steps, and are sorted.")
    order = np.argsort(steps, kind="stable")
    at, inverse = np.unique(steps[order].astype(np.int64), return_inverse=True)
    joined, differ = {}, set()
    for key, values in curves.items():
        values = values[order]
        column = np.full(len(at), np.nan)
        present = ~np.isnan(values)
        column[inverse[present]] = values[present]  # the last one stands
        if (column[inverse[present]] != values[present]).any() and not key.startswith(OTHER):
            differ.add(key)
        joined[key] = column
    if len(at) < len(steps):
        said = f"; {', '.join(sorted(differ))} disagree, and the last row counts" if differ else ""
        notes.append(f"{len(steps) - len(at)} rows repeat a step, and are joined{said}.")
    logged = ~np.isnan(joined["loss"])
    if not logged.any():
        raise InvalidInput(
            explain(f"No row of {source} has a loss in {chosen['loss']}", "it is needed", "Name another column")
        )
    if "sharpness" in joined and not np.isfinite(joined["sharpness"]).any():
        notes.append(f"Column {chosen['sharpness']} holds no number: sharpness counts as not measured.")
        del joined["sharpness"]
    for key in ("learning_rate", "threshold", "loss"):
        if key in joined:
            joined[key] = _carried(joined[key])
    begin = int(np.argmax(logged))
    joined = {key: values[begin:] for key, values in joined.items()}
    return Log(
        chosen, at[begin:], joined["loss"], joined.get("sharpness"), joined.get("learning_rate"),
        joined.get("batch_sharpness"), joined.get("threshold"), tuple(notes), logged[begin:],
        {key.removeprefix(OTHER): x for key, x in joined.items() if key.startswith(OTHER)},
    )  # fmt: skip


def _chosen(names: list[str], told: Mapping[str, str], source: Path) -> tuple[dict[str, str], list[str]]:
    """Return the column of each curve, and what was guessed."""
    unknown = set(told) - set(GUESSES)
    if unknown:
        raise InvalidInput(
            explain(
                f"There is no curve {sorted(unknown)[0]!r}",
                "it has no part in this",
                f"Choose among {', '.join(GUESSES)}",
            )
        )
    for key, name in told.items():
        if name not in names:
            raise InvalidInput(
                explain(
                    f"{source} has no column {name!r} for {key}",
                    f"it has {', '.join(names[:20])}",
                    "Name one of these",
                )
            )
    chosen = dict(told)
    guessed = []
    for key, candidates in GUESSES.items():
        if key in chosen:
            continue
        plain = {name: _plain(name) for name in names if name not in chosen.values()}
        for candidate in candidates:
            found = [name for name, word in plain.items() if word == candidate]
            if len(found) > 1:
                raise InvalidInput(
                    explain(
                        f"Columns {', '.join(found)} of {source} may all be the {key.replace('_', ' ')}",
                        "one run has one",
                        f"Name one: columns={{'{key}': ...}}, or --columns {key}=NAME",
                    )
                )
            if found:
                chosen[key] = found[0]
                break
        hinted = [name for name, word in plain.items() if set(HINTS.get(key, ())) & set(word.split())]
        if key not in chosen and len(hinted) == 1 and "batch" not in _plain(hinted[0]):
            chosen[key] = hinted[0]
        if key in chosen:
            guessed.append(f"{key.replace('_', ' ')} = {chosen[key]}")
    return chosen, [f"Columns were guessed: {', '.join(guessed)}."] if guessed else []


def _plain(name: str) -> str:
    """Return a column's name without its run, case and punctuation; bounds that W&B exports beside it stay apart."""
    name = name.rsplit(" - ", 1)[-1]
    if re.search(r"__(MIN|MAX)$", name):
        return ""
    return " ".join(re.split(r"[\s_/.\-]+", name.strip().lower().lstrip("_")))


def _numbers(cells: list[str], name: str, key: str) -> Floats:
    """Return a column as numbers, NaN where a cell is empty; a loss that is not finite becomes infinity."""
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        word = cell.strip().lower()
        if word in ("", "null", "none"):
            continue
        try:
            value = float(word)
        except ValueError as error:
            raise InvalidInput(
                explain(
                    f"Column {name} holds {cell!r} in row {row + 1}", "it is a curve of numbers", "Name another column"
                )
            ) from error
        found[row] = np.inf if key == "loss" and not np.isfinite(value) else value
    return found


def _loose(cells: list[str]) -> Floats | None:
    """Return a column that nobody asked for, or None where it holds words or nothing."""
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell.strip().lower() in ("", "null", "none"):
            continue
        try:
            found[row] = float(cell)
        except ValueError:
            return None
    return found if not np.isnan(found).all() else None


def _carried(values: Floats) -> Floats:
    """Fill gaps with the value before them, and at the start with the one after."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return values
    source = known[np.clip(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0, len(known) - 1)]
    filled: Floats = values[source]
    return filled
