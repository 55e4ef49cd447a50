import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from thalweg.cli.structure import describe, leaves, near, overlay, to_plain
from thalweg.errors import InvalidInput


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    name: Literal["gd", "adam"] = "gd"
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    eps: float | None = None


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    report: bool = True
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_overlay_replaces_only_what_the_table_names():
    new = overlay(Outer(), {"steps": 7, "inner": {"lr": 2, "widths": [5]}}, "f")
    assert new == Outer(steps=7, inner=Inner(lr=2.0, widths=(5,)))
    assert isinstance(new.inner.lr, float)


def test_round_trip_through_plain_tables():
    thing = Outer(9, False, Path("a/b"), Inner(0.5, "adam", (), (3, 4.5), 1e-8))
    assert overlay(Outer(), to_plain(thing), "f") == thing


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"steps": 1.5}, ["steps to 1.5", "a whole number"]),
        ({"steps": True}, ["steps to True", "a whole number"]),
        ({"report": 1}, ["report to 1", "true or false"]),
        ({"path": 3}, ["path to 3", "a path or nothing"]),
        ({"inner": 3}, ["inner to 3", "a table"]),
        ({"inner": {"lr": "big"}}, ["inner.lr to 'big'", "a number"]),
        ({"inner": {"lr": True}}, ["inner.lr to True", "a number"]),
        ({"inner": {"name": "sgd"}}, ["inner.name to 'sgd'", "'gd' or 'adam'"]),
        ({"inner": {"widths": [1, "x"]}}, ["inner.widths[1] to 'x'", "a whole number"]),
        ({"inner": {"pair": [1]}}, ["inner.pair to [1]", "a list"]),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(table, words):
    with pytest.raises(InvalidInput) as caught:
        overlay(Outer(), table, "mine.toml")
    for word in ["mine.toml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("table", "meant"),
    [
        ({"stpes": 1}, "Perhaps steps was meant"),
        ({"lr": 1}, "Perhaps inner.lr was meant"),
        ({"inenr": {}}, "Perhaps inner was meant"),
        ({"inner": {"widht": 1}}, "Perhaps inner.widths was meant"),
        ({"inner": {"zzz": 1}}, "Choose among: lr, name, widths, pair, eps"),
    ],
)
def test_unknown_keys_name_near_matches(table, meant):
    with pytest.raises(InvalidInput, match=meant):
        overlay(Outer(), table, "mine.toml")


def test_leaves_are_the_dotted_paths_of_all_settings():
    assert leaves(Outer()) == [
        "steps", "report", "path", "inner.lr", "inner.name", "inner.widths", "inner.pair", "inner.eps",
    ]  # fmt: skip


def test_near_gives_at_most_three_and_nothing_for_strangers():
    assert near("ab", ["abc", "abd", "abe", "abf"]) == ["abc", "abd", "abe"]
    assert near("qqqq", ["steps", "inner.lr"]) == []


def test_describe_covers_the_annotations_in_use():
    hints = {f.name: f.type for f in dataclasses.fields(Inner)}
    assert hints["lr"] in (float, "float")
    assert describe(tuple[int, ...]) == "a list (each a whole number)"
    assert describe(Path | None) == "a path or nothing"
