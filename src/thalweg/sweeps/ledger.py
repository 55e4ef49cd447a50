"""The ledger of a sweep: one SQLite file that holds the plan, and what came of each cell.

Only the driver writes, one driver at a time, which an advisory lock ensures. The journal is SQLite's rollback journal
with full syncs, not the write-ahead log: the latter needs memory that all readers share, so that it fails on network
file systems, where sweeps of many machines live. A commit costs milliseconds, and a cell seconds. Between two commits
the file alone is the whole ledger and may be copied.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from thalweg.errors import InvalidInput, RunFolderError, SchemaError, StorageError, ThalwegError, explain
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.plan import Plan, complete
from thalweg.sweeps.run_cell import Answer, Item, decode

SCHEMA = 1
"""Version of the file. Raise it when a table changes."""
NAME = "ledger.sqlite"
PATIENCE = 60.0
"""Seconds to wait for a reader, which may be on another machine."""

Status = Literal["pending", "done", "failed"]

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, "values" TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, host TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '', trace TEXT NOT NULL DEFAULT ''
);
CREATE TABLE results (
    key TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, dims TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (key, name)
);
"""


@dataclass(frozen=True)
class Record:
    """What is known of a cell.

    Attributes:
        cell: It.
        status: ``"pending"``, ``"done"`` or ``"failed"``.
        attempts: How often it was handed out until it came back; neither what a killed driver had begun is counted,
            nor what an engine tried again by itself.
        seconds: That the last attempt took.
        host: Machine and process of the last attempt.
        error: What it raised, if it failed.
        trace: Where.
    """

    cell: Cell
    status: Status = "pending"
    attempts: int = 0
    seconds: float = 0.0
    host: str = ""
    error: str = ""
    trace: str = field(default="", repr=False)


class Ledger:
    """An open ledger; close it with `close` or ``with``.

    Args:
        path: The file.
        create: Whether it is made where there is none.
        write: Whether it is opened for writing.

    Raises:
        StorageError: It cannot be written.
        RunFolderError: There is none, or it is damaged.
        SchemaError: A later thalweg wrote it.
    """

    def __init__(self, path: Path, *, create: bool = False, write: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise RunFolderError(
                explain(f"There is no ledger at {path}", "a sweep's folder has one", "Name the folder of a sweep")
            )
        with keeping(path):
            self._connection = _connect(path, "rwc" if create else "rw")
            try:
                self._prepare(create, write)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, create: bool, write: bool) -> None:
        run = self._connection.execute
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA synchronous = FULL")
        if write:
            run("PRAGMA journal_mode = DELETE")
        if create and not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            with self._transaction():
                for statement in _TABLES.split(";")[:-1]:
                    run(statement)
                run("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
        elif write:
            with self._transaction():  # an unwritable ledger is to be found before the first cell is computed
                run("UPDATE meta SET value = value WHERE key = 'schema'")
        found = run("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if found is None or not str(found[0]).isdigit():
            raise _damaged(self.path, "it has no schema version")
        if int(found[0]) > SCHEMA:
            raise SchemaError(
                explain(
                    f"The ledger {self.path} has schema {found[0]}",
                    f"this thalweg reads schemas up to {SCHEMA}",
                    "Upgrade thalweg: pip install --upgrade thalweg",
                )
            )

    def meta(self) -> dict[str, str]:
        """Return the facts of the sweep: ``version`` of the code, ``function``."""
        with keeping(self.path):
            return dict(self._connection.execute("SELECT key, value FROM meta WHERE key != 'schema'").fetchall())

    def begin(self, plan: Plan, function: str) -> None:
        """Enter the cells of a plan that are not there yet.

        Raises:
            InvalidInput: The ledger is of another version or function.
        """
        self.check(plan.version, function)
        with keeping(self.path), self._transaction():
            run = self._connection.execute
            for key, value in (("version", plan.version), ("function", function)):
                run("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            last = run("SELECT coalesce(max(position), -1) FROM cells").fetchone()[0]
            known = {key for (key,) in run("SELECT key FROM cells")}
            new = [cell for cell in plan.cells if cell.key not in known]
            self._connection.executemany(
                'INSERT INTO cells (position, key, "values") VALUES (?, ?, ?)',
                [(last + 1 + i, cell.key, json.dumps(dict(cell.values))) for i, cell in enumerate(new)],
            )

    def check(self, version: str, function: str) -> None:
        """Raise where the ledger, if it has been begun, is of another version or function.

        Raises:
            InvalidInput: It is.
        """
        for name, wanted, found in (
            ("function", function, self.meta().get("function")),
            ("version", version, self.meta().get("version")),
        ):
            if found is not None and found != wanted:
                raise InvalidInput(
                    explain(
                        f"The ledger {self.path} is of the {name} {found!r}, not {wanted!r}",
                        "what another code computed must not pass for its result",
                        "Take another folder"
                        + (", or plan.versioned() if you know that they agree" if name == "version" else ""),
                    )
                )

    def plan(self) -> Plan:
        """Return the plan, cells in the order in which they were entered.

        Raises:
            RunFolderError: The ledger has no cells, or one whose key does not fit its values.
        """
        records = self.records()
        if not records:
            raise _damaged(self.path, "it has no cells")
        return complete([record.cell.values for record in records], records[0].cell.version)

    def records(self) -> tuple[Record, ...]:
        """Return what is known of each cell."""
        version = self.meta().get("version", "")
        with keeping(self.path):
            rows = self._connection.execute(
                'SELECT key, "values", status, attempts, seconds, host, error, trace FROM cells ORDER BY position'
            ).fetchall()
        found = []
        for key, values, *rest in rows:
            try:
                cell = Cell(json.loads(values), version)
            except (ValueError, TypeError, AttributeError) as error:
                raise _damaged(self.path, f"a cell is {values!r}") from error
            if cell.key != key:
                raise _damaged(self.path, f"the cell {cell} does not fit its key")
            found.append(Record(cell, *rest))
        return tuple(found)

    def write(self, answers: Iterable[tuple[Cell, Answer, int]]) -> None:
        """Enter cells with what came of them and the attempts that it took: all of it, or nothing.

        A cell that is done stays as it is.

        Raises:
            StorageError: The disk is full, read-only or gone; what was entered before stays.
        """
        with keeping(self.path), self._transaction():
            for cell, answer, attempts in answers:
                status = "failed" if answer.error else "done"
                changed = self._connection.execute(
                    "UPDATE cells SET status = ?, attempts = attempts + ?, seconds = ?, host = ?, error = ?, trace = ? "
                    "WHERE key = ? AND status != 'done'",
                    (status, attempts, answer.seconds, answer.host, answer.error, answer.trace, cell.key),
                ).rowcount
                if not changed:  # it is done: Ctrl-C came between the commit and the note that it was entered
                    continue
                self._connection.executemany(
                    "INSERT INTO results VALUES (?, ?, ?, ?, ?)",
                    [(cell.key, item.name, item.kind, item.dims, item.value) for item in answer.items],
                )

    def items(self, key: str) -> tuple[Item, ...]:
        """Return the results of a cell as they are stored."""
        with keeping(self.path):
            rows = self._connection.execute(
                "SELECT name, kind, dims, value FROM results WHERE key = ? ORDER BY rowid", (key,)
            ).fetchall()
        return tuple(Item(*row) for row in rows)

    def results(self) -> Iterator[tuple[str, str, Sequence[str] | None, Any]]:
        """Yield key, name, dims and value of every result of every cell that is done, in the order of the plan.

        Raises:
            RunFolderError: One cannot be read.
        """
        with keeping(self.path):
            rows = self._connection.execute(
                "SELECT r.key, r.name, r.kind, r.dims, r.value FROM results r JOIN cells c USING (key) "
                "WHERE c.status = 'done' ORDER BY c.position, r.rowid"
            )
            for key, name, kind, dims, value in rows:
                try:
                    yield key, name, (json.loads(dims) if dims else None), decode(kind, value)
                except (ValueError, TypeError, EOFError) as error:
                    raise _damaged(self.path, f"the result {name!r} cannot be read ({error})") from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the ledger, though a driver goes on."""
        with keeping(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a file; one that may not be written is opened to be read, if that is all that is needed."""
    place = path.absolute().as_uri()
    return sqlite3.connect(f"{place}?mode={mode}", uri=True, isolation_level=None, timeout=PATIENCE)


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Turn failures of SQLite and of the file system into errors that say which file, why, and what to do."""
    try:
        yield
    except ThalwegError:
        raise
    except (sqlite3.OperationalError, OSError) as error:
        text = str(error)
        if "no such" in text and not isinstance(error, OSError):
            raise _damaged(path, text) from error
        full = "full" in text or "No space" in text
        raise StorageError(
            explain(
                f"The ledger {path} cannot be used: {text}",
                "the disk is full" if full else "each result goes there before it counts",
                "Free some space" if full else "Choose a folder that this user may write",
            )
            + " What was finished before is kept: call sweep() again to go on."
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        explain(
            f"The ledger {path} is damaged: {why}",
            "it must be the SQLite file that thalweg wrote",
            "Restore it from a copy, or delete it and compute its cells again",
        )
    )
