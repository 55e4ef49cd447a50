"""What a verdict is made of, out of a run folder, a dataset, or a table from elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain
from thalweg.runs.gradient_probe import BIASED, DETECTABLE, ERROR, NOISE, SCALE_FREE, UNBIASED
from thalweg.stationarity.autocorrelation import Floats
from thalweg.stationarity.windows import SETTINGS, Steps, epoch_starts, filled

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal["loss", "function", "norm", "direction", "weight"]
ORDER: tuple[Kind, ...] = ("loss", "function", "norm", "direction", "weight")
"""What is asked first: flat directions of weight space may wander for ever while all that one sees has settled."""
KINDS: Mapping[str, Kind] = {
    "full_loss": "loss",
    "evaluation_loss": "loss",
    "entropy": "function",
    "function_sketch": "function",
    "weight_norm": "norm",
    "tensor_norms": "norm",
    "direction_sketch": "direction",
    "weight_sketch": "weight",
}
"""Columns that are observables."""
PROMISED, CURVATURE, FRESH = "promised_descent", "curvature_descent", "fresh_change"
_GRADIENT = {
    "unbiased": UNBIASED,
    "biased": BIASED,
    "noise": NOISE,
    "error": ERROR,
    "evaluated": f"{UNBIASED}_eval",
    "scale_free": SCALE_FREE,
    "detectable": DETECTABLE,
}


@dataclass(frozen=True, eq=False)
class Trace:
    """A series with its steps.

    Attributes:
        steps: Increasing, shape ``(n,)``.
        values: Shape ``(n,)`` or ``(n, k)``.
    """

    steps: Steps
    values: Floats

    def inside(self, start: int, stop: int) -> Trace:
        """Return the part from ``start`` to ``stop``, both included."""
        kept = (self.steps >= start) & (self.steps <= stop)
        return Trace(self.steps[kept], self.values[kept])

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, eq=False)
class History:
    """A run as far as a verdict is concerned.

    Attributes:
        loss: As logged; NaN or infinite where it was not finite.
        settings: Learning rate and so on, at the steps of the loss.
        gradient: ``unbiased``, ``biased``, ``noise``, ``error``, ``evaluated``, ``scale_free``, as far as logged.
        observables: By name.
        promised: ``eta <grad L, v>`` of single steps; None: not known.
        curvature: ``(eta^2 / 2) v^T H v`` of the same.
        fresh: Changes of the loss over fresh updates.
        notes: What was guessed.
        epochs: Steps at which epochs begin, where samples are drawn without replacement; None: not known.
    """

    loss: Trace
    settings: Mapping[str, Floats]
    gradient: Mapping[str, Trace]
    observables: Mapping[str, Trace]
    promised: Trace | None = None
    curvature: Trace | None = None
    fresh: Trace | None = None
    notes: tuple[str, ...] = field(default=())
    epochs: Steps | None = None


def history(source: Any, columns: Mapping[str, str] | None = None) -> History:
    """Read what there is.

    Args:
        source: A `Run` or its folder; an ``xarray.Dataset`` with ``step`` and ``loss``; a CSV file; or a mapping of
            arrays of one length, with ``loss``, and NaN where something was not measured.
        columns: For a CSV file: the column of ``loss``, ``step``, ``learning_rate``, where it is not guessed.

    Raises:
        InvalidInput: It is none of these, or has no loss.
        RunFolderError: The folder holds no run.

    Example:
        >>> found = history({"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0], "gradient_unbiased": [1.0, np.nan, 0.5]})
        >>> found.gradient["unbiased"].steps.tolist()
        [0, 2]
    """
    from dataclasses import asdict

    if isinstance(source, (str, Path)) and not Path(source).is_dir():
        return _table(Path(source), columns)
    if columns:
        raise InvalidInput(
            explain("columns were given, and no CSV file", "names are known elsewhere", "Leave columns out")
        )
    if isinstance(source, (str, Path)):
        from thalweg.runs import open_run

        source = open_run(source)
    if hasattr(source, "manifest") and hasattr(source, "data"):
        return of_data(source.data, asdict(source.manifest))
    if hasattr(source, "data_vars"):
        return of_data(source, {})
    if isinstance(source, Mapping) and "loss" in source:
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in source.items()}
        steps = arrays.pop("step", np.arange(float(len(arrays["loss"]))))
        if any(len(x) != len(steps) for x in arrays.values()):
            raise InvalidInput(
                explain(
                    f"Columns have lengths {sorted({len(x) for x in arrays.values()})}",
                    "they share one axis of steps",
                    "Fill up with NaN",
                )
            )
        return _history(steps.astype(np.int64), arrays, {})
    raise InvalidInput(
        explain(
            f"The source is a {type(source).__name__}",
            "a verdict is made of a run, its folder, a dataset with step and loss, a CSV file, or a mapping of arrays",
            "Pass one of these",
        )
    )


def of_data(data: xr.Dataset, manifest: Mapping[str, Any]) -> History:
    """Read a dataset, with what a manifest says of optimizer and batches.

    Args:
        data: As ``open_run(path).data`` gives it, or anything with ``step`` and ``loss``.
        manifest: The manifest as a mapping; empty: not known.
    """
    if "loss" not in data or "step" not in data.coords or not len(data["step"]):
        raise InvalidInput(
            explain("The data holds no loss along step", "there is nothing to judge", "Name them step and loss")
        )
    arrays = {
        str(name): np.asarray(values.to_numpy(), dtype=np.float64)
        for name, values in data.data_vars.items()
        if values.dims[:1] == ("step",) and values.dtype.kind in "fiu"
    }
    return _history(data["step"].to_numpy().astype(np.int64), arrays, manifest)


def _history(
    steps: Steps, arrays: Mapping[str, Floats], manifest: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> History:
    if (np.diff(steps) <= 0).any():
        raise InvalidInput(
            explain("Steps do not increase", "each step has one row, in order", "Sort rows, and join those of one step")
        )
    loss = arrays["loss"]
    columns = _joined(arrays)
    looked = _looked(loss, manifest)
    gradient = {
        key: trace for key, name in _GRADIENT.items() if (trace := _trace(steps, columns.get(name))) is not None
    }
    observables = {name: trace for name in KINDS if (trace := _trace(steps, columns.get(name))) is not None}
    settings = {name: filled(columns[name])[looked] for name in SETTINGS if name in columns}
    promised = _trace(steps, columns.get(PROMISED))
    if promised is None:
        promised = _plain_descent(manifest, steps, columns, gradient)
    return History(
        Trace(steps[looked], loss[looked]),
        settings,
        gradient,
        observables,
        promised,
        _trace(steps, columns.get(CURVATURE)),
        _trace(steps, columns.get(FRESH)),
        notes,
        _epochs(steps, columns, manifest),
    )


def _epochs(steps: Steps, columns: Mapping[str, Floats], manifest: Mapping[str, Any]) -> Steps | None:
    """Return the starts of epochs: counted in the log, or from the numbers of samples and of samples in a step.

    ``thalweg.train`` draws without replacement, from step 0 on; a log from elsewhere that has a column ``samples``
    beside ``batch_size`` says so.
    """
    if "epoch" in columns:
        return epoch_starts(steps, columns["epoch"])
    batch: Any = (manifest.get("loop") or {}).get("batch_size")
    samples: Any = (manifest.get("problem") or {}).get("samples")
    if batch is None and {"samples", "batch_size"} <= columns.keys():
        samples, batch = (np.unique(x[np.isfinite(x)]) for x in (columns["samples"], columns["batch_size"]))
        samples, batch = (x[0] if len(x) == 1 else None for x in (samples, batch))
    if not samples or not batch or not 0 < batch < samples:
        return None
    length = math.ceil(samples / batch)
    return np.arange(0, int(steps[-1]) + 2, length, dtype=np.int64) if length > 1 else None


def _looked(loss: Floats, manifest: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the rows where the loss was looked at: NaN may mean that it was not, or that it was NaN.

    Where most rows have a loss, one without it had NaN; only the last row of a recorded run is left without an update,
    and may lack a loss for that reason.
    """
    measured = ~np.isnan(loss)
    if 2 * int(measured.sum()) < len(loss) and measured.any():
        return measured
    looked = np.ones(len(loss), dtype=bool)
    if manifest and str(manifest.get("state", "")) != "failed" and measured.any():
        looked[-1] = measured[-1]
    return looked


def _plain_descent(
    manifest: Mapping[str, Any], steps: Steps, columns: Mapping[str, Floats], gradient: Mapping[str, Trace]
) -> Trace | None:
    """Plain descent promises ``eta |grad L|^2``; with momentum or preconditioning the gradient alone does not say."""
    loop = manifest.get("loop") or {}
    rule = loop.get("rule") or {}
    if rule.get("type") != "GradientDescent" or rule.get("weight_decay") or "learning_rate" not in columns:
        return None
    rate = filled(columns["learning_rate"])
    if loop.get("batch_size") is None and "gradient_norm" in columns:
        return _trace(steps, rate * columns["gradient_norm"] ** 2)
    found = gradient.get("unbiased")
    return None if found is None else Trace(found.steps, rate[np.isin(steps, found.steps)] * found.values)


def _trace(steps: Steps, values: Floats | None) -> Trace | None:
    """Return the rows where something was measured; None without one."""
    if values is None:
        return None
    known = ~np.isnan(values).reshape(len(values), -1).all(axis=1)
    return Trace(steps[known], values[known]) if known.any() else None


def _joined(arrays: Mapping[str, Floats]) -> dict[str, Floats]:
    """Put numbered columns together: a table has ``weight_sketch_0``, ``weight_sketch_1`` and so on."""
    found = dict(arrays)
    for base in KINDS:
        places = {
            int(match[1]): name for name in arrays if (match := re.fullmatch(rf"{re.escape(base)}[_.](\d+)", name))
        }
        if places and base not in found:
            found[base] = np.stack([found.pop(places[i]) for i in sorted(places)], axis=1)
    return found


def _table(path: Path, columns: Mapping[str, str] | None) -> History:
    from thalweg.runs.logs import read_log

    log = read_log(path, columns)
    arrays = dict(log.others)
    arrays["loss"] = np.where(log.logged, log.loss, np.nan)
    if log.learning_rate is not None:
        arrays["learning_rate"] = log.learning_rate
    return _history(log.steps, arrays, {}, log.notes)
