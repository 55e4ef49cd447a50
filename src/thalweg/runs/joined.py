"""Classes with a base from a package that is imported only when the first object is made."""

from __future__ import annotations

from typing import Any, ClassVar


class Joined:
    """Makes an object of a class an object of the optional package's class, too.

    A subclass returns that class from ``base``. An object of it then belongs to a class made of both, ours first.

    Example:
        >>> class Mine(Joined):
        ...     @staticmethod
        ...     def base():
        ...         return dict
        >>> isinstance(Mine(), dict), isinstance(Mine(), Mine)
        (True, True)
    """

    _both: ClassVar[type[Joined]]

    def __new__(cls, *arguments: Any, **settings: Any) -> Any:
        """Make an object of both classes."""
        both = _both(cls)
        return super(Joined, both).__new__(both)

    @staticmethod
    def base() -> type:
        """Return the class to be joined with."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return _again, (self._ours(), dict(self.__dict__))

    def _ours(self) -> type[Joined]:
        return next(kind for kind in type(self).__mro__ if not kind.__dict__.get("_joined", False))


def _both(cls: type[Joined]) -> type[Joined]:
    if "_both" not in cls.__dict__:
        base = cls.base()
        facts = {
            "__doc__": cls.__doc__,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "_joined": True,
        }
        cls._both = cls if issubclass(cls, base) else type(cls.__name__, (cls, base), facts)
    return cls._both


def _again(cls: type[Joined], state: dict[str, Any]) -> Joined:
    made: Joined = cls.__new__(cls)
    made.__dict__.update(state)
    return made
