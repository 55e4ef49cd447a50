"""Data from its configuration, and the loss that fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from thalweg.errors import InvalidInput, explain
from thalweg.problem.data import builtin, files, hub
from thalweg.problem.data.base import Data
from thalweg.problem.losses import OneHotSquares

DataName = Literal[
    "digits", "sorting", "text", "cifar10", "mnist", "fashion_mnist", "cifar100", "imagenet", "wikitext103"
]
LossName = Literal["mse", "mse_mean", "cross_entropy"]


@dataclass(frozen=True)
class DataConfig:
    """Which data, how much of it, and from where."""

    name: DataName = "digits"
    """digits, sorting and text need no file; the others are read from path, or through datasets by name."""
    samples: int | None = None
    """How many samples, from the start; default all (1,000 lists for sorting), streamed for
    wikitext103 and imagenet."""
    classes: int | None = None
    """Keep only the first so many classes of images, with equal shares of the samples; default all."""
    path: str | None = None
    """Folder of local files: CIFAR-10 binaries, IDX files, a copy made by datasets, or parquet files."""
    train: bool = True
    """Training split, or test split."""
    standardise: bool = True
    """Whether each image loses its own mean and is divided by its own deviation."""
    length: int = 32
    """Tokens per sequence, for text; numbers per list, for sorting."""
    vocabulary: int = 10
    """Numbers to sort."""
    seed: int = 0
    """Seed of generated data."""


def load_data(config: DataConfig) -> Data:
    """Return the data that ``config`` names.

    Raises:
        InvalidInput: A file is missing or damaged, or more samples were asked for than there are.
        MissingExtra: A package is not installed; the message names the extra.

    Example:
        >>> load_data(DataConfig(name="sorting", samples=4, length=3)).input_shape
        (6,)
    """
    c = config
    if c.classes is not None and c.name in ("sorting", "text", "wikitext103"):
        raise InvalidInput(
            explain(f"{c.classes} classes of {c.name} were asked for", "its samples have none", "Leave classes out")
        )
    if c.name == "digits":
        return builtin.digits(c.samples, c.standardise, c.classes)
    if c.name == "sorting":
        return builtin.sorting(c.samples, c.length, c.vocabulary, c.seed)
    if c.name == "text":
        return builtin.text(c.samples, c.length)
    folder = Path(c.path) if c.path else None
    if folder is not None and not folder.is_dir():
        raise InvalidInput(explain(f"{folder} is not a folder", "data is read from there", "Pass an existing folder"))
    if folder is not None and c.name == "cifar10" and list(folder.glob("*.bin")):
        return files.cifar10(folder, c.samples, c.standardise, c.train, c.classes)
    if folder is not None and c.name in ("mnist", "fashion_mnist") and list(folder.glob("*idx*")):
        return files.idx(folder, c.samples, c.standardise, c.train, c.name, c.classes)
    return hub.from_hub(c.name, folder, c.samples, c.standardise, c.train, c.length, c.classes)


def loss_for(name: LossName, data: Data) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return the loss called ``name`` for class indices.

    ``"mse"`` is ``\frac{1}{2 B} \sum_i \sum_c (f_{ic} - y_{ic})^2`` with one-hot ``y``: half the squared error of a
    sample, summed over classes, as work on the edge of stability has it. ``"mse_mean"`` divides that by the number of
    classes: ``\frac{1}{2 B C} \sum_{ic}``, as work on phase diagrams has it. Both give the same path at learning rates
    in proportion; sharpness differs by the factor ``C``. ``"cross_entropy"`` is torch's mean over targets that are
    not -100.

    Raises:
        InvalidInput: Squared error on tokens, or an unknown name.
    """
    if name == "cross_entropy":
        return F.cross_entropy
    if name not in ("mse", "mse_mean") or data.task != "classification":
        raise InvalidInput(
            explain(
                f"The loss {name!r} does not fit {data.name}",
                "it compares outputs with one-hot classes",
                "Use cross_entropy",
            )
        )
    classes = data.outputs
    return OneHotSquares(classes, 2 if name == "mse" else 2 * classes)
