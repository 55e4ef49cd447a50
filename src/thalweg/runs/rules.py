"""The rule of a run, built again from what its manifest says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from thalweg import rules
from thalweg.rules import Rule


def recorded_rule(record: Mapping[str, Any]) -> Rule | None:
    """Return the rule that ``record``, the manifest's ``loop["rule"]``, describes; None for one that is not ours.

    Example:
        >>> recorded_rule({"type": "HeavyBall", "lr": {"type": "Constant", "lr": 0.1}, "momentum": 0.5}).describe()
        'heavy ball, learning rate Constant(lr=0.1), momentum 0.5'
    """
    found = _build(record)
    return found if isinstance(found, Rule) else None


def _build(record: Any) -> Any:
    if not isinstance(record, Mapping):
        return record
    kind = getattr(rules, str(record.get("type")), None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    settings = {name: _build(value) for name, value in record.items() if name in known}
    if any(value is None for value in settings.values()):
        return None
    try:
        return kind(**settings)
    except (TypeError, ValueError):
        return None
