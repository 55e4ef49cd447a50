"""How many bytes a recorded run will take, and whether there is room for them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thalweg.errors import StorageError, explain
from thalweg.runs.files import storing
from thalweg.runs.retention import Retention
from thalweg.runs.sketches import Projection


@dataclass(frozen=True)
class Prediction:
    """Bytes of a run: ``checkpoints * checkpoint_bytes + sketches * sketch_bytes``, headers and rows apart.

    Attributes:
        checkpoints: How many weights are kept.
        checkpoint_bytes: Bytes of each.
        sketches: At most how many projections.
        sketch_bytes: Bytes of each.
    """

    checkpoints: int
    checkpoint_bytes: int
    sketches: int
    sketch_bytes: int

    @property
    def bytes(self) -> int:
        """All together."""
        return self.checkpoints * self.checkpoint_bytes + self.sketches * self.sketch_bytes

    def __str__(self) -> str:
        parts = [f"{self.checkpoints:,} checkpoints of {self.checkpoint_bytes:,} bytes"]
        if self.sketches:
            parts.append(f"{self.sketches:,} projections of {self.sketch_bytes:,} bytes")
        return " and ".join(parts) + f": {self.bytes:,} bytes"


def predict(
    tensors: Mapping[str, Tensor],
    retention: Retention,
    projection: Projection,
    steps: int | None,
    dtype: torch.dtype | None = None,
) -> Prediction:
    """Predict the bytes of a run of ``steps`` updates; None counts the first and the last point alone.

    Example:
        >>> print(predict({"w": torch.zeros(1000)}, Retention(every=10), Projection(64), 100))
        11 checkpoints of 4,000 bytes: 44,000 bytes
        >>> print(predict({"w": torch.zeros(1000)}, Retention(keep="sketches"), Projection(64), 1000))
        2 checkpoints of 4,000 bytes and 11 projections of 520 bytes: 13,720 bytes
    """
    sizes = [tensor.numel() for tensor in tensors.values()]
    kept, sketches = retention.counts(steps) if steps is not None else (2, 0)
    weights = sum(t.numel() * (dtype or t.dtype).itemsize for t in tensors.values())
    return Prediction(kept, weights, sketches, 8 * (sum(map(projection.width, sizes)) + len(sizes)))


def check_room(folder: Path, prediction: Prediction, budget: int | None) -> None:
    """Raise where the predicted bytes exceed the budget or what is free where ``folder`` is or will be.

    Raises:
        StorageError: They do; the message has the numbers.
    """
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    with storing(there):
        free = shutil.disk_usage(there).free
    for allowed, what in ((budget, "the budget is"), (free, f"free at {there} are")):
        if allowed is not None and prediction.bytes > allowed:
            raise StorageError(
                explain(
                    f"The run would keep {prediction}",
                    f"{what} {allowed:,} bytes",
                    "Record less often (every=), keep fewer weights (keep=, dtype=), or give it more room",
                )
            )
