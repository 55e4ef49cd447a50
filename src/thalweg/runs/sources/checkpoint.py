"""One opened checkpoint: what it holds, whether it is like another, and reading ranges of several of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs.sources.stored import FileMark, OnDisk, Stored, TensorInfo, Unreadable


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, opened: headers were read, weights not.

    Attributes:
        step: Its step.
        label: How to call it: its path or name.
        tensors: All its tensors by name.
        files: The files it lies in.
        shared: Whether its file holds other checkpoints, too, and may still grow.
    """

    step: int
    label: str
    tensors: Mapping[str, Stored]
    files: tuple[FileMark, ...] = ()
    shared: bool = False


def read_ranges(
    checkpoint: Checkpoint, wanted: Sequence[tuple[str, int, int, memoryview]], *, drop: bool = False
) -> int:
    """Read ranges of tensors into memory, opening each file once; return the bytes read.

    Args:
        checkpoint: The checkpoint.
        wanted: Tensor, first element, one past the last, and the bytes where they go.
        drop: Tell the system not to keep what was read.

    Raises:
        RunFolderError: A file is gone, was cut short or changed.
    """
    total = 0
    files: dict[FileMark, list[tuple[int, memoryview, str]]] = {}
    for name, start, stop, out in wanted:
        stored = checkpoint.tensors[name]
        try:
            spans = stored.spans(start, stop) if isinstance(stored, OnDisk) else None
            if spans is None and start < stop:
                values, count = stored.read(start, stop, drop=drop)
                torch.frombuffer(out, dtype=values.dtype).copy_(values)
                total += count
        except Unreadable as error:
            raise unreadable(checkpoint, name, error) from error
        for file, offset, low, high in spans or ():
            files.setdefault(file, []).append((offset, out[low:high], name))
    for file, ranges in files.items():
        ranges.sort(key=lambda one: one[0])
        try:
            total += file.fill_all([(offset, out) for offset, out, _ in ranges], drop=drop)
        except Unreadable as error:
            raise unreadable(checkpoint, ranges[error.place][2], error) from error
    return total


def agree(checkpoints: Sequence[Checkpoint], infos: Sequence[TensorInfo]) -> None:
    """Raise unless all checkpoints have these tensors and no others, in these shapes and dtypes.

    Raises:
        InvalidInput: The first difference, by checkpoint and tensor.
    """
    wanted = {info.name: info for info in infos}
    for checkpoint in checkpoints:
        for name, info in wanted.items():
            found = checkpoint.tensors[name].info if name in checkpoint.tensors else None
            if found is None:
                raise _differs(checkpoint, checkpoints[0], f"lacks the tensor {name!r}")
            if found.shape != info.shape:
                raise _differs(checkpoint, checkpoints[0], f"has {name!r} in shape {found.shape}, not {info.shape}")
            if found.dtype != info.dtype:
                raise _differs(checkpoint, checkpoints[0], f"has {name!r} in {found.dtype}, not {info.dtype}")
        extra = next((name for name in checkpoint.tensors if name not in wanted), None)
        if extra is not None:
            raise _differs(checkpoint, checkpoints[0], f"has the tensor {extra!r} besides")


def _differs(checkpoint: Checkpoint, first: Checkpoint, what: str) -> InvalidInput:
    return InvalidInput(
        explain(
            f"The checkpoint {checkpoint.label} (step {checkpoint.step}) {what}",
            f"the first one, {first.label} (step {first.step}), is otherwise, and a trajectory is one model's",
            "Leave that checkpoint out (only=), or choose tensors that all have in common (select=)",
        )
    )


def unreadable(checkpoint: Checkpoint, name: str, error: Unreadable) -> RunFolderError:
    """Return the error for a tensor whose file is not what it was."""
    return RunFolderError(
        explain(
            f"{name!r} of the checkpoint {checkpoint.label} (step {checkpoint.step}) cannot be read: "
            f"{error.path}: {error.reason}",
            "the file was whole when the trajectory was opened",
            "Put the file back and open the trajectory again, or leave the checkpoint out",
        )
    )
