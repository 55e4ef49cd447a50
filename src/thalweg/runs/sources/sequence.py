"""A lazy, ordered sequence of checkpoints: steps and tensors are known, values are read range by range."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg._vectors import Pattern, matcher
from thalweg.errors import InvalidInput, explain
from thalweg.runs.sources.checkpoint import Checkpoint as Checkpoint
from thalweg.runs.sources.checkpoint import agree as agree
from thalweg.runs.sources.checkpoint import read_ranges, unreadable
from thalweg.runs.sources.stored import FileMark, InMemory, TensorInfo, Unreadable

SMALL = 16 << 20
"""Bytes up to which a checkpoint that shares a growing file with others is told by its values."""


class Trajectory:
    """Checkpoints ``theta_1 ... theta_T`` of one model, in the order of their steps; made by `trajectory`.

    Nothing is held in memory: `read` fetches a range of one tensor of one checkpoint and nothing around it. It may be
    called from several threads.

    Attributes:
        steps: Step of each checkpoint, ascending.
        tensors: Name, shape and stored dtype of each selected parameter, the same in all checkpoints, each tied tensor
            once; in natural order of names.
        gaps: What was skipped or is missing, and why; one sentence each.
        left_out: Tensors in the checkpoints that are not selected, and why.
        schedule: Numbers that were recorded along with the checkpoints, float64 ``(T,)``, NaN where unknown.
        rule: How steps were read from names.
        config: The model's configuration where a ``config.json`` is there, as Hugging Face writes it.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        tensors: Sequence[TensorInfo],
        *,
        gaps: Sequence[str] = (),
        left_out: Mapping[str, str] | None = None,
        schedule: Mapping[str, np.ndarray] | None = None,
        rule: str = "given",
        config: Mapping[str, Any] | None = None,
        drop_pages: bool = False,
    ) -> None:
        self._checkpoints, self.tensors = tuple(checkpoints), tuple(tensors)
        self.steps = tuple(checkpoint.step for checkpoint in checkpoints)
        self.gaps, self.left_out, self.rule = tuple(gaps), dict(left_out or {}), rule
        self.schedule, self.config = dict(schedule or {}), dict(config or {})
        self._drop = drop_pages
        self._info = {info.name: info for info in self.tensors}
        self._lock, self._count = threading.Lock(), 0

    @classmethod
    def from_arrays(
        cls,
        points: Tensor | Sequence[Mapping[str, Tensor]],
        steps: Sequence[int] | None = None,
        *,
        schedule: Mapping[str, np.ndarray] | None = None,
    ) -> Trajectory:
        """Make a trajectory of what is in memory.

        Args:
            points: One row per checkpoint, ``(T, P)``, which becomes one tensor named ``"w"``; or per checkpoint its
                tensors by name. They are kept as they are, not copied.
            steps: Step of each; default 0, 1, 2, ...
            schedule: Numbers along the steps, each ``(T,)``.

        Raises:
            InvalidInput: There is no point, names, shapes or dtypes differ, or steps do not rise.

        Example:
            >>> path = Trajectory.from_arrays(torch.arange(6.0).reshape(3, 2), steps=[0, 10, 20])
            >>> path
            Trajectory of 3 checkpoints, steps 0 to 20, 2 parameters in 1 tensor (float32), 8 B each
            >>> path.read(1, "w", 0, 2)
            tensor([2., 3.])
        """
        named = [{"w": row} for row in points] if isinstance(points, Tensor) else [dict(point) for point in points]
        given = list(range(len(named))) if steps is None else [int(step) for step in steps]
        if not named or len(given) != len(named) or any(b <= a for a, b in pairwise(given)):
            raise InvalidInput(
                explain(
                    f"Got {len(named)} points and the steps {given[:8]}",
                    "each point has a step, and steps rise",
                    "Pass one row or dictionary per step, in order",
                )
            )
        checkpoints = [
            Checkpoint(step, f"step {step}", {name: _in_memory(name, tensor) for name, tensor in point.items()})
            for step, point in zip(given, named)
        ]
        infos = [tensor.info for tensor in checkpoints[0].tensors.values()]
        agree(checkpoints, infos)
        return cls(checkpoints, infos, schedule=schedule)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind the lock and what is not selected: it goes to any process that sees the same files."""
        chosen = [replace(one, tensors={name: one.tensors[name] for name in self._info}) for one in self._checkpoints]
        state = {name: value for name, value in vars(self).items() if name != "_lock"}
        return state | {"_checkpoints": tuple(chosen), "left_out": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with a lock and a count of bytes of its own."""
        vars(self).update(state, _lock=threading.Lock(), _count=0)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def numel(self) -> int:
        """Selected parameters of one checkpoint."""
        return sum(info.numel for info in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the selected parameters of one checkpoint, as stored."""
        return sum(info.nbytes for info in self.tensors)

    @property
    def bytes_read(self) -> int:
        """Bytes that `read` has taken from files or copied from memory so far."""
        return self._count

    def label(self, index: int) -> str:
        """Return how a checkpoint is called: its path or name."""
        return self._checkpoints[self._place(index)].label

    def read(self, index: int, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read elements ``[start, stop)`` of a flattened tensor at one checkpoint.

        Args:
            index: Which checkpoint, 0 to T-1; negative numbers count from the end.
            name: Which tensor.
            start: First element.
            stop: One past the last; default the tensor's end.

        Returns:
            A 1-D tensor of its own on the CPU, in the stored dtype.

        Raises:
            InvalidInput: There is no such checkpoint, tensor or range.
            RunFolderError: The file is gone, was cut short, or was changed since the trajectory was opened; the message
                names checkpoint, tensor and file.
        """
        checkpoint = self._checkpoints[self._place(index)]
        stop = self._end(name, start, stop)
        try:
            values, count = checkpoint.tensors[name].read(start, stop, drop=self._drop)
        except Unreadable as error:
            raise unreadable(checkpoint, name, error) from error
        with self._lock:
            self._count += count
        return values

    def read_into(self, index: int, wanted: Sequence[tuple[str, int, int, memoryview]]) -> None:
        """Read ranges of several tensors of one checkpoint into memory that is there, opening each file once.

        Ranges that lie one after the other in a file are read by one call to the system.

        Args:
            index: Which checkpoint, as in `read`.
            wanted: Tensor, first element, one past the last, and where the bytes go: as many as the range has.

        Raises:
            InvalidInput: There is no such checkpoint, tensor or range, or the memory has another size.
            RunFolderError: As in `read`.

        Example:
            >>> path, memory = Trajectory.from_arrays(torch.arange(6.0).reshape(3, 2)), torch.empty(1)
            >>> path.read_into(2, [("w", 1, 2, memoryview(memory.numpy()).cast("B"))])
            >>> memory
            tensor([5.])
        """
        checkpoint = self._checkpoints[self._place(index)]
        for name, start, stop, out in wanted:
            length = (self._end(name, start, stop) - start) * self._info[name].dtype.itemsize
            if len(out) != length or out.itemsize != 1:
                raise InvalidInput(
                    explain(
                        f"The memory for {name!r} is {out.nbytes} bytes, in items of {out.itemsize}",
                        f"the range [{start}, {stop}) has {length} bytes",
                        "Pass a memoryview of as many bytes",
                    )
                )
        count = read_ranges(checkpoint, wanted, drop=self._drop)
        with self._lock:
            self._count += count

    def _end(self, name: str, start: int, stop: int | None) -> int:
        """See that a range is there; return its end."""
        info = self._info.get(name)
        if info is None:
            raise InvalidInput(
                explain(
                    f"No selected tensor is named {name!r}",
                    f"it is left out: {self.left_out[name]}" if name in self.left_out else "the checkpoints lack it",
                    "Take names from .tensors; choose others with select= and trainable=",
                )
            )
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            raise InvalidInput(
                explain(
                    f"The range [{start}, {stop}) is not in {name!r}",
                    f"it has {info.numel} elements",
                    "Pass 0 <= start <= stop <= numel",
                )
            )
        return stop

    def tensor(self, index: int, name: str) -> Tensor:
        """Read one whole tensor of one checkpoint, in its shape."""
        return self.read(index, name).reshape(self._info[name].shape)

    def window(self, indices: Sequence[int] | slice) -> Trajectory:
        """Return the checkpoints at these places, in rising order, with a count of bytes of their own.

        Raises:
            InvalidInput: There is none, or they do not rise.

        Example:
            >>> path = Trajectory.from_arrays(torch.zeros(5, 2))
            >>> path.window(slice(1, 4)).steps, path.window([0, -1]).steps
            ((1, 2, 3), (0, 4))
        """
        chosen = range(len(self))[indices] if isinstance(indices, slice) else [self._place(i) for i in indices]
        if not len(chosen) or any(b <= a for a, b in pairwise(chosen)):
            raise InvalidInput(
                explain(
                    f"The window {indices!r} of {len(self)} checkpoints is empty or does not rise",
                    "a trajectory has a direction, and each point once",
                    "Pass rising places, or a slice",
                )
            )
        keep = list(chosen)
        schedule = {name: values[keep] for name, values in self.schedule.items()}
        return self._like([self._checkpoints[i] for i in keep], self.tensors, self.left_out, schedule)

    def select(self, pattern: Pattern) -> Trajectory:
        """Return the same checkpoints with only the tensors whose names ``pattern`` takes.

        Raises:
            InvalidInput: It takes none.

        Example:
            >>> point = {"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)}
            >>> [info.name for info in Trajectory.from_arrays([point, point]).select("*.bias").tensors]
            ['0.bias']
        """
        takes = matcher(pattern)
        kept = [info for info in self.tensors if takes(info.name)]
        if not kept:
            raise none_selected(pattern, [info.name for info in self.tensors])
        left = self.left_out | {info.name: "not selected" for info in self.tensors if not takes(info.name)}
        return self._like(self._checkpoints, kept, left, self.schedule)

    def fingerprint(self, index: int) -> str:
        """Return a short text that changes when the files of a checkpoint do.

        It covers name, size and time of each file as it is now, and the selected tensors. Of a checkpoint that shares a
        small file with others, as in a run folder, it covers the values instead, as that file changes with every step.
        """
        place = self._place(index)
        checkpoint = self._checkpoints[place]
        digest = hashlib.sha256(repr((checkpoint.step, self.tensors)).encode())
        if not checkpoint.files or (checkpoint.shared and self.nbytes <= SMALL):
            for info in self.tensors:
                digest.update(_raw(checkpoint.tensors[info.name].read(0, info.numel)[0]))
        for file in () if checkpoint.shared else checkpoint.files:
            try:
                found = FileMark.of(file.path)
                digest.update(repr((file.path.name, found.size, found.mtime_ns)).encode())
            except Unreadable:
                digest.update(b"gone")
        return digest.hexdigest()[:32]

    def _like(
        self,
        checkpoints: Sequence[Checkpoint],
        tensors: Sequence[TensorInfo],
        left_out: Mapping[str, str],
        schedule: Mapping[str, np.ndarray],
    ) -> Trajectory:
        return Trajectory(
            checkpoints,
            tensors,
            gaps=self.gaps,
            left_out=left_out,
            schedule=schedule,
            rule=self.rule,
            config=self.config,
            drop_pages=self._drop,
        )

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise InvalidInput(
                explain(
                    f"There is no checkpoint {index}", f"the trajectory has {len(self)}", f"Pass 0 to {len(self) - 1}"
                )
            )
        return index % len(self)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __repr__(self) -> str:
        dtypes = ", ".join(sorted({str(info.dtype).removeprefix("torch.") for info in self.tensors}))
        words = f"{len(self.tensors)} tensor" + "s" * (len(self.tensors) != 1)
        span = f"step {self.steps[0]}" if len(self) == 1 else f"steps {self.steps[0]} to {self.steps[-1]}"
        many = f"{len(self)} checkpoint" + "s" * (len(self) != 1)
        gaps = f", {len(self.gaps)} noted gap" + "s" * (len(self.gaps) != 1) if self.gaps else ""
        what = f"{self.numel:,} parameters in {words} ({dtypes}), {_size(self.nbytes)} each"
        return f"Trajectory of {many}, {span}, {what}{gaps}"


def none_selected(pattern: object, names: Sequence[str]) -> InvalidInput:
    """Return the error for a choice of tensors that takes none."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return InvalidInput(
        explain(
            f"No tensor matches {pattern!r}",
            f"the checkpoints have {shown}",
            "Pass a glob, a regular expression or a function that takes some of them",
        )
    )


def _in_memory(name: str, tensor: Tensor) -> InMemory:
    return InMemory(TensorInfo(name, tuple(tensor.shape), tensor.dtype), tensor)


def _raw(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000  # type: ignore[assignment]
    return f"{count:.4g} {unit}"
