"""Scalars on their way to another tracker: one small protocol, and what speaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from thalweg.errors import InvalidInput, explain


@runtime_checkable
class Forward(Protocol):
    """Whatever takes scalars."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Take the scalars of one step."""


def forward_to(target: Any) -> Forward:
    """Return a `Forward` for a tracker's own object, which is not imported: what it can do decides.

    Args:
        target: A ``SummaryWriter`` of TensorBoard (it has ``add_scalar(name, value, step)``), a run of W&B or the
            module trackio (they have ``log(dictionary, step=...)``), a function of a dictionary and a step, or a
            `Forward`.

    Raises:
        InvalidInput: It is none of these.

    Example:
        >>> seen = []
        >>> forward_to(lambda scalars, step: seen.append((step, dict(scalars)))).log({"loss": 0.5}, 3)
        >>> seen
        [(3, {'loss': 0.5})]
    """
    if isinstance(target, (_Scalars, _Dictionary, _Function)):
        return target
    if callable(getattr(target, "add_scalar", None)):
        return _Scalars(target)
    if callable(getattr(target, "log", None)):
        return _Dictionary(target)
    if callable(target):
        return _Function(target)
    raise InvalidInput(
        explain(
            f"Scalars cannot be forwarded to a {type(target).__name__}",
            "it has neither add_scalar(name, value, step) nor log(dictionary, step=...)",
            "Pass a SummaryWriter, a W&B or trackio run, or a function of a dictionary and a step",
        )
    )


class _Scalars:
    def __init__(self, target: Any) -> None:
        self._target = target

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._target.add_scalar(name, value, step)


class _Dictionary:
    def __init__(self, target: Any) -> None:
        self._target = target

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._target.log(dict(scalars), step=step)


class _Function:
    def __init__(self, target: Any) -> None:
        self._target = target

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._target(dict(scalars), step)
