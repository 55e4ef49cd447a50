"""How the losses of R copies of a model come about: row by row, or by vmap. Both take any module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from thalweg.errors import InvalidInput, explain
from thalweg.problem.batches import map_tensors
from thalweg.problem.forms import ModelLoss, pair
from thalweg.problem.guards import evaluation
from thalweg.problem.parameters import slots
from thalweg.problem.problem import Problem


class Rows(Protocol):
    """The losses of R rows of parameters on one batch."""

    name: str

    def losses(self, leaves: Sequence[Tensor], batch: Any, own: bool) -> Tensor:
        """Return the differentiable mean losses, shape ``(R,)``.

        Args:
            leaves: One tensor per parameter, shape ``(R, *shape)``.
            batch: A batch of the problem; with ``own`` every tensor in it has a leading dimension R.
            own: Whether each row has a batch of its own.
        """


class Loop:
    """The problem called once per row: any module, and what the other ways are compared with."""

    name = "loop"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def losses(self, leaves: Sequence[Tensor], batch: Any, own: bool) -> Tensor:
        """Return the losses, one call of the model each."""
        rows = zip(*(leaf.unbind() for leaf in leaves))
        parts = (map_tensors(lambda t, r=r: t[r], batch) if own else batch for r in range(len(leaves[0])))  # type: ignore[misc]
        return torch.stack([self.problem.loss(row, part) for row, part in zip(rows, parts)])


class Vmap:
    """One call of the model for all rows through ``torch.func.vmap``.

    Buffers get a copy per row, so a BatchNorm in training mode normalises each row by the statistics of its own batch.
    """

    name = "vmap"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._function = _MeanLoss(problem.model, problem._function.loss, problem._form is ModelLoss)
        self._buffers = [name for name, _ in slots(self._function, "_buffers")]

    def losses(self, leaves: Sequence[Tensor], batch: Any, own: bool) -> Tensor:
        """Return the losses, by one vectorised call."""
        problem = self.problem
        constants = problem._constants()
        buffers = {
            name: constants[name].expand(len(leaves[0]), *constants[name].shape).clone() for name in self._buffers
        }

        def one(row: tuple[Tensor, ...], state: dict[str, Tensor], part: Any) -> Tensor:
            tensors = {**constants, **state}
            for known, leaf, dtype in zip(problem._names, row, problem._selection.dtypes):
                own_dtype = problem._cast is None and problem._selection.mixed
                tensors.update(dict.fromkeys(known, leaf.to(dtype) if own_dtype else leaf))
            value: Tensor = functional_call(self._function, tensors, (part,), tie_weights=False)
            return value

        with evaluation(problem.device):
            found: Tensor = vmap(one, in_dims=(0, 0, 0 if own else None), randomness="error")(
                tuple(leaves), buffers, batch
            )
        return found


class _MeanLoss(nn.Module):
    """Model and loss under the names that a `Problem` gives them; only the mean comes back, not the count."""

    def __init__(self, model: nn.Module, loss: Any, calls_model: bool) -> None:
        super().__init__()
        self.model, self.loss, self.calls_model = model, loss, calls_model

    def forward(self, batch: Any) -> Tensor:
        if self.calls_model:
            value: Tensor = self.loss(self.model, batch)[0]
        else:
            inputs, target = pair(batch)
            value = self.loss(self.model(inputs), target)
        if value.numel() != 1:
            raise InvalidInput(
                explain(
                    f"The loss returned shape {tuple(value.shape)}",
                    "it must be one number, the mean over the batch",
                    "Reduce it with .mean()",
                )
            )
        return value.reshape(())
