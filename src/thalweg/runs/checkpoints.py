"""Weights along a run: safetensors files that hold several steps each while the steps are small."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.runs.files import clear_temporaries, inside, read_tensors, storing, tensor_names, write_tensors

PACK_BYTES = 8 << 20
"""A file grows up to this size. Larger files are rewritten too slowly, smaller ones are too many."""

_NAME = re.compile(r"from-(\d{9,})\.safetensors")


class Checkpoints:
    """The checkpoints in a folder, for reading.

    A file is named after its first step and holds the keys ``"STEP/parameter.name"``. Only headers are read
    until weights are asked for, and then only those of that step.

    Args:
        folder: ``checkpoints/`` of a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[tuple[int, Path]]:
        """List ``(first step, path)`` in the order of steps."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("from-*.safetensors"))
        return sorted((int(match[1]), inside(self.folder, path)) for match, path in found if match)

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint."""
        return [step for _, path in self.files() for step in steps_in(path)]

    def read(self, step: int) -> dict[str, Tensor]:
        """Return the named tensors of one step, on the CPU.

        Raises:
            InvalidInput: This step has no checkpoint; the message names the nearest that has one.
            RunFolderError: The file is damaged, or a link out of the folder.
        """
        files = self.files()
        place = bisect.bisect_right([first for first, _ in files], step) - 1
        tensors = read_tensors(files[place][1], f"{step}/")[0] if place >= 0 else {}
        if not tensors:
            near = sorted(self.steps(), key=lambda other: abs(other - step))[:3]
            raise InvalidInput(
                explain(
                    f"Step {step} has no checkpoint",
                    f"the nearest are at {', '.join(map(str, near))}" if near else "the run has none at all",
                    "Ask for one of `run.checkpoints`, or train with a smaller checkpoint_every",
                )
            )
        return {name.split("/", 1)[1]: tensor for name, tensor in tensors.items()}


class CheckpointWriter(Checkpoints):
    """Adds checkpoints; `flush` writes the ones that are still in memory.

    Args:
        folder: ``checkpoints/`` of a run.
        limit: Bytes up to which steps share a file.
    """

    def __init__(self, folder: Path, limit: int = PACK_BYTES) -> None:
        super().__init__(folder)
        self._limit = limit
        with storing(folder):
            folder.mkdir(exist_ok=True)
        clear_temporaries(folder)
        self._reset()

    def _reset(self) -> None:
        self._first = -1
        self._pack: dict[str, Tensor] = {}
        self._dirty = False

    def add(self, step: int, tensors: Mapping[str, Tensor], *, owned: bool = False) -> None:
        """Keep ``tensors`` as the checkpoint of ``step``; steps come in rising order.

        Args:
            step: Updates done.
            tensors: By name.
            owned: They are on the CPU, contiguous and changed by nobody, and so are not copied.
        """
        size = _bytes(tensors)
        if self._pack and _bytes(self._pack) + size > self._limit:
            self.flush()
            self._reset()
        if not self._pack:
            self._first = step
        copies = {
            f"{step}/{name}": t if owned else t.detach().to("cpu", copy=True).contiguous()
            for name, t in tensors.items()
        }
        self._pack |= copies  # at once: Ctrl-C in between must not leave half a step
        self._dirty = True
        if size > self._limit:  # large models go to disk at once and do not linger in memory
            self.flush()
            self._reset()

    def flush(self) -> None:
        """Write what is in memory; the file it belongs to is replaced atomically."""
        if self._dirty:
            write_tensors(self.folder / f"from-{self._first:09d}.safetensors", self._pack, owned=True)
            self._dirty = False

    def truncate(self, step: int) -> None:
        """Remove every checkpoint of ``step`` and later, and go on with the last file that remains."""
        self._reset()
        kept = []
        for first, path in self.files():
            if first < step:
                kept.append((first, path))
            else:
                with storing(path):
                    path.unlink()
        if not kept or kept[-1][1].stat().st_size > self._limit:
            return  # a file this large holds one step, and takes no second one
        tensors, _ = read_tensors(kept[-1][1])
        self._pack = {name: t for name, t in tensors.items() if int(name.split("/", 1)[0]) < step}
        self._first, self._dirty = kept[-1][0], len(self._pack) < len(tensors)
        self.flush()


def steps_in(path: Path) -> list[int]:
    """List the steps in one file from its header."""
    heads = {name.split("/", 1)[0] for name in tensor_names(path) if "/" in name}
    return sorted(int(head) for head in heads if head.isdecimal())


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
