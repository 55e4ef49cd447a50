"""Data of a training loop as probes need it: any sample by its index, whatever the loader is at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._vectors import Pattern
from thalweg.errors import InvalidInput, ThalwegError, explain
from thalweg.problem import Problem
from thalweg.problem.batches import positions
from thalweg.problem.losses import batch_loss, calls_the_model, leading_size
from thalweg.runs.gradient_source import IndexedBatches, described, taken_apart
from thalweg.runs.gradient_streams import own_stream

_TRIED = 2
"""Samples of the batch that a `SampledProblem` is tried on, where the loader does not say how many are usual."""


class SampledProblem(Problem):
    """A model, a loss and the data of a training loop, for gradients of mini-batches that are drawn by index.

    Nothing is read but the samples that are drawn. They come from the loader's own ``dataset`` through its own
    ``collate_fn``; its iterator, its sampler, its workers and its place in the epoch are left alone. Each sample counts
    alike, whatever the sampler makes of it, except that a ``SubsetRandomSampler`` says which samples there are.
    Augmentation draws from a stream of its own that depends on the seed of the probe, and all streams of the user's,
    global ones and those that the data set keeps in attributes, are put back. So is what a data set notes in its own
    attributes (a counter, an open file): a shallow copy is read.

    It serves `GradientProbe.record`, `thalweg.stationarity.gradient.gradient_level` and
    `thalweg.stationarity.scale_free.scale_invariant`; `subset` makes an ordinary `Problem` of some samples. The mean
    over all data is not evaluated.

    Args:
        model: The module that is trained.
        loss: ``loss(model_output, target)``, the mean over a batch of pairs, or ``loss(model, batch)`` for batches of
            any kind, as the loader yields them, their tensors moved to ``device``; it returns the mean loss, or a pair
            of that and the count of what it is a mean over. The second form is recognised by its first parameter's
            name ``model``, or marked with `thalweg.problem.losses.batch_loss`.
        data: A ``DataLoader``; or a map-style Dataset, or any sequence of samples.
        collate: Makes a batch of a list of samples; None: the loader's, or torch's default.
        parameters: As of `Problem`.
        device: As of `Problem`.
        dtype: As of `Problem`.

    Attributes:
        batch_size: The loader's; None where it has none.

    Raises:
        InvalidInput: The data is iterable-style, is not cut into batches by the loader, or is weighted by its sampler;
            or a first batch cannot be collated or evaluated. The message says what to do.
        EmptyData: There is no sample.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(100, 3), torch.randn(100, 1))
        >>> loader = DataLoader(data, batch_size=20, shuffle=True)
        >>> problem = SampledProblem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), loader)
        >>> problem.dimension, problem.samples, problem.batch_size
        (4, 100, 20)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        data: Any,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        parameters: Pattern | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dataset, found, size, population = taken_apart(data)
        source = IndexedBatches(dataset, collate or found, population, size)
        first = source.opened().fetch(torch.arange(min(size or _TRIED, source.samples)), 0)
        self._own_loss, self._parameters, self._device = loss, parameters, device
        called = _with_count(loss) if calls_the_model(loss) else loss
        super().__init__(model, called, [first], parameters=parameters, device=device, dtype=dtype, check=False)
        source.device = self.device
        self._try(first)
        self._batches: IndexedBatches = source
        self.samples, self.batch_size = source.samples, None if size is None else min(size, source.samples)

    def batches(self) -> Iterator[tuple[Any, float]]:
        """Refuse: all data is not read.

        Raises:
            InvalidInput: Always.
        """
        raise InvalidInput(
            explain(
                "The mean over all data was asked for of a SampledProblem",
                "its data is drawn sample by sample, and augmentation makes it another at each reading",
                "Use problem.subset(indices), or a Problem on the data",
            )
        )

    def subset(self, indices: Tensor | slice | Sequence[int], *, check: bool = False) -> Problem:
        """Read some samples, once, and return an ordinary `Problem` on them; it shares the model.

        Args:
            indices: Of the samples.
            check: As of `Problem`.

        Raises:
            InvalidInput: An index is out of range.
        """
        chosen = positions(indices, self.samples)
        source = self._batches.opened()
        parts = torch.split(chosen, self.batch_size or len(chosen))
        return Problem(
            self.model,
            _with_count(self._own_loss) if calls_the_model(self._own_loss) else self._own_loss,
            [source.fetch(part, k) for k, part in enumerate(parts)],
            parameters=self._parameters,
            device=self._device,
            dtype=self._cast,
            check=check,
        )

    def recut(self, batch_size: int) -> Problem:
        """Refuse: mini-batches are cut where they are drawn.

        Raises:
            InvalidInput: Always.
        """
        raise InvalidInput(
            explain(
                "A SampledProblem was to be recut",
                "it holds no batches; a probe draws its own",
                "Give batch_size to the probe",
            )
        )

    def __repr__(self) -> str:
        return (
            f"SampledProblem({type(self.model).__name__}, {self.dimension:,} parameters, {self.samples:,} samples by "
            f"index, {self.dtype}, {self.device})"
        )

    def _weigh(self, batch: Any) -> float:
        return 1.0  # mini-batches of a probe count alike, and a first one may by chance hold no target

    def _try(self, batch: Any) -> None:
        """Evaluate a batch once, to say now what does not fit, and not after five hundred steps."""
        try:
            with own_stream(0, self.device), torch.no_grad():
                self._evaluate(self.layout.split(self.initial), self._place(batch))
        except ThalwegError:
            raise
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InvalidInput(
                explain(
                    f"The loss of a first mini-batch raised {type(error).__name__}: {error}",
                    f"the collated batch is {described(batch)}, and loss and model do not take it",
                    "Pass the loss of your own loop as loss(model, batch), and the collate function of your loader",
                )
            ) from error


def _with_count(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Let a loss of ``(model, batch)`` return the mean alone: mini-batches of a probe count alike."""

    @wraps(loss)
    def counted(model: nn.Module, batch: Any) -> Any:
        found = loss(model, batch)
        return (found, leading_size(batch) or 1) if isinstance(found, Tensor) else found

    return batch_loss(counted)
