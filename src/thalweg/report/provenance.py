"""Where a run comes from: its manifest as a table, with every string escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from thalweg.report.setting import mapping

if TYPE_CHECKING:
    from thalweg.runs.metrics import Event

GROUPS = (
    ("Problem", "problem"),
    ("Training", "loop"),
    ("Configuration", "config"),
    ("Seeds", "seeds"),
    ("Fingerprints", "fingerprints"),
    ("Versions", "packages"),
    ("Machine", "machine"),
)
MAX_EVENTS = 20
MAX_TEXT = 2000


def provenance(manifest: Mapping[str, Any], state: str, last: int, events: Iterable[Event] = ()) -> str:
    """Return the table as HTML.

    Args:
        manifest: The run's manifest as a mapping.
        state: What the run's state is now.
        last: Its last recorded step.
        events: What happened on the way.
    """
    happened = list(events)
    general: list[tuple[str, object]] = [
        ("state", f"{state}, at step {last:,} of {manifest.get('steps', last)}"),
        ("created", manifest.get("created", "")),
        ("update rule", manifest.get("rule", "")),
        ("schema of the run folder", manifest.get("schema", "")),
    ]
    resumed = manifest.get("resumed")
    for entry in map(mapping, resumed if isinstance(resumed, list) else []):
        general.append(("continued", ", ".join(f"{key} {value}" for key, value in entry.items())))
    parts = [_group("Run", general)]
    parts += [_group(title, list(leaves(manifest.get(key)))) for title, key in GROUPS]
    shown: list[tuple[str, object]] = [(f"step {event.step:,}", event.text) for event in happened[:MAX_EVENTS]]
    if len(happened) > MAX_EVENTS:
        shown.append(("more", f"{len(happened) - MAX_EVENTS:,} further events are in metrics.sqlite"))
    parts.append(_group("Events", shown))
    return f"<table>{''.join(parts)}</table>"


def leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, object]]:
    """Flatten nested mappings and lists of them into dotted names and values, without those that are not set."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(child, (Mapping, list)) for child in value):
        for position, child in enumerate(value, 1):
            yield from leaves(child, f"{prefix} {position}")
    elif value is not None and value != "" and value != []:
        yield prefix or "value", ", ".join(map(str, value)) if isinstance(value, list) else value


def _group(title: str, rows: list[tuple[str, object]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in rows
        if value not in ("", None)
    )
    head = f'<tr><th scope="rowgroup" colspan="2">{html.escape(title)}</th></tr>'
    return f"<tbody>{head}{cells}</tbody>" if cells else ""


def _text(value: object) -> str:
    return html.escape(str(value)[:MAX_TEXT])
