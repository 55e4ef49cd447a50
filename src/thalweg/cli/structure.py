"""Between nested dataclasses and plain tables: what a TOML file or a manifest holds."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from thalweg.errors import InvalidInput, explain

T = TypeVar("T")


def to_plain(thing: Any) -> Any:
    """Turn a dataclass into nested dicts of JSON's own types; tuples become lists, paths strings.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     x: tuple[float, ...] = (1.0,)
        >>> to_plain(Point())
        {'x': [1.0]}
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: to_plain(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    if isinstance(thing, (tuple, list)):
        return [to_plain(item) for item in thing]
    if isinstance(thing, Mapping):
        return {str(key): to_plain(value) for key, value in thing.items()}
    return str(thing) if isinstance(thing, Path) else thing


def overlay(base: T, table: Mapping[str, Any], source: str) -> T:
    """Return ``base`` with the fields that ``table`` names replaced, checked against their annotations.

    Args:
        base: A (nested) dataclass with the values that hold where the table is silent.
        table: Nested mappings, as `tomllib` and `json` give them.
        source: What to call the table in a message, for example the file's path.

    Returns:
        A new instance of the class of ``base``.

    Raises:
        InvalidInput: A key is unknown (near matches are named) or a value has the wrong type.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Rule:
        ...     name: str = "gd"
        ...     lr: float = 0.1
        >>> overlay(Rule(), {"lr": 1}, "mine.toml")
        Rule(name='gd', lr=1.0)
    """
    known = leaves(base)
    tables = {path.rpartition(".")[0] for path in known} - {""}
    return _overlay(base, table, source, "", [*known, *sorted(tables)])


def leaves(thing: Any, where: str = "") -> list[str]:
    """Return the dotted path of every setting in a nested dataclass."""
    paths = []
    for field in dataclasses.fields(thing):
        place, value = f"{where}{field.name}", getattr(thing, field.name)
        paths += leaves(value, f"{place}.") if dataclasses.is_dataclass(value) else [place]
    return paths


def _overlay(base: T, table: Mapping[str, Any], source: str, where: str, known: list[str]) -> T:
    hints = get_type_hints(type(base))
    names = [field.name for field in dataclasses.fields(base)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{where}{key}"
        if key not in names:
            raise _unknown(place, names, known, source)
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise _wrong(place, value, "a table of settings", source)
            changes[key] = _overlay(current, value, source, f"{place}.", known)
        else:
            changes[key] = _coerce(value, hints[key], place, source)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, place: str, source: str) -> Any:
    """Return ``value`` as ``hint`` wants it; whole numbers may stand for floats, nothing else is guessed."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _coerce(value, option, place, source)
            except InvalidInput:
                continue
    elif origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        if origin is list or arguments[-1:] == (Ellipsis,):
            return origin(_coerce(item, arguments[0], f"{place}[{i}]", source) for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(_coerce(item, kind, place, source) for item, kind in zip(value, arguments))
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong(place, value, describe(hint), source)


def describe(hint: Any) -> str:
    """Say in words what an annotation accepts.

    Example:
        >>> describe(float | None), describe(Literal["gd", "adam"])
        ('a number or nothing', "'gd' or 'adam'")
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin in (tuple, list):
        return f"a list (each {describe(arguments[0])})"
    words = {
        float: "a number",
        int: "a whole number",
        str: "a string",
        bool: "true or false",
        type(None): "nothing",
        Path: "a path",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def near(place: str, known: list[str]) -> list[str]:
    """Return up to three paths of ``known`` that ``place`` may have meant, best first.

    Only the last part of a path counts, and the same table breaks a tie: a slip of the fingers and a setting
    in the wrong table are the commonest mistakes.

    Example:
        >>> near("lr", ["steps", "rule.lr", "rule.name"])
        ['rule.lr']
    """
    table, _, key = place.rpartition(".")
    score = {}
    for path in known:
        home, _, name = path.rpartition(".")
        score[path] = difflib.SequenceMatcher(None, key, name).ratio(), home == table
    close = [path for path in known if score[path][0] >= 0.65]
    return sorted(close, key=lambda path: score[path], reverse=True)[:3]


def _unknown(place: str, siblings: list[str], known: list[str], source: str) -> InvalidInput:
    matches = near(place, known)
    remedy = f"Perhaps {' or '.join(matches)} was meant" if matches else f"Choose among: {', '.join(siblings)}"
    return InvalidInput(explain(f"{source} sets '{place}'", "there is no such setting", remedy))


def _wrong(place: str, value: Any, wanted: str, source: str) -> InvalidInput:
    remedy = "Correct the value, or remove the line"
    return InvalidInput(explain(f"{source} sets {place} to {value!r}", f"it takes {wanted}", remedy))
