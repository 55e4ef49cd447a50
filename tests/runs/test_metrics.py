import sqlite3
from contextlib import closing

import numpy as np
import pytest

from thalweg.errors import RunFolderError, StorageError
from thalweg.runs.metrics import Event, MetricsWriter, Variable
from thalweg.runs.tables import last_step, read_dataset, read_events

VARIABLES = {
    "loss": Variable("loss", "training loss"),
    "values": Variable("1", "some values", "rank"),
    "others": Variable("1", "others along the same", "rank"),
    "seconds": Variable("s", "time", timing=True),
}


@pytest.fixture
def writer(tmp_path):
    writer = MetricsWriter(tmp_path / "m.sqlite", VARIABLES)
    yield writer
    writer.close()


def test_what_is_written_is_read(writer):
    writer.write(0, {"loss": 1.5, "seconds": 0.1})
    writer.write(2, {"loss": float("nan"), "values": np.array([3.0, 2.0])}, [Event(2, "odd", "happened")])
    writer.write(5, {"loss": 0.5, "values": np.array([]), "others": np.array([7.0, 8.0, 9.0])})
    data = read_dataset(writer.path)
    assert data.step.values.tolist() == [0, 2, 5]
    np.testing.assert_array_equal(data["loss"], [1.5, np.nan, 0.5])
    np.testing.assert_array_equal(data["seconds"], [0.1, np.nan, np.nan])
    nan = np.nan
    np.testing.assert_array_equal(data["values"], [[nan] * 3, [3.0, 2.0, nan], [nan] * 3])
    np.testing.assert_array_equal(data["others"], [[nan] * 3, [nan] * 3, [7.0, 8.0, 9.0]])
    assert data["values"].attrs == {"units": "1", "long_name": "some values"}
    assert read_events(writer.path) == [Event(2, "odd", "happened")]
    assert last_step(writer.path) == 5


def test_an_empty_file_is_an_empty_dataset(writer):
    data = read_dataset(writer.path)
    assert dict(data.sizes) == {"step": 0, "rank": 0}
    assert last_step(writer.path) == -1


def test_a_step_is_there_whole_or_not_at_all(writer):
    """The second row of the step clashes, so that the first is not kept either."""
    writer.write(0, {"loss": 1.0})
    with pytest.raises(RunFolderError, match="UNIQUE"):
        writer.write(1, {"loss": 2.0}, [Event(1, "a", "x"), Event(1, "a", "y")])
    assert read_dataset(writer.path).step.values.tolist() == [0]
    writer.write(1, {"loss": 3.0})
    assert read_dataset(writer.path)["loss"].values.tolist() == [1.0, 3.0]


def test_truncation_removes_every_table_from_a_step_on(writer):
    for step in range(4):
        row = {"loss": 1.0, "values": np.ones(2), "seconds": 1.0}
        writer.write(step, row, [Event(step, "each", "time")])
    writer.truncate(2)
    assert read_dataset(writer.path).step.values.tolist() == [0, 1]
    assert [event.step for event in read_events(writer.path)] == [0, 1]
    assert writer.last_step() == 1
    with closing(sqlite3.connect(writer.path)) as connection:
        for table in ("scalars", "vectors", "timings", "events"):
            assert connection.execute(f"SELECT max(step) FROM {table}").fetchone() == (1,)


def test_a_reader_sees_one_moment_and_does_not_block(writer):
    writer.write(0, {"loss": 1.0})
    with closing(sqlite3.connect(writer.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM scalars").fetchone() == (1,)
        for step in range(1, 50):
            writer.write(step, {"loss": 1.0})
        writer.sync()
        writer.truncate(40)
        assert reader.execute("SELECT count(*) FROM scalars").fetchone() == (1,), "its moment stays"
        assert read_dataset(writer.path).sizes["step"] == 40


def test_a_second_writer_of_the_database_makes_it_wait_and_then_say_so(writer):
    writer._connection.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(writer.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"locked.*Another process keeps the database locked"):
            writer.write(0, {"loss": 1.0})
        other.execute("ROLLBACK")
    writer.write(0, {"loss": 1.0})


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO vectors VALUES (0, 2, x'0102')",
        "INSERT INTO vectors VALUES (0, 2, 'text')",
        "UPDATE scalars SET value = 'text'",
        "UPDATE variables SET dims = NULL",
        "UPDATE variables SET place = 'nowhere'",
        "DELETE FROM meta",
        "INSERT INTO timings VALUES (77, 4, 1.0)",
    ],
)
def test_contents_of_a_stranger_are_damage_and_not_a_crash(statement, writer):
    writer.write(0, {"loss": 1.0})
    writer.close()
    with closing(sqlite3.connect(writer.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(statement)
        except sqlite3.IntegrityError:
            return  # the file itself does not let it in
    with pytest.raises(RunFolderError, match="damaged"):
        read_dataset(writer.path)


def test_ten_thousand_steps_are_read_at_once(tmp_path, monkeypatch):
    """One query a table, however many rows there are: about 0.1 s; row by row it would take minutes."""
    asked, connect = [], sqlite3.connect

    def traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(asked.append)
        return connection

    names = {f"v{number}": Variable("1", "v") for number in range(10)} | {"e": Variable("1", "e", "eigenvalue")}
    writer = MetricsWriter(tmp_path / "m.sqlite", names)
    writer._connection.execute("BEGIN")
    scalars = [(step, 1 + number, float(step)) for step in range(10_000) for number in range(10)]
    writer._connection.executemany("INSERT INTO scalars VALUES (?, ?, ?)", scalars)
    blobs = [(step, 11, np.full(4, step, dtype="<f8").tobytes()) for step in range(10_000)]
    writer._connection.executemany("INSERT INTO vectors VALUES (?, ?, ?)", blobs)
    writer._connection.execute("COMMIT")
    monkeypatch.setattr(sqlite3, "connect", traced)
    data = read_dataset(tmp_path / "m.sqlite")
    monkeypatch.undo()
    assert 2 <= len(asked) < 30, asked
    assert data.sizes == {"step": 10_000, "eigenvalue": 4}
    assert (data["v9"].values == data.step.values).all()
    assert (data["e"].values[:, 3] == data.step.values).all()
    writer.close()
