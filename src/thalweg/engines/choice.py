"""From the name of an engine, or an executor of the user's, to an executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from thalweg.engines.local import LocalEngine
from thalweg.engines.ray import RayEngine
from thalweg.errors import InvalidInput, explain

NAMES = ("local", "ray")


class Lent(Executor):
    """An executor of the user's: used, and not shut down.

    Args:
        executor: It.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    @property
    def workers(self) -> int | None:
        """Its processes, where it says so."""
        return getattr(self.executor, "workers", None)

    @property
    def slots(self) -> int | None:
        """Tasks that it runs at a time, where it says so."""
        return getattr(self.executor, "slots", None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand the call on."""
        return self.executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave it to its owner."""

    def __repr__(self) -> str:
        return f"Lent({self.executor!r})"


def as_engine(engine: str | Executor, *, workers: int | None = None, address: str | None = None) -> Executor:
    """Return the executor that is meant; leave it with ``with``, which ends what was begun here and nothing else.

    Args:
        engine: ``"local"`` for `LocalEngine`, ``"ray"`` for `RayEngine`, or any executor with the interface of
            `concurrent.futures`, or an object that gives one with ``get_executor()``, as Dask's client does.
        workers: Processes, of an engine that is started here.
        address: Of a Ray cluster.

    Raises:
        InvalidInput: There is no such engine, or an argument does not go with it.

    Example:
        >>> with as_engine("local", workers=1) as executor:
        ...     executor.submit(divmod, 7, 3).result()
        (2, 1)
    """
    if address is not None and engine != "ray":
        raise InvalidInput(
            explain(f"The address {address} was given", f"only ray has one, not {engine!r}", 'Pass engine="ray"')
        )
    if engine == "local":
        return LocalEngine(workers)
    if engine == "ray":
        return RayEngine(address, workers=workers)
    if not isinstance(engine, str) and workers is not None:
        raise InvalidInput(
            explain(f"workers is {workers}", "an executor that is handed in has its own", "Leave it out")
        )
    if isinstance(engine, Executor):
        return engine if isinstance(engine, Lent) else Lent(engine)
    executor_of = getattr(engine, "get_executor", None)
    if callable(executor_of):
        return as_engine(executor_of())
    raise InvalidInput(
        explain(
            f"The engine is {engine!r}",
            f"it is one of {', '.join(NAMES)}, or an executor with the interface of concurrent.futures",
            "Pass one of these",
        )
    )
