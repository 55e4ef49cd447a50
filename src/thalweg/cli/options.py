"""What the options of several commands share: how help shows them, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tyro

from thalweg.errors import InvalidInput, explain

FLAG = (tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint=""))
"""An option without a value, and without an opposite."""


def if_given(metavar: str) -> object:
    """How help shows an option whose default is to be without."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Refuse numbers below 1, by the names of their options.

    Raises:
        InvalidInput: A number that is given is below 1.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InvalidInput(explain(f"--{name} is {value}", "it is at least 1", "Correct the number"))


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return which column of a table each curve is, out of ``curve=column``.

    Raises:
        InvalidInput: There is no equals sign.

    Example:
        >>> columns_of(["loss=train/nll", "step=_step"])
        {'loss': 'train/nll', 'step': '_step'}
    """
    columns = {}
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not equals:
            raise InvalidInput(
                explain(f"--columns got {pair!r}", "it takes curve=column", "Write it like loss=train/nll")
            )
        columns[key] = name
    return columns
