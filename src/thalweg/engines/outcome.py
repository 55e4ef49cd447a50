"""What a call on another process gave: a value, or the exception it raised, with the place where it did."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from thalweg.errors import DistributedError, explain


class WorkerLost(DistributedError):
    """A process that worked on a task ended without an answer, as often as the engine tries."""


class TimedOut(WorkerLost):
    """A task took longer than it may, and its process was ended, as often as the engine tries."""


@dataclass(frozen=True)
class Outcome:
    """The answer of a worker.

    Attributes:
        value: What the function returned.
        error: What it raised instead.
        trace: Where, as text: frames do not travel.
    """

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def attempt(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Outcome:
    """Call ``function`` and return what came of it, an exception included.

    Example:
        >>> attempt(divmod, (7, 3), {}).value, attempt(divmod, (7, 0), {}).error
        ((2, 1), ZeroDivisionError('integer division or modulo by zero'))
    """
    try:
        return Outcome(function(*args, **kwargs))
    except Exception as error:
        return failed(error)


def failed(error: BaseException) -> Outcome:
    """Return the outcome of a call that raised ``error``, in a form that can be sent."""
    trace = f"raised on {socket.gethostname()}, process {os.getpid()}:\n" + "".join(traceback.format_exception(error))
    bare = error.with_traceback(None)
    bare.__cause__ = bare.__context__ = None
    try:
        pickle.loads(pickle.dumps(bare))
    except Exception:  # an exception class that cannot be rebuilt from its arguments
        bare = DistributedError(
            explain(
                f"A task failed with {type(error).__name__}: {error}",
                "that exception cannot be sent from one process to another",
                "See the trace of the worker below",
            )
        )
    return Outcome(error=bare, trace=trace)


def deliver(future: Future[Any], outcome: Outcome) -> None:
    """Hand an outcome to whoever waits for ``future``."""
    if outcome.error is None:
        future.set_result(outcome.value)
        return
    if outcome.trace:
        outcome.error.add_note(outcome.trace)
    future.set_exception(outcome.error)


def lost(what: str, attempts: int, why: str) -> WorkerLost:
    """Return the error for a task whose workers all ended."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return WorkerLost(
        explain(
            f"The worker of {what} was lost {times}: {why}",
            "a task that takes its process down each time is not tried for ever",
            "Look for a lack of memory or a crash of native code in it; allow more with retries=",
        )
    )


def late(what: str, attempts: int, limit: float) -> TimedOut:
    """Return the error for a task that took longer than ``limit`` seconds in the last of its attempts."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return TimedOut(
        explain(
            f"{what} took longer than {limit:g} seconds",
            f"its worker was ended, and the task was tried {times}",
            "Give it more time, or look for what it waits for: a lock, a connection, a loop without an end",
        )
    )


def name_of(function: Callable[..., Any]) -> str:
    """Return how a function is called in messages."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}".lstrip(".")
