"""From observed points to moved parameters, group by group; and what a bare step and a loaded state need."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.errors import ThalwegWarning, explain
from thalweg.optim.alice_arithmetic import Piece, advance
from thalweg.optim.alice_compiled import advance_compiled
from thalweg.optim.alice_foreach import advance_all
from thalweg.optim.alice_layout import local, same_layout
from thalweg.optim.alice_plain import Numbers, advance_plain, plain
from thalweg.optim.alice_settings import Coefficients, check_gradient, phi_of
from thalweg.optim.alice_state import AVERAGES, Held, cut, prepare
from thalweg.optim.alice_trust import foresee, judge

if TYPE_CHECKING:
    from thalweg.optim.alice import Alice


def advance_groups(optimizer: Alice, batch: Mapping[Tensor, Held]) -> None:
    """Step every parameter that has a gradient, by the way its group asks for, and count the batch."""
    took: list[tuple[Piece, Coefficients]] = []
    judge(optimizer.param_groups, batch)
    for group in optimizer.param_groups:
        members = [batch[p] for p in group["params"] if p in batch and p.grad is not None]
        foreach = group["foreach"]
        if foreach is None:
            foreach = not (group["capturable"] or group["compiled"]) and any(
                local(m.parameter).is_cuda for m in members
            )
        together: dict[Any, tuple[Coefficients, list[Piece]]] = {}
        for held in members:
            state = held.state = prepare(held.parameter, group, optimizer.state[held.parameter])
            k, piece = optimizer.coefficients_of(group, state), held.piece()
            if group["trust"]:
                took.append((piece, k))
            if foreach:
                key = (piece.parameter.device, piece.parameter.dtype, state["step"].item(), state["samples"], k.upper)
                together.setdefault(key, (k, []))[1].append(piece)
            elif group["compiled"]:
                advance_compiled(piece, k)
            else:
                _advance_blocks(piece, k)
            state["step"] += 1
            state["samples"] += held.second is not None
            if not (isinstance(k.moving, float) and k.moving == 0):
                state["reach"] = k.omega - phi_of(group)
        for k, pieces in together.values():
            advance_all(pieces, k)
        group["batches"] += 1
    foresee(optimizer.param_groups, took)


def _advance_blocks(piece: Piece, k: Coefficients) -> None:
    common = plain(k, piece)
    numbers = Numbers.of(k, piece.mean.dtype) if common else None
    scratch: Tensor | None = None
    for block in cut(piece):
        if numbers is None:
            advance(block, k)
            continue
        if scratch is None or scratch[0].shape != block.mean.shape:  # the last block may be shorter
            shape = (2, *block.mean.shape)
            scratch = torch.empty(shape, dtype=block.mean.dtype, device=block.mean.device)
        advance_plain(block, k, numbers, scratch)


def without_points(optimizer: Alice) -> None:
    """Create state, as checkpointing expects of a bare ``step()``, and tell those who expected more."""
    pending = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            check_gradient(parameter.grad)
            prepare(parameter, group, optimizer.state[parameter])
            waits = group["capturable"] or pending
            pending = pending or (not waits and float(group["lr"]) > 0 and bool(local(parameter.grad).any()))
    if pending:
        why = "Alice's gradients belong to points of her own, and these may lie elsewhere; nothing has moved"
        remedy = "Pass a closure, or loop over optimizer.points() and observe each"
        text = explain("step() was called without a closure and without observed points", why, remedy)
        warnings.warn(ThalwegWarning(text), stacklevel=4)


def restore_precision(optimizer: Alice, loaded: Mapping[str, Any]) -> None:
    """Take averages from a state dictionary in the precision they have there, which torch has just cast away."""
    numbers = [i for group in loaded["param_groups"] for i in group["params"]]
    for number, parameter in zip(numbers, (p for group in optimizer.param_groups for p in group["params"])):
        state, source = optimizer.state.get(parameter, {}), loaded["state"].get(number, {})
        for name in AVERAGES:
            if name in state:
                exact = source[name].to(device=state[name].device)
                exact = exact.clone() if exact is source[name] else exact
                state[name] = same_layout(exact, parameter)
