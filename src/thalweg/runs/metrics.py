"""The metrics of a run in one SQLite file: one transaction a step, readable while it is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np

from thalweg.errors import InvalidInput, SchemaError, explain
from thalweg.runs.files import damaged_database, storing

SCHEMA = 1

Value: TypeAlias = "float | np.ndarray"
Place = Literal["scalars", "vectors", "timings"]

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE variables (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, place TEXT NOT NULL, dims TEXT NOT NULL,
    units TEXT NOT NULL, long_name TEXT NOT NULL
);
CREATE TABLE scalars (
    step INTEGER NOT NULL, variable INTEGER NOT NULL, value REAL, PRIMARY KEY (step, variable)
) WITHOUT ROWID;
CREATE TABLE vectors (
    step INTEGER NOT NULL, variable INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (step, variable)
) WITHOUT ROWID;
CREATE TABLE timings (
    step INTEGER NOT NULL, variable INTEGER NOT NULL, value REAL, PRIMARY KEY (step, variable)
) WITHOUT ROWID;
CREATE TABLE events (
    step INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (step, kind)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Variable:
    """What one column of the metrics means.

    Attributes:
        units: Its units; "1" for a pure number, "loss" for the units of the loss.
        long_name: What it is, for an axis or a tooltip.
        dim: Name of its second dimension if each step has a vector, such as ``"eigenvalue"``.
        timing: Whether it is a measured duration, which no two runs share.
    """

    units: str
    long_name: str
    dim: str | None = None
    timing: bool = False

    @property
    def place(self) -> Place:
        """The table that holds it."""
        return "timings" if self.timing else "scalars" if self.dim is None else "vectors"


@dataclass(frozen=True)
class Event:
    """Something that happened at a step, such as divergence."""

    step: int
    kind: str
    text: str


class MetricsWriter:
    """Appends one step at a time; every step is in the file whole or not at all.

    A NaN is stored as SQL NULL and read back as NaN. Vectors are float64, little-endian.

    Args:
        path: The file. It is created where it does not exist.
        variables: Every column that will be written.

    Raises:
        StorageError: The file cannot be written.
        RunFolderError: The file is damaged or of another schema.
    """

    def __init__(self, path: Path, variables: Mapping[str, Variable]) -> None:
        self.path = path
        self._variables = dict(variables)
        with storing(path):
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        with _Transaction(self._connection):
            if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _TABLES.split(";")[:-1]:
                    run(statement)
                run("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
            check_schema(self._connection, self.path)
            self._add(self._variables)

    def announce(self, variables: Mapping[str, Variable]) -> None:
        """Add columns to those that were given at the start."""
        with storing(self.path), _Transaction(self._connection):
            self._add(variables)
        self._variables |= variables

    def _add(self, variables: Mapping[str, Variable]) -> None:
        run = self._connection.execute
        for name, v in variables.items():
            run(
                "INSERT INTO variables (name, place, dims, units, long_name) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET place = excluded.place, dims = excluded.dims, "
                "units = excluded.units, long_name = excluded.long_name",
                (name, v.place, v.dim or "", v.units, v.long_name),
            )
        self._ids: dict[str, int] = dict(run("SELECT name, id FROM variables").fetchall())

    def write(self, step: int, values: Mapping[str, Value], events: Iterable[Event] = ()) -> None:
        """Write everything that is known of ``step`` in one transaction.

        Raises:
            InvalidInput: A name was not announced, or a value has another shape than announced.
            StorageError: The disk is full, read-only or gone; earlier steps are untouched.
        """
        rows: dict[Place, list[tuple[int, int, float | bytes]]] = {}
        for name, value in values.items():
            variable = self._variables.get(name)
            if variable is None:
                raise InvalidInput(
                    explain(
                        f"A measure returned {name!r}",
                        f"it announced {', '.join(self._variables)}",
                        "Name every value in the measure's `variables`",
                    )
                )
            rows.setdefault(variable.place, []).append((step, self._ids[name], _encode(name, variable, value)))
        with storing(self.path), _Transaction(self._connection):
            for table, found in rows.items():
                self._connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", found)
            for event in events:
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?)", (event.step, event.kind, event.text))

    def truncate(self, step: int) -> None:
        """Remove every row of ``step`` and later, in one transaction."""
        with storing(self.path), _Transaction(self._connection):
            for table in ("scalars", "vectors", "timings", "events"):
                self._connection.execute(f"DELETE FROM {table} WHERE step >= ?", (step,))

    def last_step(self) -> int:
        """Return the last step that has a row, or -1."""
        found = self._connection.execute("SELECT max(step) FROM scalars").fetchone()[0]
        return -1 if found is None else int(found)

    def sync(self) -> None:
        """Make what is committed survive a power cut, too; readers are not blocked."""
        with storing(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the file, as one plain file where no reader has it open."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()


class _Transaction:
    """``BEGIN IMMEDIATE`` to ``COMMIT``, or a rollback; leaner than a generator, as it runs at every step."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")


def _encode(name: str, variable: Variable, value: Value) -> float | bytes:
    array = np.asarray(value, dtype="<f8")
    wanted = 0 if variable.dim is None else 1
    if array.ndim != wanted:
        raise InvalidInput(
            explain(
                f"{name!r} has shape {array.shape}",
                "it was announced as " + ("one number a step" if wanted == 0 else f"a vector along {variable.dim!r}"),
                "Return what `variables` announces: a number, or a 1-D array where `dim` is given",
            )
        )
    return float(array) if wanted == 0 else array.tobytes()


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless the file is of a schema that this code reads."""
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if found is None or not str(found[0]).isdigit():
        raise damaged_database(path, "it has no schema version")
    if int(found[0]) > SCHEMA:
        raise SchemaError(
            explain(
                f"The file {path} has schema {found[0]}",
                f"this thalweg reads schemas up to {SCHEMA}",
                "Upgrade thalweg: pip install --upgrade thalweg",
            )
        )
