"""Published data sets through the ``datasets`` package, by name or from a local copy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.problem.data.base import Data, choose, labels, quotas, standardise, take
from thalweg.problem.data.copies import Published, open_split

HUB = {
    "mnist": Published("ylecun/mnist", None, "image", "label", 10, mode="L"),
    "fashion_mnist": Published("zalando-datasets/fashion_mnist", None, "image", "label", 10, mode="L"),
    "cifar10": Published("uoft-cs/cifar10", None, "img", "label", 10),
    "cifar100": Published("uoft-cs/cifar100", None, "img", "fine_label", 100),
    "imagenet": Published("ILSVRC/imagenet-1k", None, "image", "label", 1000, side=224, test="validation"),
    "wikitext103": Published("Salesforce/wikitext", "wikitext-103-raw-v1", "text", None, 257),
}
"""What can be had by name. Where pictures are resized, the set is larger than memory and is streamed; so is text unless
a number of sequences is asked for."""


class Streamed:
    """A re-iterable stream of ``(images, labels)`` batches, decoded and resized as they are read.

    Args:
        source: Rows, in an order that is the same at each pass.
        published: Which columns to read, and how.
        batch: Images in a batch.
        samples: How many at most; None for all.
        classes: Keep only the first so many classes, with equal shares of ``samples``.
        standardised: Whether each image is standardised on its own.
    """

    def __init__(
        self,
        source: Any,
        published: Published,
        batch: int,
        samples: int | None,
        classes: int | None,
        standardised: bool,
    ) -> None:
        self.source, self.published, self.batch = source, published, batch
        self.samples, self.classes, self.standardised = samples, classes, standardised
        self.each = quotas(samples, classes, published.outputs)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self._chosen()
        while part := list(itertools.islice(rows, self.batch)):
            images = torch.stack([image for image, _ in part])
            targets = labels(torch.tensor([label for _, label in part]), self.classes or self.published.outputs)
            yield (standardise(images) if self.standardised else images), targets

    def _chosen(self) -> Iterator[tuple[Tensor, int]]:
        seen: Counter[int] = Counter()
        rows = iter(self.source)
        while self.samples is None or seen.total() < self.samples:
            with _decoding(self.published.repository):
                row = next(rows, None)
            if row is None:
                return
            label = int(row[self.published.label])
            if self.classes is not None and (label >= self.classes or (self.each and seen[label] >= self.each)):
                continue
            seen[label] += 1
            with _decoding(self.published.repository):
                image = pixels(row[self.published.column], self.published.mode, self.published.side)
            yield image, label


def from_hub(
    name: str,
    path: Path | None,
    samples: int | None,
    standardised: bool,
    train: bool,
    length: int,
    classes: int | None = None,
    batch: int = 256,
) -> Data:
    """Return a published data set.

    Args:
        name: A key of ``HUB``.
        path: A local copy: a folder written by ``save_to_disk``, or one of parquet files. None: by name, from the
            network or the cache.
        samples: How many; None for all, which streams text.
        standardised: Whether each image is standardised on its own.
        train: Training or test split.
        length: Tokens per sequence, for text (bytes are the tokens).
        classes: Keep only the first so many classes of images.
        batch: Samples per batch, for streams.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InvalidInput: The copy cannot be read or has no such split, the columns differ, a picture is damaged.
    """
    published = HUB[name]
    column, label = published.column, published.label
    streaming = published.side is not None or label is None
    source = open_split(published, path, "train" if train else published.test, streaming=streaming)
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
        return _text(name, published, source, samples, length, batch)
    outputs = classes or published.outputs
    if published.side is not None:
        return Data(
            name=name,
            inputs=None,
            targets=None,
            outputs=outputs,
            task="classification",
            description=f"{samples or 'all'} {name} images in {outputs} classes, streamed",
            dataset=Streamed(source, published, batch, samples, classes, standardised),
            shape=(3, published.side, published.side),
        )
    targets = torch.tensor([int(value) for value in source[label]], dtype=torch.int64)
    index = choose(targets, samples, classes, published.outputs, name)
    with _decoding(name):
        images = torch.stack([pixels(image, published.mode) for image in source.select(index.tolist())[column]])
    return Data(
        name=name,
        inputs=standardise(images) if standardised else images,
        targets=targets[index],
        outputs=outputs,
        task="classification",
        description=f"{len(index):,} {name} images of {images.shape[2]} x {images.shape[3]} pixels "
        f"in {outputs} classes",
    )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Say of pictures that cannot be decoded, or differ in size, which data they are from."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:
        raise InvalidInput(
            explain(
                f"A picture of {name} cannot be used: {str(error)[:200]}",
                "it is damaged, of another size than the rest, or out of reach",
                "Copy the data again",
            )
        ) from error


def pixels(image: Any, mode: str, side: int | None = None) -> Tensor:
    """Return ``(C, H, W)`` in [0, 1] from a Pillow image; resized and cut to the middle square of ``side``."""
    image = image if image.mode == mode else image.convert(mode)
    if side is not None:
        scale = side / min(image.size)
        image = image.resize((max(round(image.width * scale), side), max(round(image.height * scale), side)))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    array = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


class StreamedText:
    """A re-iterable stream of ``(tokens, next tokens)`` batches, cut from the joined text as it is read.

    Bytes are the tokens; token 256 ends a document. A rest shorter than a sequence is left out.

    Args:
        source: Rows, in an order that is the same at each pass.
        column: Where their text is.
        length: Tokens per sequence.
        batch: Sequences in a batch.
    """

    def __init__(self, source: Any, column: str, length: int, batch: int) -> None:
        self.source, self.column, self.length, self.batch = source, column, length, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows = self.windows()
        while part := list(itertools.islice(windows, self.batch)):
            whole = torch.from_numpy(np.stack(part).astype(np.int64))
            yield whole[:, :-1].contiguous(), whole[:, 1:].contiguous()

    def windows(self) -> Iterator[np.ndarray]:
        """Yield ``length + 1`` tokens at a time; the last of one is the first of the next."""
        size, rest = self.length, np.zeros(0, dtype=np.uint16)
        for row in self.source:
            encoded = np.frombuffer(str(row[self.column] or "").encode(), dtype=np.uint8).astype(np.uint16)
            rest = np.concatenate([rest, encoded, np.array([256], dtype=np.uint16)])
            count = max((len(rest) - 1) // size, 0)
            for start in range(0, count * size, size):
                yield rest[start : start + size + 1]
            rest = rest[count * size :]


def _text(name: str, published: Published, source: Any, samples: int | None, length: int, batch: int) -> Data:
    if length < 2:
        raise InvalidInput(explain(f"Sequences of {length} bytes", "a next one must follow", "Use 2 or more"))
    stream = StreamedText(source, published.column, length, batch)
    described = f"{'all' if samples is None else f'{samples:,}'} sequences of {length} bytes of {name}"
    if samples is None:
        return Data(
            name=name,
            inputs=None,
            targets=None,
            outputs=published.outputs,
            task="tokens",
            description=f"{described}, streamed",
            dataset=stream,
            shape=(length,),
        )
    found = list(itertools.islice(stream.windows(), max(samples, 0)))
    take(samples, len(found), name)
    whole = torch.from_numpy(np.stack(found).astype(np.int64))
    return Data(
        name=name,
        inputs=whole[:, :-1].contiguous(),
        targets=whole[:, 1:].contiguous(),
        outputs=published.outputs,
        task="tokens",
        description=described,
    )
