"""How the command line talks: plain lines to standard output, notes and errors to standard error."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


class Talk(Console):
    """Leaves a reader that has read enough, as ``head`` does, to `main`, which ends quietly."""

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught."""
        raise BrokenPipeError


def talk(*, stderr: bool = False) -> Console:
    """Return where to write: standard output or standard error as they are now."""
    return Talk(stderr=stderr)


def say(text: str, console: Console | None = None) -> None:
    """Print ``text`` as it is: no markup, and never broken where a path or a command could be copied from."""
    (console or talk()).print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str, kind: str = "error") -> None:
    """Print an error or a note to standard error, in colour on a terminal."""
    console = talk(stderr=True)
    console.print(f"thalweg: {kind}:", style="bold red" if kind == "error" else "yellow", end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_traceback(error: BaseException) -> None:
    """Print the whole traceback of ``error`` to standard error."""
    say("".join(traceback.format_exception(error)), talk(stderr=True))


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show each warning as one line, without the source line that raised it."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        complain(str(message), "note")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
