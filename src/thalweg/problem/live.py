"""Bytes alive at every operation: what a computation needs at its worst moment, counted rather than sampled."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TREES = (list, tuple)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow every storage that an operation makes while this context is open, until it is freed.

    The count is a fact of the program, the same in every run: no allocator, no page, no other process has a part in
    it. What a kernel takes for itself and gives back before it returns is not seen. Storages that were there before
    do not count, and those that outlive the context count until its end.

    Attributes:
        live: Bytes alive now.
        peak: Largest number of bytes alive after any operation so far.
        events: ``(operation, bytes alive after it)`` for every operation that made a storage, in order.

    Example:
        >>> x = torch.ones(1000)
        >>> with LiveBytes() as bytes:
        ...     y = (x + 1) * 2  # the sum is alive while the product is made
        >>> bytes.peak, bytes.live
        (8000, 4000)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.events: list[tuple[str, int]] = []
        self._known: dict[int, weakref.ref[Any]] = {}

    def mark(self, name: str) -> None:
        """Write down what is alive now, under a name of the caller's."""
        self.events.append((name, self.live))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = False
        given: set[int] | None = None
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) in self._known:
                continue
            if given is None:
                given = {id(t.untyped_storage()) for t in _tensors((args, tuple(kwargs.values())))}
            if id(storage) not in given:
                self._follow(storage)
                made = True
        if made:
            self.peak = max(self.peak, self.live)
            self.events.append((str(func), self.live))
        return out

    def _follow(self, storage: Any) -> None:
        key, size, owner = id(storage), int(storage.nbytes()), weakref.ref(self)

        def gone(_: Any) -> None:
            mode = owner()
            if mode is not None and mode._known.pop(key, None) is not None:
                mode.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided:
            yield tree
    elif isinstance(tree, _TREES):
        for child in tree:
            yield from _tensors(child)
