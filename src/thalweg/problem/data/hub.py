"""Published data sets through the ``datasets`` package, by name or from a local copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.problem.data.base import Data, labels, standardise, take

HUB = {
    "mnist": ("ylecun/mnist", None, "image", "label", 10),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None, "image", "label", 10),
    "cifar10": ("uoft-cs/cifar10", None, "img", "label", 10),
    "cifar100": ("uoft-cs/cifar100", None, "img", "fine_label", 100),
    "imagenet": ("ILSVRC/imagenet-1k", None, "image", "label", 1000),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1", "text", None, 257),
}
"""Name here: repository, configuration, input column, label column, outputs."""

STREAMED = {"imagenet"}
"""Larger than memory: read as they are iterated."""


class Streamed:
    """A re-iterable stream of ``(images, labels)`` batches, decoded and resized as they are read."""

    def __init__(self, source: Any, columns: tuple[str, str], side: int, batch: int, limit: int | None) -> None:
        self.source, self.columns, self.side, self.batch, self.limit = source, columns, side, batch, limit

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[Tensor] = []
        classes: list[int] = []
        for number, row in enumerate(self.source):
            if number == self.limit:
                break
            images.append(_pixels(row[self.columns[0]], self.side))
            classes.append(int(row[self.columns[1]]))
            if len(images) == self.batch:
                yield standardise(torch.stack(images)), torch.tensor(classes)
                images, classes = [], []
        if images:
            yield standardise(torch.stack(images)), torch.tensor(classes)


def from_hub(
    name: str, path: Path | None, samples: int | None, standardised: bool, train: bool, length: int, batch: int = 256
) -> Data:
    """Return a published data set.

    Args:
        name: A key of ``HUB``.
        path: A local copy: a folder written by ``save_to_disk``, or one of parquet files. None: by name, from the
            network or the cache.
        samples: How many; None for all.
        standardised: Whether each image is standardised on its own.
        train: Training or test split.
        length: Tokens per sequence, for text (bytes are the tokens).
        batch: Images per batch, for streams.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InvalidInput: The copy cannot be read, or the columns differ.
    """
    repository, configuration, column, label, outputs = HUB[name]
    split = "train" if train else ("validation" if name == "imagenet" else "test")
    source = _open(repository, configuration, path, split, streaming=name in STREAMED)
    names = getattr(source, "column_names", None) or []
    if names and (column not in names or (label and label not in names)):
        raise InvalidInput(
            explain(
                f"{name} has columns {names}",
                f"{column!r} and {label!r} were expected",
                "Check that this is the right copy",
            )
        )
    if label is None:
        return _text(name, source, column, samples, length)
    if name in STREAMED:
        return Data(
            name=name,
            inputs=None,
            targets=None,
            outputs=outputs,
            task="classification",
            description=f"{samples or 'all'} {name} images, streamed",
            dataset=Streamed(source, (column, label), 224, batch, samples),
            shape=(3, 224, 224),
        )
    count = take(samples, len(source), name)
    rows = source.select(range(count))
    images = torch.stack([_pixels(image, None) for image in rows[column]])
    return Data(
        name=name,
        inputs=standardise(images) if standardised else images,
        targets=labels(torch.tensor([int(v) for v in rows[label]]), outputs),
        outputs=outputs,
        task="classification",
        description=f"{count:,} {name} images of {images.shape[2]} x {images.shape[3]} pixels in {outputs} classes",
    )


def _open(repository: str, configuration: str | None, path: Path | None, split: str, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(
            explain(
                "The package datasets is not installed",
                f"{repository} is read through it",
                "pip install 'thalweg[data]'",
            )
        ) from error
    try:
        if path is None:
            return datasets.load_dataset(repository, configuration, split=split, streaming=streaming)
        if (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))[split]
        files = sorted(str(f) for f in path.rglob(f"*{split}*.parquet")) or sorted(
            str(f) for f in path.rglob("*.parquet")
        )
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    except Exception as error:  # datasets raises dozens of kinds; each means that the data cannot be had
        raise InvalidInput(
            explain(
                f"{path or repository} could not be opened: {type(error).__name__}: {str(error)[:200]}",
                "neither a local copy nor the network gave the data",
                "Pass the folder of a copy made with save_to_disk, or of parquet files",
            )
        ) from error


def _pixels(image: Any, side: int | None) -> Tensor:
    """Return ``(C, H, W)`` in [0, 1] from a PIL image or nested lists; cut to the middle square of ``side``."""
    if hasattr(image, "convert"):
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        if side is not None:
            image = image.convert("RGB")
            scale = side / min(image.size)
            image = image.resize((max(round(image.width * scale), side), max(round(image.height * scale), side)))
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
    array = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


def _text(name: str, source: Any, column: str, samples: int | None, length: int) -> Data:
    """Cut the joined text into sequences of bytes; token 256 marks the end of a document."""
    needed = None if samples is None else samples * length + 1
    tokens: list[np.ndarray] = []
    size = 0
    for row in source:
        encoded = np.frombuffer(row[column].encode(), dtype=np.uint8).astype(np.int64)
        tokens += [encoded, np.array([256])]
        size += len(encoded) + 1
        if needed is not None and size >= needed:
            break
    flat = torch.from_numpy(np.concatenate(tokens)) if tokens else torch.zeros(0, dtype=torch.int64)
    count = take(samples, max((len(flat) - 1) // length, 0), name)
    span = count * length
    return Data(
        name=name,
        inputs=flat[:span].reshape(count, length).contiguous(),
        targets=flat[1 : span + 1].reshape(count, length).contiguous(),
        outputs=257,
        task="tokens",
        description=f"{count:,} sequences of {length} bytes of {name}",
    )
