"""What a sweep is to compute: its cells, once each, in order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thalweg import __version__
from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.cells import Cell, Scalar, scalar

RESERVED = ("status", "seconds", "attempts", "cell")
"""Names in a table that no axis and no result may have."""


@dataclass(frozen=True, repr=False)
class Plan:
    """Cells, each once. Made by `plan`; ``+`` joins two.

    Attributes:
        cells: In the order in which they were named.
    """

    cells: tuple[Cell, ...]

    @property
    def version(self) -> str:
        """Of the code that computes the cells."""
        return self.cells[0].version

    @cached_property
    def axes(self) -> dict[str, tuple[Scalar, ...]]:
        """Values of each axis, in order of their appearance; None stands for cells that do not have the axis."""
        found: dict[str, dict[tuple[bool, Scalar], Scalar]] = {name: {} for name in self.cells[0].values}
        for cell in self.cells:
            for name, value in cell.values.items():
                found[name].setdefault((isinstance(value, bool), value), value)  # True == 1, and they are not the same
        return {name: tuple(values.values()) for name, values in found.items()}

    @cached_property
    def key(self) -> str:
        """Digest of the cells, whatever their order; another version has another one."""
        return hashlib.sha256("\n".join(sorted(cell.key for cell in self.cells)).encode()).hexdigest()

    def where(self, wanted: Callable[[Cell], bool]) -> Plan:
        """Return the plan of the cells for which ``wanted`` is true.

        Raises:
            InvalidInput: There is none.

        Example:
            >>> plan(depth=[4, 8], width=[64, 512]).where(lambda cell: cell["depth"] * cell["width"] < 4000)
            Plan of 3 cells: 2 depth x 2 width, 1 not in the plan
        """
        return complete([cell.values for cell in self.cells if wanted(cell)], self.version)

    def versioned(self, version: str) -> Plan:
        """Return the plan for another version of the code: nothing that an earlier one computed is taken for it.

        Seeds stay what they are.

        Args:
            version: Any text. The default is the version of thalweg; raise your own when your function changes.
        """
        return complete([cell.values for cell in self.cells], version)

    def __add__(self, other: Plan) -> Plan:
        if other.version != self.version:
            raise InvalidInput(
                explain(
                    f"A plan of version {self.version!r} was added to one of {other.version!r}",
                    "results of two versions do not belong in one table",
                    "Call versioned() on one of them",
                )
            )
        cells = dict.fromkeys([*self.cells, *other.cells])
        return complete([cell.values for cell in cells], self.version)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        axes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        size = 1
        for values in self.axes.values():
            size *= len(values)
        absent = f", {size - len(self)} not in the plan" if size > len(self) else ""
        return f"Plan of {len(self)} cell{'s' if len(self) > 1 else ''}: {axes}{absent}"


def plan(cells: Iterable[Mapping[str, Any]] | None = None, /, **axes: Sequence[Any]) -> Plan:
    """Return the plan of a product of axes, of a list of cells, or of each cell of a list with a product.

    Args:
        cells: Values of each cell by axis; those of a cell that lacks an axis of another one are None there.
        axes: Values of each axis: text, numbers, true, false or None. An axis with a fractional number has
            only fractional ones, so that a function gets 1.0, not 1, among 0.5 and 2.5.

    Raises:
        InvalidInput: There is no cell, one comes twice, or a value is not a scalar.

    Example:
        >>> plan(depth=[4, 8], width=[64, 128, 256], seed=range(5))
        Plan of 30 cells: 2 depth x 3 width x 5 seed
        >>> rules = [{"rule": "sgd", "momentum": 0.9}, {"rule": "adam"}]
        >>> found = plan(rules, lr=[0.1, 1])
        >>> found
        Plan of 4 cells: 2 rule x 2 momentum x 2 lr, 4 not in the plan
        >>> print(found.cells[-1])
        rule='adam', momentum=None, lr=1.0
    """
    for name, values in axes.items():
        if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
            raise InvalidInput(
                explain(f"The axis {name} is {values!r}", "an axis is a sequence of values", f"Pass {name}=[...]")
            )
    listed = [{}] if cells is None else list(cells)
    for given in listed:
        if not isinstance(given, Mapping):
            raise InvalidInput(
                explain(f"A cell is {given!r}", "a cell maps axes to values", 'Pass {"width": 64}, for example')
            )
        both = sorted(set(given) & set(axes))
        if both:
            raise InvalidInput(
                explain(
                    f"The axis {both[0]} is given twice",
                    "cells of the list have it, and it is an axis of its own",
                    "Give it in one place",
                )
            )
    held = {name: tuple(values) for name, values in axes.items()}  # a generator would be empty for the second cell
    product = [dict(zip(held, values)) for values in itertools.product(*held.values())]
    found = [{**given, **values} for given in listed for values in product]
    if cells is None and not axes:
        found = []
    return complete(found, f"thalweg-{__version__}")


def complete(rows: Sequence[Mapping[str, Any]], version: str) -> Plan:
    """Return a plan of rows: completed to all axes, with one type of numbers per axis.

    Raises:
        InvalidInput: There is no row, or one comes twice.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows or not names:
        raise InvalidInput(explain("The plan has no cell", "there is nothing to compute", "Give every axis a value"))
    for name in names:
        if name in RESERVED:
            raise InvalidInput(
                explain(f"An axis is called {name}", f"tables have {', '.join(RESERVED)} of their own", "Rename it")
            )
    plain = [{name: scalar(name, row.get(name)) for name in names} for row in rows]
    fractional = {name for name in names if _fractional([row[name] for row in plain])}
    cells: dict[Cell, None] = {}
    for row in plain:
        numbers = {name: float(value) for name, value in row.items() if name in fractional and value is not None}
        cell = Cell({**row, **numbers}, version)
        if cell in cells:
            raise InvalidInput(
                explain(f"The cell {cell} is there twice", "each is computed once", "Give each value of an axis once")
            )
        cells[cell] = None
    return Plan(tuple(cells))


def _fractional(values: Sequence[Scalar]) -> bool:
    """Whether an axis is one of numbers, some of them written as fractional ones."""
    numbers = [value for value in values if value is not None]
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers)
    return plain and any(isinstance(value, float) for value in numbers)
