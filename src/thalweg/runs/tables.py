"""Reading the metrics of a run, also while it is being written, into labelled arrays."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from thalweg.errors import RunFolderError
from thalweg.runs.files import damaged_database
from thalweg.runs.metrics import Event, check_schema


def read_dataset(path: Path) -> xr.Dataset:
    """Read all metrics in one consistent snapshot.

    Args:
        path: ``metrics.sqlite``.

    Returns:
        A dataset with the coordinate ``step``. Each variable has the dimensions ``(step,)`` or
        ``(step, dim)``, the attributes ``units`` and ``long_name``, and NaN where it was not measured; vectors
        of different lengths are padded with NaN to the longest.

    Raises:
        RunFolderError: The file is missing or damaged.
        SchemaError: A newer thalweg wrote it.
    """
    with _snapshot(path) as connection:
        return _assemble(connection)


def _assemble(connection: sqlite3.Connection) -> xr.Dataset:
    variables = connection.execute("SELECT id, name, place, dims, units, long_name FROM variables").fetchall()
    numbers = {table: _triples(connection, table) for table in ("scalars", "timings")}
    blobs: dict[int, list[tuple[int, bytes]]] = {}
    for step, variable, value in connection.execute("SELECT step, variable, value FROM vectors ORDER BY step"):
        blobs.setdefault(variable, []).append((step, value))
    vector_steps = [step for rows in blobs.values() for step, _ in rows]
    steps = np.unique(np.concatenate([numbers["scalars"][0], np.array(vector_steps, dtype=np.int64)]))
    lengths = _longest(variables, blobs)
    arrays: dict[str, xr.DataArray] = {}
    for number, name, place, dim, units, long_name in variables:
        attributes = {"units": str(units), "long_name": str(long_name)}
        if place == "vectors":
            padded = np.full((len(steps), lengths[dim]), np.nan)
            for step, blob in blobs.get(number, []):
                padded[np.searchsorted(steps, step), : len(blob) // 8] = np.frombuffer(blob, dtype="<f8")
            arrays[name] = xr.DataArray(padded, dims=("step", dim), attrs=attributes)
        else:
            column = np.full(len(steps), np.nan)
            at, which, value = numbers[place]
            mine = which == number
            column[np.searchsorted(steps, at[mine])] = value[mine]
            arrays[name] = xr.DataArray(column, dims=("step",), attrs=attributes)
    coordinate = xr.DataArray(steps, dims=("step",), attrs={"units": "1", "long_name": "updates done"})
    return xr.Dataset(arrays, coords={"step": coordinate})


def read_events(path: Path) -> list[Event]:
    """Read the events of a run, in the order of their steps."""
    with _snapshot(path) as connection:
        return [Event(*row) for row in connection.execute("SELECT step, kind, text FROM events ORDER BY step, kind")]


def last_step(path: Path) -> int:
    """Return the last step that has a row, or -1; one look-up, however long the run."""
    with _snapshot(path) as connection:
        found = connection.execute("SELECT max(step) FROM scalars").fetchone()[0]
        return -1 if found is None else int(found)


def _triples(connection: sqlite3.Connection, table: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = connection.execute(f"SELECT step, variable, value FROM {table} ORDER BY step").fetchall()
    numbers = np.array(rows, dtype=np.float64).reshape(-1, 3)  # NULL becomes NaN
    return numbers[:, 0].astype(np.int64), numbers[:, 1].astype(np.int64), numbers[:, 2]


def _longest(
    variables: list[tuple[int, str, str, str, str, str]], blobs: dict[int, list[tuple[int, bytes]]]
) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for number, _, place, dim, *_ in variables:
        if place == "vectors":
            sizes = [len(blob) for _, blob in blobs.get(number, [])]
            if not dim or any(size % 8 for size in sizes):
                raise ValueError("a vector is no array of float64")
            lengths[dim] = max([lengths.get(dim, 0), *(size // 8 for size in sizes)])
    return lengths


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open ``path`` for reading inside one transaction, so that all tables are of the same moment."""
    if not path.is_file():
        raise damaged_database(path, "the file is missing")
    with ExitStack() as stack:
        try:
            try:
                connection = stack.enter_context(_open(path))
            except sqlite3.OperationalError as error:
                if "no such" in str(error):
                    raise
                connection = stack.enter_context(_open(_copied(path, stack)))
            yield connection
        except RunFolderError:
            raise
        except (sqlite3.DatabaseError, LookupError, ValueError, TypeError, OSError) as error:
            raise damaged_database(path, str(error)) from error


def _copied(path: Path, stack: ExitStack) -> Path:
    """Copy the database elsewhere until ``stack`` closes.

    SQLite needs a file beside a WAL database even to read it. On a full or read-only disk it cannot have one;
    there is no live writer either, so that a copy shows the same rows.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thalweg-")))
    for source in (path, path.with_name(path.name + "-wal")):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
    return folder / path.name


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN")
        check_schema(connection, path)
        yield connection
