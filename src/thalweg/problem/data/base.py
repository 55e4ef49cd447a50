"""What every loader returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain

Task = Literal["classification", "tokens"]


@dataclass(frozen=True)
class Data:
    """Samples, ready for a `Problem`.

    Attributes:
        name: What it is called.
        inputs: Tensor ``(N, *input_shape)``; float for images, int64 for tokens. None where ``dataset`` is given.
        targets: int64 tensor of class indices, ``(N,)``, or of next tokens, ``(N, T)``,
            with -100 where nothing is asked.
        outputs: Classes, or size of the vocabulary.
        task: ``"classification"`` or ``"tokens"``.
        description: One sentence for reports.
        dataset: Re-iterable source of batches ``(inputs, targets)``, for what is larger than memory.
        shape: Input shape where there is no tensor to read it off.
    """

    name: str
    inputs: Tensor | None
    targets: Tensor | None
    outputs: int
    task: Task
    description: str
    dataset: Iterable[Any] | None = None
    shape: tuple[int, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.inputs.shape[1:]) if self.inputs is not None else self.shape

    @property
    def fingerprint(self) -> str:
        """Hex digest of name, inputs and targets; of the name and description alone for a stream."""
        digest = hashlib.blake2b(f"{self.name}/{self.outputs}".encode(), digest_size=16)
        if self.inputs is None or self.targets is None:
            digest.update(self.description.encode())
            return digest.hexdigest()
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def pair(self) -> tuple[Tensor, Tensor] | Iterable[Any]:
        """Return what a `Problem` takes as data."""
        if self.inputs is None or self.targets is None:
            assert self.dataset is not None
            return self.dataset
        return self.inputs, self.targets


def standardise(images: Tensor) -> Tensor:
    """Subtract each image's own mean and divide by its own deviation, over all pixels and channels."""
    flat = images.reshape(len(images), -1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    return (centred / centred.std(dim=1, keepdim=True, correction=0).clamp_min(1e-8)).reshape(images.shape)


def take(count: int | None, available: int, what: str) -> int:
    """Return how many samples to use.

    Raises:
        InvalidInput: More were asked for than there are, or fewer than one.
    """
    if count is None:
        return available
    if not 1 <= count <= available:
        raise InvalidInput(
            explain(f"{count} samples of {what} were asked for", f"there are {available}", f"Ask for 1 to {available}")
        )
    return count


def quotas(samples: int | None, classes: int | None, available: int) -> int | None:
    """Return how many samples of each class to take, or None for all there are.

    Raises:
        InvalidInput: There are fewer classes, or they cannot have equal shares of ``samples``.
    """
    if classes is None:
        return None
    if not 2 <= classes <= available or (samples is not None and (samples < 1 or samples % classes)):
        raise InvalidInput(
            explain(
                f"{'all' if samples is None else samples} samples of {classes} classes were asked for",
                f"there are {available} classes, and each kept one has an equal share of the samples",
                f"Ask for 2 to {available} classes, and for a multiple of that many samples",
            )
        )
    return None if samples is None else samples // classes


def choose(targets: Tensor, samples: int | None, classes: int | None, available: int, what: str) -> Tensor:
    """Return which samples to use, in order: the first ones, or the first of each of the first ``classes``.

    Args:
        targets: Class of every sample, ``(N,)``.
        samples: How many; None for all.
        classes: Keep so many classes, with equal shares of ``samples``; None for all.
        available: How many classes there are.
        what: Name of the data, for errors.

    Returns:
        Indices, int64.

    Raises:
        InvalidInput: There are not so many.

    Example:
        >>> choose(torch.tensor([0, 2, 1, 1, 0, 1]), 4, 2, 3, "some").tolist()
        [0, 2, 3, 4]
    """
    labels(targets, available)
    each = quotas(samples, classes, available)
    if classes is None:
        return torch.arange(take(samples, len(targets), what))
    kept = []
    for number in range(classes):
        found = (targets == number).nonzero().reshape(-1)
        kept.append(found[: take(each, len(found), f"class {number} of {what}")])
    return torch.cat(kept).sort().values


def labels(values: Tensor, classes: int) -> Tensor:
    """Check class indices and return them as int64."""
    values = values.to(torch.int64)
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= classes):
        raise InvalidInput(
            explain(
                f"Labels run from {int(values.min())} to {int(values.max())}",
                f"there are {classes} classes",
                "Check that this is the file you mean",
            )
        )
    return values
