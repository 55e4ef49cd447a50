"""What a pickle says, without doing it.

A pickle is a program: loading one imports modules and calls what it names. Here nothing is imported and nothing of
it is called. Each name becomes a `Record`, an empty class made for this one load that keeps the arguments and the
state it was given; a name that is not on the list of its reader's is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Container
from typing import Any, ClassVar

LONGEST = 256 << 20
"""Bytes of a pickle beyond which it is not read: tables of names and shapes are far smaller."""


class Refused(Exception):
    """A pickle names something that has no business in it."""


class Record:
    """Something that a pickle would have made.

    Attributes:
        kind: Its module and name, ``"torch.Size"``.
        args: What it would have been called with.
        state: What its ``__setstate__`` would have got.
    """

    kind: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Record:
        """Keep the arguments."""
        made = object.__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any, **_: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the state."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


_Python: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]  # in C, a crafted memo takes all memory


class _Reader(_Python):  # type: ignore[misc,unused-ignore]
    """The unpickler of Python's own library, in Python, with every way to a real object closed."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: method
        for code, method in _Python.dispatch.items()
        # a registered extension can come from a cache of real classes
        if code not in (pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0])
    }

    def __init__(self, data: bytes, admitted: Container[str], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._admitted, self._persistent = admitted, persistent
        self._made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        kind = f"{module}.{name}"
        if kind not in self._admitted:
            raise Refused(kind)
        if kind not in self._made:
            # fresh for each load: whatever the pickle does to a class, it does to its own
            base: type = dict if kind == "collections.OrderedDict" else Record
            self._made[kind] = type(name, (base,), {"kind": kind})
        return self._made[kind]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused("a reference out of the file")
        return self._persistent(pid)


def read_pickle(data: bytes, admitted: Container[str], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Return what a pickle describes, in plain containers, numbers, strings and `Record`.

    Args:
        data: The pickle.
        admitted: ``"module.name"`` of all that may occur in it.
        persistent: Resolves references to what lies beside it.

    Raises:
        Refused: It names something else. Nothing was imported or called.
        ValueError: It is damaged.

    Example:
        >>> class Sly:
        ...     def __reduce__(self):
        ...         return print, ("code that runs",)
        >>> try:
        ...     read_pickle(pickle.dumps(Sly()), {"torch.Size"})
        ... except Refused as error:
        ...     print(error)
        builtins.print
    """
    if len(data) > LONGEST:
        raise ValueError(f"a table of {len(data)} bytes is none")
    try:
        return _Reader(data, admitted, persistent).load()
    except Refused:
        raise
    except Exception as error:  # a damaged program can break its interpreter anywhere
        raise ValueError(f"{type(error).__name__}: {error}") from error


def kind_of(thing: Any) -> str:
    """Return ``"module.name"`` of a record or of the class of one, else ``""``."""
    kind = getattr(thing, "kind", "")
    return kind if isinstance(kind, str) else ""
