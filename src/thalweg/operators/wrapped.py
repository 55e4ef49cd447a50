"""Gradients through a model that ``fully_shard`` wrapped, at any point: for differences where nothing else works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from thalweg.operators.gathering import Cut
from thalweg.operators.pieces import Pieces
from thalweg.operators.skeleton import is_fully_sharded_itself
from thalweg.problem.guards import evaluation

Steps = Iterable[tuple[Any, float]]
"""Batches of this process with weights that sum to one over all processes; equally many on each."""


class WrappedGradient:
    """``w -> grad L(w)`` by forward and backward passes of the wrapped model itself, hooks and all.

    The weights are written into the model's shards, and put back bit for bit, as are gradients and buffers.

    Args:
        model: The model as ``fully_shard`` left it.
        function: A module ``batch -> (mean loss, weight)`` that calls ``model``.
        pieces: How ``w`` is cut.
        mesh: The mesh of the pieces.
    """

    def __init__(self, model: nn.Module, function: nn.Module, pieces: Pieces, mesh: DeviceMesh) -> None:
        self.model, self.function, self.pieces, self.mesh = model, function, pieces, mesh

    def value(self, w: Tensor, steps: Steps) -> Tensor:
        """Return ``L(w)``, 0-dim; ``w`` is a piece."""
        return self._at(w, steps, backward=False)[0]

    def gradient(self, w: Tensor, steps: Steps) -> Tensor:
        """Return this process's piece of ``grad L(w)``."""
        return self._at(w, steps, backward=True)[1]

    def _at(self, w: Tensor, steps: Steps, *, backward: bool) -> tuple[Tensor, Tensor]:
        reshard(self.model)
        own = [self.model.get_parameter(name) for name in self.pieces.layout.names]
        every = list(self.model.parameters())
        kept = [p.detach().clone() for p in own]
        grads = [p.grad for p in every]
        buffers = [(b, b._version, b.detach().clone()) for b in self.model.buffers()]
        try:
            for p in every:
                p.grad = None
            self._write(own, w)
            value = w.new_zeros(())
            for batch, weight in steps:
                with evaluation(w.device), torch.set_grad_enabled(backward):
                    loss, _ = self.function(batch)
                    if backward:
                        # fully_shard averages gradients over processes, where the loss is their weighted sum.
                        (loss.reshape(()) * (weight * self.pieces.processes.count)).backward()
                value += loss.detach().reshape(()).to(value) * weight
            reshard(self.model)
            piece = self._read(own) if backward else w
        finally:
            reshard(self.model)
            for p, old in zip(own, kept):
                p.detach().copy_(old)
            for p, grad in zip(every, grads):
                p.grad = grad
            for b, version, old in buffers:
                if b._version != version:
                    b.detach().copy_(old)
        return self.pieces.all_sum(value), piece

    def _write(self, own: Sequence[nn.Parameter], w: Tensor) -> None:
        with torch.no_grad():
            for p, part, shape in zip(own, self.pieces.local.split(w), self.pieces.layout.shapes):
                p.copy_(_as_placed(_sharded(part, shape, self.mesh), p))

    def _read(self, own: Sequence[nn.Parameter]) -> Tensor:
        parts = []
        for p, shape in zip(own, self.pieces.local.shapes):
            if p.grad is None:
                parts.append(p.new_zeros(shape) if not isinstance(p, DTensor) else p.to_local().new_zeros(shape))
            elif isinstance(p.grad, DTensor):
                parts.append(rows(p.grad, self.mesh))
            else:  # left out of the sharding, so nobody has summed it
                mean = self.pieces.all_sum(p.grad) / self.pieces.processes.count
                parts.append(rows(mean, self.mesh))
        return torch.cat([part.detach().reshape(-1) for part in parts])


def reshard(model: nn.Module) -> None:
    """Free what ``fully_shard`` has gathered, so that parameters are shards again; their numbers do not change."""
    for module in model.modules():
        if is_fully_sharded_itself(module):
            wrapped: Any = module
            wrapped.reshard()


def flat_mesh(model: nn.Module, device: torch.device, count: int) -> DeviceMesh:
    """Return the flat mesh that the model's parameters are placed on, or one over all ``count`` processes."""
    for p in model.parameters():
        if isinstance(p, DTensor) and p.device_mesh.ndim == 1:
            return p.device_mesh
    return init_device_mesh(device.type, (count,))


def rows(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return this process's rows of ``tensor``, which is placed in any way or whole on every process.

    Every process must call it. A tensor without dimensions is returned with one row, on the first process.
    """
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        if tensor.device_mesh == mesh and tensor.ndim:
            return tensor.redistribute(mesh, [Shard(0)]).to_local()
        tensor = tensor.full_tensor()
    own = Cut(max(len(tensor), 1) if tensor.ndim else 1, mesh.size(), mesh.get_local_rank(), None).own
    return tensor.reshape(1)[own] if not tensor.ndim else tensor[own].clone()


def _sharded(part: Tensor, shape: torch.Size, mesh: DeviceMesh) -> DTensor:
    """Return the DTensor of ``shape`` of whose rows this process holds ``part``; no copy, no communication."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _as_placed(cut: DTensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return cut.full_tensor()
    if like.device_mesh == cut.device_mesh:
        return cut.redistribute(like.device_mesh, like.placements)
    return distribute_tensor(cut.full_tensor(), like.device_mesh, like.placements)
