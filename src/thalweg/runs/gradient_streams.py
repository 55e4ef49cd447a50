"""Random streams that augmentation draws from: the global ones, and generators that a data set keeps to itself."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from thalweg import _rng
from thalweg.problem.guards import preserved_rng

_DEPTH, _OBJECTS, _LONGEST = 8, 10_000, 256
"""How far a search for generators goes: a list of a million samples holds none worth finding."""
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, torch.Tensor, np.ndarray, types.ModuleType)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the global streams of Python, NumPy and PyTorch, on the CPU and ``device``; no other device's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if device.type in ("cpu", "cuda"):  # what torch.manual_seed does, but for other devices, a hundred times as fast
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def streams_in(*roots: Any) -> list[Any]:
    """Return the generators that ``roots`` hold among their attributes, and in lists and mappings there.

    They are of PyTorch, NumPy (``Generator`` and ``RandomState``) or Python, in the order in which they are found.

    Example:
        >>> class Noisy:
        ...     def __init__(self): self.transforms = [functools.partial(min, np.random.default_rng(0))]
        >>> [type(found).__name__ for found in streams_in(Noisy())]
        ['Generator']
    """
    found: list[Any] = []
    seen: set[int] = set()
    level = list(roots)
    for _ in range(_DEPTH):
        following: list[Any] = []
        for one in level:
            if isinstance(one, _LEAVES) or id(one) in seen or len(seen) > _OBJECTS:
                continue
            seen.add(id(one))
            if isinstance(one, (torch.Generator, np.random.Generator, np.random.RandomState)) or (
                isinstance(one, random.Random) and not isinstance(one, random.SystemRandom)
            ):
                found.append(one)
            else:
                following += _children(one)
        level = following
    return found


@contextmanager
def own_stream(seed: int, device: torch.device, streams: Sequence[Any] = ()) -> Iterator[None]:
    """Draw from streams of ``seed`` while open, and put the global ones and ``streams`` back, bit for bit.

    Args:
        seed: Of the global streams, and by number of those in ``streams``.
        device: Where draws may happen beside the CPU.
        streams: As `streams_in` finds them.
    """
    with preserved_rng(device):
        kept = [_state(stream) for stream in streams]
        try:
            reseed(seed, device)
            for k, stream in enumerate(streams):
                _seed(stream, _rng.derive_seed(seed, "own stream", k))
            yield
        finally:
            for stream, state in zip(streams, kept):
                _put_back(stream, state)


def _children(one: Any) -> list[Any]:
    if isinstance(one, Mapping):
        return list(one.values()) if isinstance(one, dict) and len(one) <= _LONGEST else []
    if isinstance(one, (list, tuple, set)):
        return list(one) if len(one) <= _LONGEST else []
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    found = list(getattr(one, "__dict__", {}).values())
    owner = getattr(one, "__self__", None)  # of a bound method
    closure = getattr(one, "__closure__", None) or ()
    return [*found, owner, *(cell.cell_contents for cell in closure if _filled(cell))]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _state(stream: Any) -> Any:
    if isinstance(stream, torch.Generator):
        return stream.get_state()
    if isinstance(stream, np.random.Generator):
        return stream.bit_generator.state
    return stream.get_state() if isinstance(stream, np.random.RandomState) else stream.getstate()


def _put_back(stream: Any, state: Any) -> None:
    if isinstance(stream, (torch.Generator, np.random.RandomState)):
        stream.set_state(state)
    elif isinstance(stream, np.random.Generator):
        stream.bit_generator.state = state
    else:
        stream.setstate(state)


def _seed(stream: Any, seed: int) -> None:
    if isinstance(stream, torch.Generator):
        stream.manual_seed(seed)
    elif isinstance(stream, np.random.Generator):
        stream.bit_generator.state = type(stream.bit_generator)(seed).state
    elif isinstance(stream, np.random.RandomState):
        stream.seed(seed % 2**32)
    else:
        stream.seed(seed)
