"""Hessian products from every side, behind one call: flat vector in, flat vector out.

A peer that is not installed is skipped with a line that says so. Each runs the way its own documentation shows, with
its consistency checks and progress bars off, on its own copy of the model where it leaves something behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from _cases import Case
from _common import default_dtype, math_attention
from torch import Tensor

import thalweg as tw

Product = Callable[[Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Maker:
    """How to build a product: ``make(case, batches)``; ``batches`` hold all samples of the case."""

    name: str
    make: Callable[[Case, Batches], Product]
    note: str = ""


def whole(case: Case) -> Batches:
    """One batch with everything."""
    return [(case.x, case.y)]


def _split(case: Case, v: Tensor) -> list[Tensor]:
    return [part.view_as(p) for part, p in zip(v.split([p.numel() for p in case.parameters]), case.parameters)]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def gradient(case: Case) -> Tensor:
    """The unit of cost: one gradient by plain torch."""
    return _join(torch.autograd.grad(case.mean_loss(), case.parameters))


def _from_scratch(case: Case, batches: Batches) -> Product:
    """Double backward by plain torch, everything rebuilt for each product."""
    total = sum(len(x) for x, _ in batches)

    def product(v: Tensor) -> Tensor:
        parts = _split(case, v)
        out = torch.zeros_like(v)
        for x, y in batches:
            with math_attention():
                value = case.loss(case.model(x), y) * (len(x) / total)
            grads = torch.autograd.grad(value, case.parameters, create_graph=True)
            out += _join(torch.autograd.grad(grads, case.parameters, grad_outputs=parts))
        return out

    return product


def kept_graph(case: Case, batches: Batches) -> Product:
    """The floor for ours: plain torch with the gradient's graph kept, and nothing around it."""
    total = sum(len(x) for x, _ in batches)
    with math_attention():
        value = sum(case.loss(case.model(x), y) * (len(x) / total) for x, y in batches)
    grads = torch.autograd.grad(value, case.parameters, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return _join(torch.autograd.grad(grads, case.parameters, grad_outputs=_split(case, v), retain_graph=True))

    return product


def _ours(layout: str, case: Case, batches: Batches) -> Product:
    problem = case.problem if len(batches) == 1 else tw.Problem(case.model, case.loss, list(batches))
    return tw.hessian(problem, layout=layout).matvec  # type: ignore[arg-type]


def _curvlinops(case: Case, batches: Batches) -> Product:
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        case.model, case.loss, case.parameters, list(batches), check_deterministic=False, progressbar=False
    )

    def product(v: Tensor) -> Tensor:
        with math_attention():
            return operator @ v

    return product


def _eigenthings(method: str, case: Case, batches: Batches) -> Product:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    operator = HessianOperator(case.copy_of_model(), list(batches), supervised_loss(case.loss), method=method)

    def product(v: Tensor) -> Tensor:
        with math_attention():
            return operator.matvec(v)

    return product


def _pyhessian(case: Case, batches: Batches) -> Product:
    """One batch reuses its gradient's graph; several go through its data loader, as its own solvers do."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with math_attention(), default_dtype(case.dtype):
        if len(batches) == 1:
            peer = hessian(case.copy_of_model(), case.loss, data=batches[0], cuda=False)
        else:
            peer = hessian(case.copy_of_model(), case.loss, dataloader=list(batches), cuda=False)

    def product(v: Tensor) -> Tensor:
        if not peer.full_dataset:
            return _join(hessian_vector_product(peer.gradsH, peer.params, _split(case, v)))
        with math_attention(), default_dtype(case.dtype):
            return _join(peer.dataloader_hv_product(_split(case, v))[1])

    return product


MAKERS = (
    Maker("plain torch, from scratch", _from_scratch, "baseline"),
    Maker("plain torch, kept graph", kept_graph, "floor"),
    Maker("thalweg linearised", partial(_ours, "linearised")),
    Maker("thalweg double_backward", partial(_ours, "double_backward")),
    Maker("thalweg forward_reverse", partial(_ours, "forward_reverse")),
    Maker("thalweg difference", partial(_ours, "difference")),
    Maker("curvlinops", _curvlinops),
    Maker("hessian-eigenthings autograd", partial(_eigenthings, "autograd")),
    Maker("hessian-eigenthings difference", partial(_eigenthings, "finite_difference")),
    Maker("PyHessian", _pyhessian),
)


def reference(case: Case, v: Tensor) -> Tensor:
    """The product at the same point in float64 by plain torch."""
    exact = case.to(torch.float64)
    return _from_scratch(exact, whole(exact))(v.double())
