"""Which parameters of a model form the flat vector, under which names the model knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thalweg._vectors import Layout, Pattern, matcher
from thalweg.errors import InvalidInput, explain


@dataclass(frozen=True)
class Selection:
    """The parameters in ``w``.

    Attributes:
        layout: First name and shape of each.
        slots: Every place where each is held, in the order of the layout; a tied parameter has several.
        dtypes: Their dtypes in the model.
    """

    layout: Layout
    slots: tuple[tuple[str, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def common_dtype(self) -> torch.dtype:
        """The smallest dtype that holds all of them."""
        common = self.dtypes[0]
        for dtype in self.dtypes[1:]:
            common = torch.promote_types(common, dtype)
        return common

    @property
    def mixed(self) -> bool:
        """Whether they differ in dtype."""
        return len(set(self.dtypes)) > 1


def select(model: nn.Module, pattern: Pattern | None) -> Selection:
    """Choose the parameters that require a gradient and have a name that ``pattern`` takes.

    Raises:
        InvalidInput: None is left, one is complex, or one has no shape yet.
    """
    _refuse_lazy(model)
    takes = matcher(pattern)
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    names: dict[int, list[str]] = {key: [] for key in parameters}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    matching = [key for key, known in names.items() if any(takes(name) for name in known)]
    chosen = [key for key in matching if parameters[key].requires_grad]
    if not chosen:
        raise _nothing_chosen(pattern, len(matching), [known[0] for known in names.values()])
    for key in chosen:
        if parameters[key].is_complex():
            raise InvalidInput(
                explain(
                    f"The parameter {names[key][0]!r} is complex",
                    "w is a real vector",
                    "Store it as torch.view_as_real(...), or leave it out with parameters=",
                )
            )
    layout = Layout(tuple(names[key][0] for key in chosen), tuple(parameters[key].shape for key in chosen))
    held: dict[int, list[str]] = {key: [] for key in parameters}
    for name, tensor in slots(model, "_parameters"):
        held[id(tensor)].append(name)
    return Selection(layout, tuple(tuple(held[key]) for key in chosen), tuple(parameters[key].dtype for key in chosen))


def slots(model: nn.Module, kind: Literal["_parameters", "_buffers"]) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` once for each attribute of each module that holds a tensor.

    A tensor that two modules share has two slots; a module that is registered twice has one of each. Torch's
    ``functional_call`` must be given exactly these: where it swaps one slot under two names, it puts its own
    tensor back in the place of the user's parameter.
    """
    for prefix, module in model.named_modules():
        for key, tensor in getattr(module, kind).items():
            if tensor is not None:
                yield f"{prefix}.{key}" if prefix else key, tensor


def refuse_sharded(model: nn.Module) -> None:
    """Raise where a parameter is a DTensor, of which this process holds a piece: no flat vector can be cut from it."""
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor":  # by name: importing it costs a second, and needs torch.distributed
            raise InvalidInput(
                explain(
                    f"The parameter {name!r} is a DTensor",
                    "it lies in pieces on several processes, as fully_shard leaves it",
                    "Use thalweg.operators.sharded.ShardedProblem(model, loss, data) for it",
                )
            )


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InvalidInput(
                explain(
                    f"{name!r} of a lazy module has no shape yet",
                    "its entries cannot be laid out in a vector",
                    "Call the model on one batch first",
                )
            )


def _nothing_chosen(pattern: Pattern | None, frozen: int, names: list[str]) -> InvalidInput:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return InvalidInput(
        explain(
            f"All {frozen} matching parameters are frozen" if frozen else f"No parameter matches {pattern!r}",
            "there is nothing to differentiate by",
            "Call requires_grad_(True) on those you mean" if frozen else f"Choose among: {shown or 'none at all'}",
        )
    )
