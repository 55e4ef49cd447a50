"""The points of one batch, and what the evaluations there share: random numbers, and running statistics kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@dataclass(frozen=True)
class Point:
    """One place where the gradient is to be taken.

    Args:
        sign: 1 and -1 at ``nu + sigma z`` and ``nu - sigma z``, 0 at the look-ahead point ``nu`` itself.
        number: Counting the points of this batch from 0.
        count: How many there are: 3 on sampling batches, 1 on quick ones.
    """

    sign: int
    number: int
    count: int

    @property
    def perturbed(self) -> bool:
        """Whether this is one of the two probes, whose loss is not the one to log."""
        return self.sign != 0

    @property
    def last(self) -> bool:
        """Whether this is the look-ahead point, which comes last."""
        return self.number == self.count - 1


def plan(sampling: bool) -> tuple[Point, ...]:
    """Return the points of one batch in order."""
    return tuple(Point(sign, i, 3) for i, sign in enumerate((1, -1, 0))) if sampling else (Point(0, 0, 1),)


class RandomState:
    """The state of torch's generators on the CPU and on the devices in use, to be given to every evaluation alike.

    Two evaluations with different dropout masks differ by far more than by the probe, and would be read as glass.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.cpu = torch.get_rng_state()
        self.others: list[tuple[Any, torch.device, Tensor]] = []
        for device in {d for d in devices if d.type not in ("cpu", "meta")}:
            module = torch.get_device_module(device)
            self.others.append((module, device, module.get_rng_state(device)))

    def restore(self) -> None:
        """Set every generator back."""
        torch.set_rng_state(self.cpu)
        for module, device, state in self.others:
            module.set_rng_state(state, device)


@contextmanager
def statistics_kept(model: nn.Module | None) -> Iterator[None]:
    """Put back, on leaving, the running statistics that evaluations inside have changed.

    Args:
        model: All of its buffers are put back. Without it, those of the normalisation layers that are called: a
            forward hook on all modules, there only while this is open, sees them.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    seen: set[int] = set()

    def keep(module: nn.Module, *_: object) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        kept.extend((buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=module is model))

    def before(module: nn.Module, _: object) -> None:
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase):
            keep(module)

    with ExitStack() as stack:
        if model is None:
            stack.callback(register_module_forward_pre_hook(before).remove)
        else:
            keep(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)
