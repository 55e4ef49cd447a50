"""Random projections of checkpoints that are seen once, as in a live run: Grams as estimates with standard errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, RunFolderError, SchemaError, explain
from thalweg.runs.files import read_tensors, write_tensors
from thalweg.runs.sketches import TILE, project
from thalweg.runs.sources import TensorInfo
from thalweg.trajectories.gram_result import Grams
from thalweg.trajectories.gram_result import facts as facts_of
from thalweg.trajectories.products import NonFiniteWeights
from thalweg.trajectories.tiles import Layout, PartsOf, Source, layout

SCHEMA = 1
"""Version of the files and of the projection. Raise it when either changes."""


class Sketcher:
    """Projections of every checkpoint seen so far, k numbers a tensor and checkpoint; no weights are kept.

    The points are projected, in float64, and increments are differences of projections: projecting is linear.

    Args:
        k: Dimensions of a tensor's projection. A cosine c has a standard error of about ``(1 - c^2) / sqrt(k)``.
        seed: Of the projections.
        parts: Gives the parts of fused tensors, as in `grams`.

    Example:
        >>> sketcher = Sketcher(k=64)
        >>> for step in range(3):
        ...     sketcher.update(step, {"w": torch.full((1000,), float(step))})
        >>> found = sketcher.grams()
        >>> float(found.m[0]), bool(abs(found.G[0, 0, 1] - 1000) < 4 * found.standard_error[0, 1])
        (0.0, True)
    """

    def __init__(self, k: int = 1024, seed: int = 0, parts: PartsOf | None = None) -> None:
        if not 1 <= k <= TILE:
            raise InvalidInput(explain(f"k is {k}", f"a projection has 1 to {TILE} dimensions", "Pass such a k"))
        self.k, self.seed, self.parts = k, seed, parts
        self.steps: list[int] = []
        self.layouts: list[Layout] = []
        self.points: list[list[np.ndarray]] = []
        self.m: np.ndarray | None = None
        self.bytes_read = 0

    def update(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Take the weights at a step: of a live model (``dict(model.named_parameters())``) or of anything else.

        Raises:
            InvalidInput: The step is not after the last one, or names, shapes or dtypes differ from the first time.
            NonFinite: A weight is NaN or infinite. The checkpoint is not taken.
        """
        infos = [TensorInfo(name, tuple(t.shape), t.dtype) for name, t in state.items()]
        flat = {name: tensor.detach().reshape(-1) for name, tensor in state.items()}
        self._take(step, [layout(info, self.parts) for info in infos], lambda name, a, b: flat[name][a:b])

    def read(self, source: Source, index: int) -> None:
        """Take one checkpoint of a trajectory, read once.

        Raises:
            InvalidInput: As `update`.
            NonFinite: As `update`.
        """
        layouts = [layout(tensor, self.parts) for tensor in source.tensors]
        self._take(source.steps[index], layouts, lambda name, a, b: source.read(index, name, a, b))

    def grams(self) -> Grams:
        """Estimate the Grams of all checkpoints seen. ``m`` is exact; shares of unchanged elements are not known (NaN).

        Raises:
            InvalidInput: There are fewer than two.
        """
        if len(self.steps) < 2 or self.m is None:
            raise InvalidInput(explain(f"{len(self.steps)} checkpoint(s)", "it takes two to move", "Add more of them"))
        moments = []
        for unit in range(len(self.m)):
            s = np.stack([point[unit] for point in self.points])
            y = np.concatenate([s[:1], np.diff(s, axis=0)])
            moments.append(y @ y.T)
        whole = np.stack(moments)
        g, c = whole[:, 1:, 1:].copy(), whole[:, 0, 1:].copy()
        known = facts_of(tuple(self.steps), self.layouts, g, c, self.m)
        return Grams(**known, unchanged=np.full(c.shape, np.nan), sketch=self.k, bytes_read=self.bytes_read)

    def save(self, path: str | Path) -> Path:
        """Write everything, so that `open` can go on with later checkpoints.

        Raises:
            StorageError: It cannot be written.
        """
        tensors = {
            f"{unit}": torch.from_numpy(np.stack([point[unit] for point in self.points]))
            for unit in range(len(self.points[0]) if self.points else 0)
        }
        if self.m is not None:
            tensors["m"] = torch.from_numpy(self.m)
        note = {
            "kind": "sketch",
            "schema": SCHEMA,
            "k": self.k,
            "seed": self.seed,
            "steps": self.steps,
            "bytes_read": self.bytes_read,
            "layouts": [[o.name, o.shape, str(o.dtype), o.labels, o.pieces] for o in self.layouts],
        }
        write_tensors(Path(path), tensors, json.dumps(note))
        return Path(path)

    @classmethod
    def open(cls, path: str | Path, parts: PartsOf | None = None) -> Sketcher:
        """Read what `save` wrote.

        Args:
            path: The file.
            parts: As given when it was made; a function is not stored.

        Raises:
            RunFolderError: The file is missing, damaged or of another kind.
            SchemaError: It has another version.
        """
        tensors, text = read_tensors(Path(path))
        try:
            note: dict[str, Any] = json.loads(text)
            if note["kind"] != "sketch":
                raise ValueError(f"it is a {note['kind']}")
            if note["schema"] == SCHEMA:
                made = cls(note["k"], note["seed"], parts)
                made.steps, made.bytes_read = list(note["steps"]), int(note["bytes_read"])
                made.layouts = [
                    Layout(n, tuple(s), getattr(torch, d.removeprefix("torch.")), tuple(ls), tuple(map(tuple, ps)))
                    for n, s, d, ls, ps in note["layouts"]
                ]
                units = [tensors[str(i)].numpy() for i in range(sum(len(o.labels) for o in made.layouts))]
                made.points = [[unit[i] for unit in units] for i in range(len(made.steps))]
                made.m = tensors["m"].numpy() if made.steps else None
                return made
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise RunFolderError(explain(f"The file {path} holds no sketch", why, "Sketch again")) from error
        remedy = "Sketch again, or use the thalweg that wrote it"
        raise SchemaError(explain(f"The file {path} has schema {note['schema']}", f"{SCHEMA} is read here", remedy))

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        last = f", last step {self.steps[-1]}" if self.steps else ""
        return f"Sketcher of {len(self)} checkpoints in {self.k} dimensions{last}"

    def _take(self, step: int, layouts: list[Layout], read: Callable[[str, int, int], Tensor]) -> None:
        if self.steps and (step <= self.steps[-1] or layouts != self.layouts):
            other = next((b.name for a, b in zip(self.layouts, layouts) if a != b), None)
            found = f"Step {step} after step {self.steps[-1]}" if step <= self.steps[-1] else f"{other!r} is another"
            raise InvalidInput(
                explain(found, "a trajectory is one sequence of the same tensors", "Start a Sketcher for another run")
            )
        sums, squares, size = [], [], 0
        for one in layouts:
            short = [min(self.k, count) for count in one.sizes()]
            sketches, square = [np.zeros(count) for count in short], [0.0] * len(short)
            for unit, tile, x in _unit_tiles(one, read):
                if not np.isfinite(x).all():
                    raise NonFiniteWeights(
                        explain(
                            f"The checkpoint of step {step} has NaN or infinite values in {one.name!r}",
                            "no angle with it is defined",
                            "End the trajectory before that step, or leave the tensor out",
                        ),
                        step,
                        one.name,
                    )
                square[unit] += float(x @ x)
                # What has at most k elements is its own projection.
                lossless = one.sizes()[unit] <= self.k
                sketches[unit] += x if lossless else project(x, self.k, self.seed, one.units[unit], tile)
            sums += sketches
            squares += square
            size += one.numel * one.dtype.itemsize
        if not self.steps:
            self.layouts, self.m = layouts, np.array(squares)
        self.steps.append(int(step))
        self.points.append(sums)
        self.bytes_read += size


def _unit_tiles(one: Layout, read: Callable[[str, int, int], Tensor]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield ``(part, number, elements)``: the tiles of each part, read in ranges of the tensor, once."""
    buffers = [np.empty(min(TILE, size)) for size in one.sizes()]
    filled, number = [0] * len(buffers), [0] * len(buffers)
    for start in range(0, one.numel, TILE):
        stop = min(start + TILE, one.numel)
        row = read(one.name, start, stop).to("cpu", torch.float64).numpy()
        for low, high, part in one.cut(start, stop):
            while low < high:
                count = min(high - low, len(buffers[part]) - filled[part])
                buffers[part][filled[part] : filled[part] + count] = row[low : low + count]
                filled[part], low = filled[part] + count, low + count
                if filled[part] == len(buffers[part]):
                    yield part, number[part], buffers[part]
                    filled[part], number[part] = 0, number[part] + 1
    for part, count in enumerate(filled):
        if count:
            yield part, number[part], buffers[part][:count]
