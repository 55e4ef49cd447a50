"""Data as a frozen, re-iterable sequence of batches, whatever it came as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from thalweg.errors import EmptyData, InvalidInput, explain
from thalweg.problem.guards import preserved_rng
from thalweg.problem.losses import leading_size

CACHE_LIMIT = 1 << 30
"""Batches of a Dataset or loader stay in memory below this many bytes; collating again costs far more."""


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor of a nested dict, list or tuple."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)({key: map_tensors(function, child) for key, child in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, child) for child in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, child) for child in tree)
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """List the tensors of a nested batch, in order."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, tree)  # type: ignore[func-returns-value]
    return found


def not_indexable() -> InvalidInput:
    """Build the error for samples that were asked for by index from a loader."""
    return InvalidInput(
        explain(
            "Samples were asked for by index from a loader of batches",
            "a loader can only be read in its own order",
            "Give the Problem tensors or a map-style Dataset",
        )
    )


class Batches(ABC):
    """A source of batches that gives the same ones each time it is iterated."""

    frozen = False
    """Whether two passes cannot differ, so that the determinism guard need not compare the data."""
    generators: Sequence[torch.Generator] = ()
    """Random generators of the source's own."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield batches on whatever device they live on."""

    def subset(self, indices: Tensor) -> Batches:
        """Return the samples at ``indices`` as one source; only for data that can be indexed."""
        raise not_indexable()

    def recut(self, batch_size: int) -> Batches:
        """Return the same samples in batches of another size; only for data that can be indexed."""
        raise not_indexable()

    @property
    def samples(self) -> int | None:
        """Number of samples where it is known without reading."""
        return None


class TensorBatches(Batches):
    """Nested tensors with a common first dimension, cut into views."""

    frozen = True

    def __init__(self, data: Any, batch_size: int | None) -> None:
        sizes = {t.shape[0] if t.ndim else None for t in tensors_in(data)}
        if len(sizes) != 1 or None in sizes:
            raise InvalidInput(
                explain(
                    f"The tensors have {sorted(map(str, sizes))} entries along their first dimension",
                    "inputs and targets must name the same samples",
                    "Pass tensors whose first dimension is the sample",
                )
            )
        self.data, self.count = data, int(sizes.pop() or 0)
        self.batch_size = batch_size or max(self.count, 1)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self.batch_size):
            yield map_tensors(lambda t, s=start: t[s : s + self.batch_size], self.data)  # type: ignore[misc]

    def subset(self, indices: Tensor) -> Batches:
        """Return the samples at ``indices``."""
        return TensorBatches(map_tensors(lambda t: t[indices.to(t.device)], self.data), self.batch_size)

    def recut(self, batch_size: int) -> Batches:
        """Return views of the same tensors."""
        return TensorBatches(self.data, batch_size)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.count


class DatasetBatches(Batches):
    """A map-style Dataset, collated in its own order."""

    def __init__(self, dataset: Dataset[Any], batch_size: int | None, indices: Sequence[int] | None = None) -> None:
        self.dataset = dataset
        self.indices = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]
        self.batch_size = batch_size or max(len(self.indices), 1)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.indices), self.batch_size):
            with preserved_rng():  # a transform may draw, also where the guard is off
                batch = default_collate([self.dataset[i] for i in self.indices[start : start + self.batch_size]])
            yield batch

    def subset(self, indices: Tensor) -> Batches:
        """Return the samples at ``indices``."""
        return DatasetBatches(self.dataset, self.batch_size, [self.indices[i] for i in indices.tolist()])

    def recut(self, batch_size: int) -> Batches:
        """Return the same samples, collated otherwise."""
        return DatasetBatches(self.dataset, batch_size, self.indices)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.indices)


class LoaderBatches(Batches):
    """Any re-iterable of batches, such as a ``DataLoader``."""

    def __init__(self, loader: Iterable[Any]) -> None:
        if isinstance(loader, Iterator):
            raise InvalidInput(
                explain(
                    f"The data is a one-shot iterator ({type(loader).__name__})",
                    "every evaluation reads the data again",
                    "Pass a list of batches, a DataLoader, or a Dataset",
                )
            )
        self.loader = loader
        self.frozen = isinstance(loader, (list, tuple))
        generator = getattr(loader, "generator", None)
        self.generators = (generator,) if isinstance(generator, torch.Generator) else ()

    def __iter__(self) -> Iterator[Any]:
        with preserved_rng(*self.generators):  # a DataLoader draws a base seed even where it does not shuffle
            iterator = iter(self.loader)
        while True:
            with preserved_rng(*self.generators):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch


class CachedBatches(Batches):
    """Batches read once, kept in memory; indexing still goes to the source."""

    frozen = True

    def __init__(self, source: Batches, batches: list[Any]) -> None:
        self.source, self.kept = source, batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.kept)

    def subset(self, indices: Tensor) -> Batches:
        """Return the samples at ``indices`` of the source."""
        return self.source.subset(indices)

    def recut(self, batch_size: int) -> Batches:
        """Return the source, cut otherwise."""
        return self.source.recut(batch_size)

    @property
    def samples(self) -> int | None:
        """Number of samples of the source."""
        return self.source.samples


def make_batches(data: Any, batch_size: int | None) -> Batches:
    """Recognise tensors, a Dataset, or a re-iterable of batches.

    Raises:
        InvalidInput: Neither of these, or a batch size where the batches are already made.
        EmptyData: There is no sample.
    """
    if batch_size is not None and batch_size < 1:
        raise InvalidInput(
            explain(f"batch_size is {batch_size}", "a batch holds at least one sample", "Pass None for one batch")
        )
    batches: Batches
    if isinstance(data, (tuple, list)) and data and _is_tensor_tree(data[0]) and _same_samples(data):
        batches = TensorBatches(tuple(data), batch_size)
    elif isinstance(data, dict) and data and _is_tensor_tree(data):
        batches = TensorBatches(data, batch_size)
    elif isinstance(data, TensorDataset):
        batches = TensorBatches(tuple(data.tensors), batch_size)
    elif isinstance(data, IterableDataset):
        raise InvalidInput(
            explain(
                f"The data is an iterable-style Dataset ({type(data).__name__})",
                "whether it yields samples or batches cannot be seen",
                "Pass DataLoader(dataset, batch_size=n) for samples, DataLoader(dataset, batch_size=None) for batches",
            )
        )
    elif isinstance(data, Dataset):
        batches = DatasetBatches(data, batch_size)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor)):
        if batch_size is not None:
            raise InvalidInput(
                explain(
                    "batch_size was given together with a loader",
                    "the loader has already cut its batches",
                    "Set the batch size in the loader, or pass tensors or a Dataset",
                )
            )
        batches = LoaderBatches(data)
    else:
        raise InvalidInput(
            explain(
                f"The data is a {type(data).__name__}",
                "a Problem needs (inputs, targets) tensors, a Dataset, or a re-iterable of batches",
                "Pass data=(x, y)",
            )
        )
    if batches.samples == 0:
        raise EmptyData(explain("The data holds no sample", "a mean over nothing is undefined", "Check its filter"))
    return batches


def positions(indices: Tensor | slice | Sequence[int], count: int) -> Tensor:
    """Return ``indices`` into ``count`` samples as int64 on the CPU.

    Raises:
        InvalidInput: They are no whole numbers, or out of range.
        EmptyData: There is none.
    """
    if isinstance(indices, slice):
        indices = range(*indices.indices(count))
    index = torch.as_tensor(indices)
    if index.dtype == torch.bool:
        if index.shape != (count,):
            raise InvalidInput(
                explain(
                    f"The mask has shape {tuple(index.shape)}",
                    f"the data has {count} samples",
                    "Pass one entry each",
                )
            )
        index = index.nonzero()
    index = index.reshape(-1).cpu()
    if index.is_floating_point() and index.numel():
        raise InvalidInput(explain(f"The indices are {index.dtype}", "a sample has a whole number", "Pass integers"))
    if index.numel() == 0:
        raise EmptyData(explain("No index was given", "a mean over nothing is undefined", "Pass some indices"))
    if int(index.min()) < -count or int(index.max()) >= count:
        raise InvalidInput(
            explain(
                f"Indices reach from {int(index.min())} to {int(index.max())}",
                f"the data has {count} samples",
                f"Stay within 0 and {count - 1}",
            )
        )
    return index.long()


def cache(batches: Batches, limit: int = CACHE_LIMIT) -> Batches:
    """Keep copies of ``batches`` if they take less than ``limit`` bytes, else return them as they are.

    Copies, because a loader may fill the same memory anew for each batch, or lend what a worker process shares.
    """
    if batches.frozen:
        return batches
    kept, size = [], 0
    for batch in batches:
        size += sum(t.numel() * t.element_size() for t in tensors_in(batch))
        if size > limit:
            return batches
        kept.append(map_tensors(torch.clone, batch))
    return CachedBatches(batches, kept)


def _is_tensor_tree(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return True
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return bool(children) and all(_is_tensor_tree(child) for child in children)


def _same_samples(data: Sequence[Any]) -> bool:
    """Whether ``data`` is (inputs, targets) rather than a list of batches."""
    if isinstance(data, tuple):
        return all(_is_tensor_tree(part) for part in data)
    return len(data) == 2 and all(isinstance(part, Tensor) for part in data) and leading_size(data) is not None


def checksum(batch: Any) -> Tensor:
    """Two sums per tensor, float64, that change when samples are permuted or altered."""
    sums = []
    for t in tensors_in(batch):
        flat = t.detach().reshape(-1).to("cpu", torch.float64)
        ramp = torch.linspace(1.0, 2.0, flat.numel(), dtype=torch.float64)
        sums += [flat.sum(), flat @ ramp]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)
