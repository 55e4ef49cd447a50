"""One cell of a sweep: its values, the hash that names it, and the seed that follows from the hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from thalweg._rng import derive_seed
from thalweg.errors import InvalidInput, explain

if TYPE_CHECKING:
    import torch

Scalar: TypeAlias = "str | int | float | bool | None"

EXACT = 2**53
"""Whole numbers up to here are exact in float64, so that 1 and 1.0 are the same number."""


class Cell:
    """One point of a plan: values of the axes, a key and a seed. ``cell["width"]`` is a value, ``**cell`` are all.

    ``key = sha256(canonical JSON of the values and the version)``, and ``seed`` comes from the same hash without the
    version. Neither depends on the order of the axes, on other cells, or on who computes it and when. In the canonical
    form 1 and 1.0 are the same, and a value of None is the same as an axis that is not there: a plan that gains an axis
    keeps the keys of its old cells.

    Args:
        values: A JSON scalar for each axis: text, a finite number, true, false or None.
        version: Of the code that computes it; another version gives another key and the same seed.

    Attributes:
        values: Them, read-only.
        version: It.
        key: 64 hexadecimal digits.
        seed: In ``[0, 2**63)``.

    Raises:
        InvalidInput: A name or a value is none of these.

    Example:
        >>> cell = Cell({"width": 64, "lr": 0.5})
        >>> cell["width"], cell.key == Cell({"lr": 0.5, "width": 64.0}).key
        (64, True)
        >>> cell.seed == Cell({"width": 64, "lr": 0.5}, version="2").seed
        True
    """

    __slots__ = ("key", "seed", "values", "version")

    def __init__(self, values: Mapping[str, Scalar], version: str = "") -> None:
        plain = {_name(name): scalar(name, value) for name, value in values.items()}
        self.values: Mapping[str, Scalar] = MappingProxyType(plain)
        self.version = version
        identity = canonical(self.values)
        self.key = hashlib.sha256(f"{json.dumps(version)}\n{identity}".encode()).hexdigest()
        self.seed = derive_seed(0, "cell", identity)

    def seed_of(self, *names: str) -> int:
        """Return a seed that depends on some axes only, as for pairs of cells that are to share their start.

        Args:
            names: The axes.

        Returns:
            A seed in ``[0, 2**63)``, the same for all cells with these values.

        Raises:
            InvalidInput: The cell has no such axis.

        Example:
            >>> slow, fast = Cell({"lr": 0.1, "run": 3}), Cell({"lr": 0.2, "run": 3})
            >>> slow.seed_of("run") == fast.seed_of("run"), slow.seed == fast.seed
            (True, False)
        """
        for name in names:
            if name not in self.values:
                known = ", ".join(self.values)
                raise InvalidInput(
                    explain(f"A seed of the axis {name!r} was asked for", f"axes are {known}", "Name one of these")
                )
        return derive_seed(0, "axes", canonical({name: self.values[name] for name in names}))

    def generator(self, *names: str | int) -> torch.Generator:
        """Return the random stream ``names`` of this cell; others are independent of it."""
        from thalweg._rng import generator

        return generator(self.seed, *names)

    def keys(self) -> Iterable[str]:
        """The axes."""
        return self.values.keys()

    def get(self, name: str, default: Scalar = None) -> Scalar:
        """Return the value of an axis, or ``default`` where the cell has no such axis."""
        return self.values.get(name, default)

    def __getitem__(self, name: str) -> Scalar:
        return self.values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[type[Cell], tuple[dict[str, Scalar], str]]:
        return Cell, (dict(self.values), self.version)

    def __repr__(self) -> str:
        return f"Cell({self}, key {self.key[:8]})"

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())


def canonical(values: Mapping[str, Scalar]) -> str:
    """Return the one JSON text of some values: sorted, without spaces, 1.0 as 1, without what is None.

    Example:
        >>> canonical({"width": 64.0, "lr": 0.5, "momentum": None})
        '{"lr":0.5,"width":64}'
    """
    plain = {name: _number(value) for name, value in values.items() if value is not None}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def scalar(name: str, value: object) -> Scalar:
    """Return a value as one of Python's own scalars; NumPy's become those.

    Raises:
        InvalidInput: It is something else, or not finite.
    """
    if not isinstance(value, (str, int, float, bool)) or type(value).__module__ == "numpy":
        value = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InvalidInput(
        explain(
            f"The axis {name} has the value {value!r}",
            "an axis takes JSON's scalars, by which a cell is known again: text, finite numbers, true, false, None",
            "Give what it stands for a name, and look it up in the function",
        )
    )


def _number(value: Scalar) -> Scalar:
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if whole else value  # type: ignore[arg-type]


def _name(name: object) -> str:
    if isinstance(name, str) and name.strip():
        return name
    raise InvalidInput(explain(f"An axis is called {name!r}", "its name is a text that is not empty", "Name it"))
