"""Which tensors are summed: by layer, by role, one by one, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.trajectories.kernels import Ints

Groups: TypeAlias = Literal["layer", "role", "tensor"] | Mapping[str, str] | Callable[[str], str | None] | None


def grouped(source: Any, groups: Groups) -> dict[str, Ints]:
    """Return the places of the tensors of each group, in order of first appearance.

    Args:
        source: Anything with ``names``, and with ``groups(by)`` for layers and roles.
        groups: How to group; None for no groups.

    Raises:
        InvalidInput: A mapping names a tensor that is not there, or nothing is left.

    Example:
        >>> from types import SimpleNamespace
        >>> source = SimpleNamespace(names=("a.weight", "a.bias", "b.weight"))
        >>> {name: at.tolist() for name, at in grouped(source, lambda name: name.split(".")[0]).items()}
        {'a': [0, 1], 'b': [2]}
    """
    if groups is None:
        return {}
    names = tuple(source.names)
    if isinstance(groups, str):
        labels = list(names) if groups == "tensor" else _labels(source, groups)
    elif isinstance(groups, Mapping):
        unknown = [name for name in groups if name not in names]
        if unknown:
            raise InvalidInput(
                explain(f"Group of {unknown[0]!r}", "the trajectory has no such tensor", "Name tensors it has")
            )
        labels = [groups.get(name) for name in names]
    else:
        labels = [groups(name) for name in names]
    found: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            found.setdefault("all of " + label if label == "whole" else label, []).append(place)
    if not found:
        raise InvalidInput(explain("No tensor is in any group", "then there is nothing to sum", "Check the grouping"))
    return {label: np.array(places, dtype=np.int64) for label, places in found.items()}


def _labels(source: Any, by: str) -> list[str | None]:
    if by not in {"layer", "role"} or not callable(getattr(source, "groups", None)):
        raise InvalidInput(
            explain(
                f"Groups by {by!r}",
                "known are layer, role and tensor, the first two where the source knows them",
                "Give one of these, a mapping, or a function of the name",
            )
        )
    labels: dict[str, str | None] = dict.fromkeys(source.names)
    for label, members in source.groups(by).items():
        for name in members:
            labels[source.names[name] if isinstance(name, int | np.integer) else name] = label
    return [labels[name] for name in source.names]
