"""The results of a sweep as a labelled dataset: one dimension per axis, NaN where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.cells import Scalar
from thalweg.sweeps.ledger import Record
from thalweg.sweeps.plan import Plan

LARGEST = 10_000_000
"""Points of the grid of all axes, beyond which a table of it is refused if the plan fills less than a hundredth."""


@dataclass
class _Variable:
    """One result over all cells."""

    dims: Sequence[str] | None
    values: dict[str, np.ndarray] = field(default_factory=dict)


def tabulate(
    plan: Plan,
    records: Iterable[Record],
    results: Iterable[tuple[str, str, Sequence[str] | None, Any]],
    *,
    long: bool = False,
    timings: bool = False,
) -> xr.Dataset:
    """Return the dataset of a plan.

    Args:
        plan: Cells and axes.
        records: What is known of each.
        results: Key of the cell, name, names of the dimensions or None, and value.
        long: One dimension ``cell`` with the axes along it, instead of one dimension per axis.
        timings: Whether ``seconds`` and ``attempts`` go along, which differ from sweep to sweep.

    Raises:
        InvalidInput: Cells disagree about the dimensions of a result, or the grid would be too large.
    """
    axes = plan.axes
    shape = (len(plan),) if long else tuple(len(values) for values in axes.values())
    if not long and math.prod(shape) > max(LARGEST, 100 * len(plan)):
        raise InvalidInput(
            explain(
                f"The grid of {' x '.join(axes)} has {math.prod(shape):,} points, the plan {len(plan):,} cells",
                "almost all of the table would be empty",
                "Ask for table(long=True), which has one row per cell",
            )
        )
    outer = ("cell",) if long else tuple(axes)
    place = {cell.key: i if long else _place(cell.values, axes) for i, cell in enumerate(plan.cells)}
    known = {record.cell.key: record for record in records}
    status = np.full(shape, "absent", dtype="<U7")
    seconds, attempts = np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    for key, at in place.items():
        record = known[key]
        status[at], attempts[at] = record.status, record.attempts
        seconds[at] = record.seconds if record.attempts else np.nan
    found: dict[str, Any] = {"status": (outer, status)}
    for name, variable in _gather(results).items():
        dims, values = _array(name, variable, place, shape)
        found[name] = ((*outer, *dims), values)
    if timings:
        found |= {"seconds": (outer, seconds, {"units": "s"}), "attempts": (outer, attempts)}
    if long:
        columns = {name: [cell.get(name) for cell in plan.cells] for name in axes}
        coords: dict[str, Any] = {name: ("cell", _labels(values)) for name, values in columns.items()}
    else:
        coords = {name: (name, _labels(values)) for name, values in axes.items()}
    return xr.Dataset(found, coords=coords, attrs={"version": plan.version, "plan": plan.key})


def _place(values: Mapping[str, Scalar], axes: Mapping[str, tuple[Scalar, ...]]) -> tuple[int, ...]:
    where = []
    for name, labels in axes.items():
        value = values[name]
        alike = (i for i, one in enumerate(labels) if one == value and isinstance(one, bool) == isinstance(value, bool))
        where.append(next(alike))
    return tuple(where)


def _gather(results: Iterable[tuple[str, str, Sequence[str] | None, Any]]) -> dict[str, _Variable]:
    found: dict[str, _Variable] = {}
    for key, name, dims, value in results:
        if value is None:
            continue
        variable = found.setdefault(name, _Variable(dims))
        array = np.asarray(value)
        first = next(iter(variable.values.values()), array)
        if array.ndim != first.ndim or dims != variable.dims:
            raise InvalidInput(
                explain(
                    f"The result {name!r} has dims {dims or array.ndim} in one cell, {variable.dims or first.ndim} in "
                    "another",
                    "a table has the same dimensions everywhere",
                    "Return the same dimensions for each cell; lengths may differ",
                )
            )
        variable.values[key] = array
    return found


def _array(
    name: str, variable: _Variable, place: Mapping[str, Any], outer: tuple[int, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Put the arrays of all cells into one, padded to the largest."""
    arrays = list(variable.values.values())
    inner = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays)))
    dims = tuple(variable.dims) if variable.dims is not None else tuple(f"{name}_{i}" for i in range(len(inner)))
    whole = len(arrays) == math.prod(outer) and all(array.shape == inner for array in arrays)
    dtype, empty = _dtype(arrays, whole)
    values = np.full(outer + inner, empty, dtype=dtype)
    for key, array in variable.values.items():
        at = place[key] if isinstance(place[key], tuple) else (place[key],)
        values[(*at, *(slice(size) for size in array.shape))] = array
    return dims, values


def _dtype(arrays: Sequence[np.ndarray], whole: bool) -> tuple[Any, Any]:
    """Return a type that holds all arrays, and what stands for a missing value in it."""
    kinds = {array.dtype.kind for array in arrays}
    if kinds == {"U"}:
        return np.result_type(*arrays), ""
    if "U" in kinds or ("b" in kinds and len(kinds) > 1):
        return object, None
    if kinds == {"b"}:
        return (np.bool_, False) if whole else (np.float64, np.nan)
    common = np.result_type(*{array.dtype for array in arrays})
    if common.kind in "iu":
        return (common, 0) if whole else (np.float64, np.nan)
    return common, np.nan


def _labels(values: Sequence[Scalar]) -> np.ndarray:
    """Return the labels of an axis: numbers with NaN for None, text, or objects where they are mixed."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool} and None not in values:
        return np.array(values, dtype=bool)
    if kinds and kinds <= {int, float}:
        dtype = np.float64 if float in kinds or None in values else None
        return np.array([np.nan if value is None else value for value in values], dtype=dtype)
    if kinds == {str} and None not in values:
        return np.array(values, dtype=np.str_)
    labels = np.empty(len(values), dtype=object)
    labels[:] = values
    return labels
