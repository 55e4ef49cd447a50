"""The trainable parameters of a live model, copied to the CPU without holding up the step that comes next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._vectors import Pattern, matcher
from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.problem.parameters import select

_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names."""


@dataclass(frozen=True)
class Snapshot:
    """Weights at one moment.

    Attributes:
        tensors: By name, on the CPU; those that come from a GPU are there once `wait` has returned.
        copied: The moment on the GPU when the copies are whole, or None.
    """

    tensors: dict[str, Tensor]
    copied: Any = None

    def wait(self) -> dict[str, Tensor]:
        """Return the tensors once they are whole."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors


class Live:
    """Takes snapshots of a model; the model is only read.

    Each parameter that requires a gradient is taken once, under its first name, without the prefixes of wrappers. In a
    process group, the first process takes them; parameters that lie in pieces on all processes (FSDP) are gathered
    on its CPU, for which all processes must call `take` at the same steps.

    Args:
        model: The model, wrapped or not, or a `Problem`.
        parameters: Which of its parameters; None: all.
    """

    def __init__(self, model: nn.Module | Problem, parameters: Pattern | None = None) -> None:
        self.model = model.model if isinstance(model, Problem) else model
        if not isinstance(self.model, nn.Module):
            raise InvalidInput(
                explain(
                    f"The model is a {type(model).__name__}",
                    "a recorder reads the parameters of a torch.nn.Module",
                    "Pass the model that is trained, or a tw.Problem",
                )
            )
        self.first = rank() == 0
        self.sharded = any(_sharded(module) for module in self.model.modules())
        if self.sharded:
            takes = matcher(parameters)
            trained = [(_clean(name), p) for name, p in self.model.named_parameters() if p.requires_grad]
            self._chosen = {name for name, _ in trained if takes(name)}
            if any("_flat_param" in name for name in self._chosen) or not self._chosen:
                raise InvalidInput(
                    explain(
                        "No parameter matches"
                        if not self._chosen
                        else "FSDP has flattened the parameters of the model",
                        "a recorder keeps each parameter under its own name",
                        "Choose among the model's parameters, and wrap it with use_orig_params=True or fully_shard",
                    )
                )
            return
        if isinstance(model, Problem) and parameters is None:
            names = dict(zip(model.layout.names, model.layout.names))
        else:
            known = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
            prefix = "module." if all(_clean(name).startswith("module.") for name in known) else ""
            short = {name: _clean(name).removeprefix(prefix) for name in known}
            takes = matcher(parameters)
            layout = select(self.model, lambda name: takes(short[name])).layout
            names = {name: short[name] for name in layout.names}
        self._parameters = {short: self.model.get_parameter(name) for name, short in names.items()}

    def take(self) -> Snapshot | None:
        """Copy the weights; None on all but the first process."""
        if self.sharded:
            return self._gather()
        if not self.first:
            return None
        copies, waits = {}, False
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                source = parameter.detach()
                if source.is_cuda:
                    copies[name] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
                    copies[name].copy_(source, non_blocking=True)
                    waits = True
                else:
                    copies[name] = source.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return Snapshot(copies, torch.cuda.current_stream().record_event() if waits else None)

    def gradient_norm(self) -> Tensor | None:
        """Return the norm of the gradients as they are now, 0-dim, or None where there are none."""
        if self.sharded or not self.first:
            return None
        found = [p.grad.detach() for p in self._parameters.values() if p.grad is not None]
        if not found or any(g.layout != torch.strided for g in found):
            return None
        return torch.nn.utils.get_total_norm(found)

    def _gather(self) -> Snapshot | None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = dict(get_model_state_dict(self.model, options=options))
        if not self.first:
            return None
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in state.items():
            if _clean(name) in self._chosen and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                found[_clean(name)] = tensor.detach().to("cpu", copy=True)
        return Snapshot(found)


def rank() -> int:
    """Return this process's rank in the default group, 0 where there is none."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _clean(name: str) -> str:
    return _WRAPPED.sub("", name)


def _sharded(module: nn.Module) -> bool:
    """Whether a module keeps pieces of parameters, told by name: importing these types takes a second."""
    names = {type(p).__name__ for p in module.parameters(recurse=False)}
    return "DTensor" in names or type(module).__name__ == "FullyShardedDataParallel"
