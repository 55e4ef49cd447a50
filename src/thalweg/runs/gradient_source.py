"""Samples of a training loop's data by their index, read beside its loader and without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, SubsetRandomSampler, WeightedRandomSampler, default_collate

from thalweg import _rng
from thalweg.errors import EmptyData, InvalidInput, explain
from thalweg.problem.batches import Batches, tensors_in
from thalweg.runs.gradient_streams import own_stream, streams_in


class IndexedBatches(Batches):
    """Samples of a map-style Dataset by index, collated as the loader would.

    Args:
        dataset: With ``__getitem__``, and ``__getitems__`` if it reads many samples at once.
        collate: Makes a batch of a list of samples.
        population: Indices of the samples that there are; None: all.
        batch_size: Of iteration.

    Raises:
        EmptyData: There is none.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        population: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.dataset, self.collate, self.batch_size = dataset, collate, batch_size
        self.population: Sequence[int] = range(len(dataset)) if population is None else population
        if not len(self.population):
            raise EmptyData(explain("The data holds no sample", "there is nothing to draw", "Check its filter"))
        self._streams = streams_in(dataset, collate)

    def __iter__(self) -> Iterator[Any]:
        source = self.opened()
        for k, part in enumerate(torch.split(torch.arange(self.samples), self.batch_size or self.samples)):
            yield source.fetch(part, k)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.population)

    def subset(self, indices: Tensor) -> Batches:
        """Return the samples at ``indices``."""
        return IndexedBatches(
            self.dataset, self.collate, [self.population[i] for i in indices.tolist()], self.batch_size
        )

    def recut(self, batch_size: int) -> Batches:
        """Return the same samples, collated otherwise."""
        return IndexedBatches(self.dataset, self.collate, self.population, batch_size)

    def opened(self) -> IndexedBatches:
        """Return a reader whose Dataset objects are shallow copies: what they assign to attributes is theirs."""
        found = IndexedBatches(_copied(self.dataset), self.collate, self.population, self.batch_size)
        found.device = self.device
        return found

    def fetch(self, indices: Tensor, seed: int) -> Any:
        """Return the batch of the samples at ``indices``; what they draw comes from streams of ``seed``.

        Raises:
            InvalidInput: The data set or the collate function raised an exception; it is the cause.
        """
        at = [self.population[i] for i in indices.tolist()]
        samples: Any = None
        with own_stream(_rng.derive_seed(seed, "drawn samples"), self.device, self._streams):
            try:
                many = getattr(self.dataset, "__getitems__", None)
                samples = many(at) if many else [self.dataset[i] for i in at]
                batch = self.collate(samples)
            except Exception as error:
                what = "Reading" if samples is None else f"Collating by {_named(self.collate)}"
                shown = ", ".join(map(str, at[:4])) + (", ..." if len(at) > 4 else "")
                one = "" if samples is None else f"; a sample is {described(samples[0])}"
                raise InvalidInput(
                    explain(
                        f"{what} the samples {shown} raised {type(error).__name__}: {error}",
                        f"a mini-batch is made of any samples, in any order{one}",
                        "Check dataset[i]" if samples is None else "Pass collate=, as your loader has it",
                    )
                ) from error
        return dict(batch) if isinstance(batch, Mapping) and not isinstance(batch, dict) else batch


def described(tree: Any, depth: int = 2) -> str:
    """Say in words what a sample or batch is.

    Example:
        >>> described({"image": torch.zeros(2, 3), "label": (1, "cat")})
        'a dict of image: (2, 3) float32, label: a tuple of int, str'
    """
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, Mapping) and depth:
        return f"a {type(tree).__name__} of " + ", ".join(f"{k}: {described(v, depth - 1)}" for k, v in tree.items())
    if isinstance(tree, (tuple, list)) and depth:
        shown = ", ".join(described(one, depth - 1) for one in tree[:4])
        return f"a {type(tree).__name__} of {shown}{', ...' if len(tree) > 4 else ''}"
    return type(tree).__name__


def taken_apart(data: Any) -> tuple[Any, Callable[[list[Any]], Any], int | None, Sequence[int] | None]:
    """Return the Dataset, its collate function, the batch size, and the indices that count (None: all)."""
    loads = hasattr(data, "dataset") and hasattr(data, "collate_fn")
    dataset = data.dataset if loads else data
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if not indexed or not hasattr(dataset, "__len__"):
        raise InvalidInput(
            explain(
                f"The data is iterable-style ({type(dataset).__name__})"
                if not indexed
                else f"The Dataset ({type(dataset).__name__}) has no length",
                "neighbours alone can be read from it, and mini-batches of neighbours are not independent"
                if not indexed
                else "samples are drawn uniformly from 0 to len(dataset) - 1",
                "Set some thousand samples aside in a list, list(itertools.islice(dataset, 20_000)) if their order is "
                "random, and pass that with collate=; or write a map-style Dataset"
                if not indexed
                else "Give it __len__",
            )
        )
    if isinstance(dataset, dict) or tensors_in(dataset if isinstance(dataset, tuple) else None):
        raise InvalidInput(
            explain(
                f"The data is a {type(dataset).__name__}",
                "samples are taken by index, dataset[i]",
                "Pass a Dataset; tensors go to Problem(model, loss, (inputs, targets))",
            )
        )
    if not loads:
        return dataset, default_collate, None, None
    cut = getattr(data, "batch_sampler", None)
    if cut is None:
        raise InvalidInput(
            explain(
                "The loader has batch_size=None",
                "what it takes from the Dataset may be samples or whole batches",
                "Pass the Dataset itself with collate= if its items are samples",
            )
        )
    sampler = getattr(cut, "sampler", getattr(data, "sampler", None))
    if isinstance(sampler, WeightedRandomSampler):
        raise InvalidInput(
            explain(
                "The loader draws samples by weight (WeightedRandomSampler)",
                "its steps follow the gradient of a weighted mean, and probes are of the plain one",
                "Pass loader.dataset with collate=loader.collate_fn if the plain mean is what you want",
            )
        )
    population = [int(i) for i in sampler.indices] if isinstance(sampler, SubsetRandomSampler) else None
    size = getattr(data, "batch_size", None) or getattr(cut, "batch_size", None)
    return dataset, data.collate_fn, size if isinstance(size, int) else None, population


def _copied(dataset: Any) -> Any:
    """Copy a Dataset, and those that it wraps, without what they hold."""
    if isinstance(dataset, (list, tuple)):
        return dataset
    try:
        found = copy.copy(dataset)
        for name in ("dataset", "datasets"):
            inner = getattr(found, "__dict__", {}).get(name)
            if inner is not None:
                setattr(found, name, [_copied(one) for one in inner] if name == "datasets" else _copied(inner))
    except Exception:  # a class may forbid copies, in any words
        return dataset
    return found


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
