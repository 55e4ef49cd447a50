"""What a sweep's function is called, by which a ledger knows it again, and whether a worker can load it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any

from thalweg.errors import InvalidInput, explain

LONGEST = 200
"""Characters of a name; of a longer one a digest is kept."""


def called(function: Callable[..., Any]) -> str:
    """Return the name of a function, with the arguments that `functools.partial` or a dataclass has bound to it.

    The module is left out: a script is ``__main__`` when it runs and another module when it is imported.

    Example:
        >>> called(functools.partial(divmod, 7))
        'divmod(7)'
    """
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in sorted(function.keywords.items()))]
        name = f"{called(function.func)}({', '.join(bound)})"
    elif dataclasses.is_dataclass(function):
        name = repr(function)
    else:
        name = str(getattr(function, "__qualname__", type(function).__qualname__))
    name = re.sub(r" at 0x[0-9a-f]+", "", name)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 20]}... {hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    return name


def check_sendable(function: Callable[..., Any]) -> None:
    """Raise where spawned processes cannot load a function, before anything is begun.

    Raises:
        InvalidInput: They cannot.
    """
    try:
        pickle.dumps(function)
        why = "it is defined in an interactive session" if _interactive(function) else ""
    except Exception as error:
        why = str(error)
    if why:
        raise InvalidInput(
            explain(
                f"The function {called(function)} cannot be sent to a worker: {why}",
                "a worker imports it by its name",
                "Define it at the top of a module or script, or use an engine in this process, such as "
                "ThreadPoolExecutor",
            )
        )


def _interactive(function: Callable[..., Any]) -> bool:
    inner = function.func if isinstance(function, functools.partial) else function
    owner = inner if hasattr(inner, "__qualname__") else type(inner)
    main = getattr(owner, "__module__", "") == "__main__"
    return main and not hasattr(sys.modules["__main__"], "__file__")
