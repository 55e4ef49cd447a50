"""Everything thalweg raises or warns about, under one root each.

Messages have three parts: what was found, why it is wrong, what to do. `explain` joins them, so that every
error of the library reads alike.
"""

from __future__ import annotations


def explain(found: str, why: str, remedy: str) -> str:
    """Join the three parts of a message: ``found``, ``why`` it is wrong, and the ``remedy``."""
    return " ".join(f"{_sentence(part)}." for part in (found, why, remedy))


def _sentence(part: str) -> str:
    """Start with a capital, unless the first word is code."""
    part = part.rstrip(".")
    first = part.split(" ", 1)[0]
    return part[:1].upper() + part[1:] if first.isalpha() or first.endswith(",") else part


class ThalwegError(Exception):
    """Root of every exception that thalweg raises on purpose."""


class InvalidInput(ThalwegError, ValueError):
    """An argument has the wrong shape, type, name or range."""


class EmptyData(InvalidInput):
    """The data, or one of its batches, holds no sample, or a batch has no size."""


class NotDeterministic(ThalwegError):
    """Two evaluations of the same loss at the same point differ."""


class NotDifferentiable(ThalwegError):
    """The loss has no derivative of the order that was asked for."""


class NotConverged(ThalwegError):
    """An iteration stopped before its tolerance; ``result`` holds what it had."""

    def __init__(self, message: str, result: object | None = None) -> None:
        super().__init__(message)
        self.result = result


class NonFinite(ThalwegError):
    """A loss, gradient or product is NaN or infinite; ``result`` holds what there was before, if anything."""

    def __init__(self, message: str, result: object | None = None) -> None:
        super().__init__(message)
        self.result = result


class DistributedError(ThalwegError, RuntimeError):
    """There is no process group, its processes disagree, or one of them failed."""


class RunFolderError(ThalwegError):
    """A path is not a run folder, or one of its files is damaged."""


class SchemaError(RunFolderError):
    """A file was written by a schema version that this thalweg cannot read."""


class StorageError(ThalwegError, OSError):
    """Writing failed: the disk is full, read-only or gone."""


class MissingExtra(ThalwegError, ImportError):
    """An optional package is not installed; the message names the extra."""


class ThalwegWarning(UserWarning):
    """Root of every warning that thalweg issues."""


class NumericalWarning(ThalwegWarning):
    """A result is usable, with less accuracy than was asked for."""


class PerformanceWarning(ThalwegWarning):
    """A slower path was taken than the fastest that would do."""
