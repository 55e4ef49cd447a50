"""Mini-batches as a function of the seed and the step alone: a loader without a position to lose."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain


class MiniBatches:
    """Indices of the samples of each step: every epoch is one random permutation, cut into batches.

    The last batch of an epoch is smaller where ``batch_size`` does not divide the number of samples.

    Args:
        samples: Number of samples ``N``.
        batch_size: Samples in a batch.
        seed: Root seed; epoch ``e`` uses the stream ``("batches", e)``.

    Raises:
        InvalidInput: The batch size is not between 1 and ``N``.

    Example:
        >>> batches = MiniBatches(samples=5, batch_size=2, seed=0)
        >>> sorted(torch.cat([batches.indices(step) for step in range(3)]).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= samples:
            raise InvalidInput(
                explain(
                    f"The mini-batch size is {batch_size}",
                    f"the data has {samples} samples",
                    "Choose a size between 1 and that, or None for full-batch training",
                )
            )
        self._samples, self._size, self._seed = samples, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self._samples // self._size)

    def indices(self, step: int) -> Tensor:
        """Return the samples of ``step``, int64, shape ``(batch size,)``."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            stream = _rng.generator(self._seed, "batches", epoch)
            self._epoch, self._order = epoch, torch.randperm(self._samples, generator=stream)
        return self._order[place * self._size : (place + 1) * self._size]
