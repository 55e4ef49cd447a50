"""One flat vector and the named tensors it consists of: views, no copies."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

Pattern: TypeAlias = "str | Iterable[str] | re.Pattern[str] | Callable[[str], bool]"


def matcher(pattern: Pattern | None) -> Callable[[str], bool]:
    """Turn a name pattern into a predicate on names.

    Args:
        pattern: A glob (``"layers.*.weight"``), several globs, a compiled regular expression (searched, not
            anchored), a predicate, or None for every name.

    Returns:
        A function from a name to whether the pattern takes it.

    Example:
        >>> [n for n in ("0.weight", "0.bias") if matcher("*.bias")(n)]
        ['0.bias']
    """
    if pattern is None:
        return lambda name: True
    if isinstance(pattern, str):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda name: pattern.search(name) is not None
    if callable(pattern):
        return pattern
    globs = tuple(pattern)
    return lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in globs)


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a flat vector of length ``P = sum of all sizes``.

    Attributes:
        names: One name per tensor, in the order in which they are laid out.
        shapes: The shape of each tensor.

    Example:
        >>> layout = Layout(("weight", "bias"), (torch.Size([2, 3]), torch.Size([2])))
        >>> layout.size, layout.slices("bias")
        (8, [('bias', slice(6, 8, None))])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Lay out ``tensors`` in their own order."""
        return cls(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(shape.numel() for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Length ``P`` of the flat vector."""
        return sum(self.sizes)

    def split(self, w: Tensor) -> list[Tensor]:
        """Return one view of ``w``, shape ``(P,)``, for each tensor, in the order of ``names``."""
        if w.shape != (self.size,):
            raise InvalidInput(
                explain(
                    f"The vector has shape {tuple(w.shape)}",
                    f"the parameters of this problem form a vector of shape ({self.size},)",
                    "Pass a flat vector such as problem.initial, or Layout.flatten(named_tensors)",
                )
            )
        return [part.view(shape) for part, shape in zip(torch.split(w, list(self.sizes)), self.shapes)]

    def unflatten(self, w: Tensor) -> dict[str, Tensor]:
        """Return named views of ``w``, shape ``(P,)``; writing to one writes to ``w``."""
        return dict(zip(self.names, self.split(w)))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy named tensors into one new vector of shape ``(P,)``.

        Raises:
            InvalidInput: A name is missing, or a shape differs.
        """
        for name, shape in zip(self.names, self.shapes):
            if name not in tensors or tensors[name].shape != shape:
                found = f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"
                raise InvalidInput(
                    explain(
                        f"For {name!r} there is {found}",
                        f"the layout needs a tensor of shape {tuple(shape)}",
                        "Pass every named tensor of the layout in its own shape",
                    )
                )
        return self.join([tensors[name] for name in self.names])

    @staticmethod
    def join(tensors: Iterable[Tensor]) -> Tensor:
        """Concatenate tensors, already in order, into one new flat vector."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def slices(self, pattern: Pattern | None = None) -> list[tuple[str, slice]]:
        """Return ``(name, slice of the flat vector)`` for every name that ``pattern`` takes."""
        takes, start, found = matcher(pattern), 0, []
        for name, size in zip(self.names, self.sizes):
            if takes(name):
                found.append((name, slice(start, start + size)))
            start += size
        return found

    def indices(self, pattern: Pattern | None = None) -> Tensor:
        """Return the flat coordinates, int64, of every tensor that ``pattern`` takes.

        Raises:
            InvalidInput: The pattern takes no name.
        """
        found = self.slices(pattern)
        if not found:
            shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
            raise InvalidInput(
                explain(
                    f"The pattern {pattern!r} matches no parameter",
                    "an operator on no parameter has no content",
                    f"Choose among: {shown}",
                )
            )
        return torch.cat([torch.arange(s.start, s.stop) for _, s in found])
