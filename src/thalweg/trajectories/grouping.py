"""Which tensors are summed: by layer, by role, one by one, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from thalweg.errors import InvalidInput, explain
from thalweg.runs.sources import TensorInfo
from thalweg.trajectories.kernels import Ints
from thalweg.trajectories.roles import heads_of, layer_of, parts_of, roles_of

Groups: TypeAlias = Literal["layer", "role", "tensor"] | Mapping[str, str] | Callable[[str], str | None] | None


def grouped(source: Any, groups: Groups) -> dict[str, Ints]:
    """Return the places of the tensors of each group, in order of first appearance.

    Args:
        source: `Grams`, or anything with ``names``.
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


def fused_parts(trajectory: Any) -> Callable[[Any], dict[str, list[tuple[int, int]]] | None]:
    """Return the ranges of Q, K and V in tensors that hold all three, for `thalweg.trajectories.gram.grams`.

    Heads are those of the model's configuration; a ``query_key_value`` whose heads are not known stays whole.

    Args:
        trajectory: Checkpoints, with the ``config`` of their model where there is one.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from thalweg.runs.sources import TensorInfo
        >>> of = fused_parts(SimpleNamespace(config={"num_attention_heads": 2}))
        >>> of(TensorInfo("layers.0.attention.query_key_value.weight", (6, 2), torch.float16))
        {'Q': [(0, 2), (6, 8)], 'K': [(2, 4), (8, 10)], 'V': [(4, 6), (10, 12)]}
    """
    heads, fewer = heads_of(getattr(trajectory, "config", {}))

    def of(info: Any) -> dict[str, list[tuple[int, int]]] | None:
        parts = parts_of(info, heads, key_value_heads=fewer)
        if len(parts) == 1:
            return None
        found: dict[str, list[tuple[int, int]]] = {}
        for part in parts:
            count, inner = part.view[part.axis], prod(part.view[part.axis + 1 :])
            first, last, _ = part.index.indices(count)
            found[str(part.role)] = [
                ((outer * count + first) * inner, (outer * count + last) * inner)
                for outer in range(prod(part.view[: part.axis]))
            ]
        return found

    return of


def _labels(source: Any, by: str) -> list[str | None]:
    if by not in {"layer", "role"}:
        raise InvalidInput(
            explain(
                f"Groups by {by!r}",
                "known are layer, role and tensor",
                "Give one of these, a mapping, or a function of the name",
            )
        )
    names = tuple(source.names)
    tensors, parts = getattr(source, "tensors", names), getattr(source, "parts", ("",) * len(names))
    if by == "layer":
        return [layer_of(name) for name in tensors]
    shapes = getattr(source, "shapes", ((),) * len(names))
    roles = roles_of([TensorInfo(name, tuple(shape), torch.float32) for name, shape in zip(tensors, shapes)])
    return [str(part or roles[name]) for name, part in zip(tensors, parts)]
