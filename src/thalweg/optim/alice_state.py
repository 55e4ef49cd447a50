"""What Alice keeps of a parameter between batches, and what she holds of it during one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thalweg.optim.alice_arithmetic import Piece, mirror, place
from thalweg.optim.alice_layout import blocks, flat, local, memory_order, same_layout, shard, wide
from thalweg.optim.alice_signs import key_base, key_of, stream

Signs: TypeAlias = Callable[[Tensor, int, int], Tensor]
"""``signs(parameter, step, index)``: plus and minus ones of the parameter's (local) shape, for step 1, 2, ..."""
AVERAGES = ("descent", "mean", "square", "glass", "curvature", "rest")
"""State tensors of the parameter's shape."""


def kept(group: Mapping[str, Any], dtype: torch.dtype) -> list[str]:
    """Name the state tensors that a parameter of ``dtype`` needs in this group."""
    names = ["descent", "mean", "square"]
    if group["grad_glass"] or group["hess_comp"] == "rms_deleaked" or not group["move"]:
        names.append("glass")
    if group["hess_comp"] != "zero" or not group["move"]:
        names.append("curvature")
    return [*names, "rest"] if wide(dtype) != dtype else names


def prepare(parameter: Tensor, group: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Create what is missing of a parameter's state, in its memory layout, and follow it when it has changed that."""
    if "step" not in state:
        device = parameter.device if group["capturable"] else torch.device("cpu")
        state.update(step=torch.zeros((), dtype=torch.float32, device=device), reach=0.0, samples=0)
    for name in kept(group, parameter.dtype):
        if name not in state:
            state[name] = torch.zeros_like(parameter, dtype=wide(parameter.dtype), memory_format=torch.preserve_format)
        elif state[name] is not None:
            state[name] = same_layout(state[name], parameter)
    return state


@dataclass
class Held:
    """One parameter during one batch: where its centre is while it is elsewhere, and the probes' gradients.

    Args:
        parameter: The user's.
        group: Its group.
        state: Its state, empty before its first gradient.
        index: Its position among all parameters.
        spare: Memory of earlier batches, to be used again; empty where there is none.
        centre: A copy, put back bit for bit; None before the parameter first moves.
        second: The gradient at the first probe, then the sum of both, then the second difference.
        first: The difference of both.
        sampling: Whether it is probed in this batch.
        placed: Where it is at the first probe and every change of it is counted, the count; the second probe is then
            the mirror image of the first, and no sign is drawn twice.
    """

    parameter: Tensor
    group: Mapping[str, Any]
    state: dict[str, Any]
    index: int
    spare: dict[str, Tensor]
    centre: Tensor | None = None
    second: Tensor | None = None
    first: Tensor | None = None
    sampling: bool = False
    placed: int | None = None

    def move(self, sign: int, sigma: float | Tensor, drawn: Signs | None) -> None:
        """Put the parameter at the look-ahead point, plus ``sign`` times the probe."""
        own, order = local(self.parameter), memory_order(local(self.parameter))
        state = self.state
        leaving = self.centre is None
        if self.centre is None:
            self.centre = self._room("centre", own.dtype)
        mirrored = sign < 0 and self.placed is not None and self.placed == _version(self.parameter)
        held: list[Tensor | None] = [own, self.centre, state.get("descent"), state.get("rest")]
        views = [None if t is None else flat(local(t), order) for t in held]
        source = self.source(order, drawn, sign * sigma) if sign and not mirrored else None
        reach = state.get("reach", 0.0)
        for start, (p, centre, descent, rest) in blocks(views):
            assert p is not None
            assert centre is not None
            if leaving:
                centre.copy_(p)
            if mirrored:
                mirror(p, centre, descent, reach)
                continue
            probe = None if source is None else source(start, p.numel()).view(p.shape)
            place(p, centre, descent, rest, reach, probe)
        self.placed = _version(self.parameter) if sign > 0 and wide(own.dtype) == own.dtype else None

    def source(
        self, order: tuple[int, ...] | None, drawn: Signs | None, scale: float | Tensor
    ) -> Callable[[int, int], Tensor]:
        """Return ``draw(start, count)``, the signs times ``scale`` in memory order."""
        own = local(self.parameter)
        count, dtype = own.numel(), wide(own.dtype)
        step: Any = self.state["step"] + 1 if "step" in self.state else 1
        if isinstance(step, Tensor) and (drawn is not None or not self.group["capturable"]):
            step = int(step.item())
        if drawn is not None:
            whole = drawn(own, step, self.index).to(device=own.device, dtype=dtype).expand(own.shape) * scale
        else:
            offset, coordinates = shard(self.parameter)
            key = key_of(key_base(self.group["seed"], self.index, *coordinates), step)
            draw = stream(key, offset, count, scale, dtype=dtype, device=own.device)
            if order == tuple(range(own.dim())):
                return draw
            # The stream runs in logical order, so that a layout in memory changes no coordinate's sign.
            whole = draw(0, count).view(own.shape)
        listed = flat(whole, order).reshape(-1)
        return lambda start, length: listed.narrow(0, start, length)

    def restore(self) -> None:
        """Put the parameter back to its centre, where it has left it."""
        if self.centre is not None:
            local(self.parameter).copy_(self.centre)

    def _room(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return memory in the layout of the parameter.

        On the CPU it is that of the batch before: new pages of large tensors cost more than what is done with them.
        Elsewhere torch has a cache of its own.
        """
        own, found = local(self.parameter), self.spare.get(name)
        like = torch.empty_like(own, dtype=dtype, device="meta")
        if found is None or (found.shape, found.stride(), found.dtype) != (like.shape, like.stride(), dtype):
            found = torch.empty_like(own, dtype=dtype)
            if own.device.type == "cpu":
                self.spare[name] = found
        return found

    def observe(self, sign: int, scale: float | Tensor | None, drawn: Signs | None) -> None:
        """Take the gradient of one evaluation into the differences."""
        gradient = self.parameter.grad
        if not self.sampling or gradient is None or (sign < 1 and self.second is None):
            self.second = self.first = None
            return
        own = local(gradient).to(wide(local(gradient).dtype))
        own = own if scale is None else own / scale
        if sign == 1:
            self.second = self._room("second", own.dtype).copy_(own)
            return
        assert self.second is not None
        order = memory_order(self.second)
        if sign == 0:
            for _, (second, g) in blocks([flat(self.second, order), flat(own, order)]):
                second.sub_(g, alpha=2)  # type: ignore[union-attr,arg-type]
            return
        if "curvature" in kept(self.group, self.parameter.dtype):
            self.first = self._room("first", self.second.dtype)
        lists = [flat(self.second, order), flat(own, order), None if self.first is None else flat(self.first, order)]
        for _, (second, g, first) in blocks(lists):
            assert second is not None
            assert g is not None
            if first is not None:
                torch.sub(second, g, out=first)
            second.add_(g)
        if self.first is not None and self.group["hess_comp"] == "hutchinson":
            view, draw = flat(self.first, order), self.source(order, drawn, 1.0)
            view.mul_(draw(0, view.numel()).view(view.shape))

    def piece(self) -> Piece:
        """Return flat views of everything that the step needs."""
        own = local(self.parameter)
        order = memory_order(own)
        gradient = self.parameter.grad
        assert gradient is not None

        def view(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else flat(local(tensor), order)

        state = {name: view(self.state.get(name)) for name in AVERAGES}
        return Piece(
            parameter=flat(own, order),
            gradient=flat(local(gradient), order),
            second=view(self.second),
            first=view(self.first),
            reach=self.state["reach"],
            **state,  # type: ignore[arg-type]
        )


def _version(parameter: Tensor) -> int | None:
    """Return torch's count of changes in place, which layers may make too; None for shards."""
    return parameter._version if local(parameter) is parameter and not parameter.is_inference() else None


def cut(piece: Piece) -> Iterator[Piece]:
    """Cut a piece of flat views into blocks."""
    names = [field.name for field in fields(Piece) if field.name != "reach"]
    for _, views in blocks([getattr(piece, name) for name in names]):
        yield Piece(**dict(zip(names, views)), reach=piece.reach)  # type: ignore[arg-type]
