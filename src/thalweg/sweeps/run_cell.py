"""What happens on a worker: a cell is computed, and its result becomes bytes there, so that faults are found there."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.cells import Cell
from thalweg.sweeps.plan import RESERVED

KINDS = "biufcU"
"""Kinds of NumPy's types that are kept: true or false, numbers, text."""


@dataclass(frozen=True)
class Item:
    """One named result, as it is stored.

    Attributes:
        name: Of the result.
        kind: ``"json"`` for a scalar, ``"npy"`` for an array.
        dims: JSON list of the names of an array's dimensions, or empty.
        value: JSON text, or the bytes of a .npy file.
    """

    name: str
    kind: str
    dims: str
    value: bytes


@dataclass(frozen=True)
class Answer:
    """What came of a cell.

    Attributes:
        items: Its results; empty where it failed.
        seconds: That it took.
        host: Where.
        error: What it raised, as text; empty where it did not fail.
        trace: Where it raised it.
    """

    items: tuple[Item, ...] = ()
    seconds: float = 0.0
    host: str = ""
    error: str = ""
    trace: str = ""


def perform(function: Callable[[Cell], Any], cell: Cell) -> Answer:
    """Compute a cell; what it raises is part of the answer.

    Where the cell has the main thread to itself, as on the workers of both engines, the global random streams of
    Python, NumPy and PyTorch's CPU start from its seed, and are put back afterwards. Threads share these streams, and
    they are left alone there.
    """
    start, host = time.perf_counter(), f"{socket.gethostname()}:{os.getpid()}"
    alone = threading.current_thread() is threading.main_thread()
    try:
        with _seeded(cell.seed) if alone else nullcontext():
            found = function(cell)
        items = encode(found, cell)
    except (Exception, SystemExit) as error:  # SystemExit would take the worker down
        text = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        return Answer(seconds=time.perf_counter() - start, host=host, error=text, trace=trace)
    return Answer(items, time.perf_counter() - start, host)


def encode(found: Any, cell: Cell) -> tuple[Item, ...]:
    """Return a result as it is stored.

    Args:
        found: Maps names to scalars, arrays, tensors, lists of numbers, or pairs ``(dims, array)``.
        cell: Where it comes from.

    Raises:
        InvalidInput: It is something else, or a name is taken.
    """
    if not isinstance(found, Mapping):
        raise _wrong(f"The function returned {type(found).__name__}", 'Return {"loss": 0.5}, for example')
    items = []
    for name, value in found.items():
        if not isinstance(name, str) or not name or name in RESERVED or name in cell.values:
            raise _wrong(f"A result is called {name!r}, which is no name or taken by an axis or the table", "Rename it")
        items.append(_item(name, value, cell))
    return tuple(items)


def decode(kind: str, value: bytes) -> Any:
    """Return a scalar, or an array, from what is stored. Nothing in it is executed.

    Raises:
        ValueError: It is neither.
    """
    if kind == "json":
        return json.loads(value)
    if kind == "npy":
        return np.lib.format.read_array(io.BytesIO(value), allow_pickle=False)
    raise ValueError(f"a result is of the kind {kind!r}")


def _item(name: str, value: Any, cell: Cell) -> Item:
    dims: list[str] | None = None
    if isinstance(value, tuple) and len(value) == 2 and _are_names(value[0]):
        dims, value = [value[0]] if isinstance(value[0], str) else list(value[0]), value[1]
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic) and not isinstance(value, np.complexfloating):
        value = value.item()
    if dims is None and (value is None or isinstance(value, (bool, int, float, str))):
        return Item(name, "json", "", json.dumps(value).encode())
    array = np.asarray(value)
    if array.dtype.kind not in KINDS:
        raise _wrong(f"The result {name!r} is {type(value).__name__} of type {array.dtype}", "Return numbers or text")
    taken = [dim for dim in dims or () if dim in cell.values or dim in RESERVED]
    if dims is not None and (len(dims) != array.ndim or len(set(dims)) < len(dims) or taken):
        raise _wrong(f"The result {name!r} has shape {array.shape} and dims {dims}", "Name each dimension, no axis")
    held = io.BytesIO()
    np.lib.format.write_array(held, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    return Item(name, "npy", "" if dims is None else json.dumps(dims), held.getvalue())


def _are_names(dims: Any) -> bool:
    return isinstance(dims, str) or (isinstance(dims, (tuple, list)) and all(isinstance(dim, str) for dim in dims))


def _wrong(found: str, remedy: str) -> InvalidInput:
    return InvalidInput(explain(found, "a cell gives a mapping from names to scalars and arrays", remedy))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.random.set_rng_state(before[2])
