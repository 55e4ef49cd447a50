r"""Operators ``A = sum_b (n_b / N) J_b' M_b J_b`` with ``J`` the Jacobian of a model's outputs by its parameters.

``J' r`` is a backward pass. ``J v`` is the derivative by ``u`` of the backward pass ``s(u) = J' u``, which is linear
in ``u``: recorded once, it is one backward pass through a graph of the size of the model's own, without its weights'
part. So a product costs four matrix products a layer, where a gradient costs three and a Hessian product six.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from thalweg.errors import InvalidInput, NotDifferentiable, explain
from thalweg.operators.base import Operator
from thalweg.operators.output_matrices import OutputMatrix
from thalweg.problem import memory
from thalweg.problem.graphs import second_derivative
from thalweg.problem.guards import no_autocast
from thalweg.problem.problem import Problem

LayoutName = Literal["auto", "linearised", "forward", "rebuilt"]

Cut = tuple[list[Tensor], Callable[[], OutputMatrix]]
"""Outputs that depend on the parameters, and how to build the matrix between them."""
Cutter = Callable[[nn.Module, Callable[..., Any], Any], Cut]
"""``(model, loss, batch) -> Cut``."""


class _Parts(nn.Module):
    """Model and loss under the names that a Problem gives them, to be cut between the two."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any], cutter: Cutter, build: bool = True) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self._cutter, self._build = cutter, build

    def without_matrix(self) -> _Parts:
        """Return the same, for outputs alone."""
        return _Parts(self.model, self.loss, self._cutter, build=False)

    def forward(self, batch: Any) -> tuple[list[Tensor], OutputMatrix | None]:
        outputs, build = self._cutter(self.model, self.loss, batch)
        if not outputs:
            raise NotDifferentiable(
                explain(
                    "The model's outputs do not depend on any of the chosen parameters",
                    "their Jacobian was not recorded",
                    "Return tensors, tuples, lists or dicts of tensors from the model, without .detach()",
                )
            )
        return outputs, build() if self._build else None


@dataclass(frozen=True)
class _Recorded:
    """Outputs of one batch, the matrix, and the backward pass as a function of its own input."""

    leaves: list[Tensor]
    outputs: list[Tensor]
    matrix: OutputMatrix
    dummies: list[Tensor]
    pulled: list[Any]

    def product(self, v: list[Tensor]) -> Sequence[Tensor | None]:
        """Return ``J' M J v``, one part for each leaf; None is zero."""
        live = [(edge, part) for edge, part in zip(self.pulled, v) if edge is not None]
        edges, parts = zip(*live)
        with second_derivative():
            changes = torch.autograd.grad(edges, self.dummies, parts, retain_graph=True, allow_unused=True)
        return pull(self.outputs, self.leaves, self.matrix.product([own(t, v[0]) for t in changes]), keep=True)


def own(change: Tensor | None, vector: Tensor) -> Tensor | None:
    """Return a change that may be written over: an output that is a parameter hands on the vector itself."""
    if change is None:
        return None
    change = change.detach()
    shared = change.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    return change.clone(memory_format=torch.contiguous_format) if shared or 0 in change.stride() else change


def pull(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], changes: Sequence[Tensor | None], *, keep: bool
) -> Sequence[Tensor | None]:
    """Return ``J' r``; None is zero."""
    live = [(z, r) for z, r in zip(outputs, changes) if r is not None]
    if not live:
        return [None] * len(leaves)
    outs, vectors = zip(*live)
    return torch.autograd.grad(outs, leaves, vectors, retain_graph=keep, allow_unused=True)


class _Layout(ABC):
    """How to compute ``A v`` for the rows of a block."""

    def __init__(self, problem: Problem, w: Tensor, parts: _Parts) -> None:
        self.problem, self.w, self.parts = problem, w, parts

    @abstractmethod
    def add(self, out: Tensor, block: Tensor) -> None:
        """Add ``A V`` to ``out``; rows are vectors."""

    def leaves(self) -> list[Tensor]:
        """Fresh leaves at ``w``."""
        return [leaf.detach().requires_grad_() for leaf in self.problem.layout.split(self.w)]

    def record(self, batch: Any) -> _Recorded:
        """Record one batch."""
        leaves = self.leaves()
        with torch.enable_grad(), no_autocast(self.problem.device):
            outputs, matrix = self.problem._call(self.parts, leaves, batch)
            dummies = [z.detach().new_zeros(()).expand(z.shape).requires_grad_() for z in outputs]
            with second_derivative():
                pulled = torch.autograd.grad(outputs, leaves, dummies, create_graph=True, allow_unused=True)
        edges = [get_gradient_edge(s) if s is not None and s.requires_grad else None for s in pulled]
        if not any(edge is not None for edge in edges):
            raise _no_second_backward(None)
        return _Recorded(leaves, outputs, matrix, dummies, edges)

    def rows(self, out: Tensor, block: Tensor, recorded: _Recorded, weight: float) -> None:
        """Add the products of one batch."""
        for target, v in zip(out, block):
            add_parts(self.problem, target, recorded.product(self.problem.layout.split(v)), weight)


def add_parts(problem: Problem, target: Tensor, parts: Sequence[Tensor | None], weight: float) -> None:
    """Add a product, parameter by parameter, to where each lies in a flat vector."""
    for place, part in zip(problem.layout.split(target), parts):
        if part is not None:
            place.add_(part, alpha=weight)


class _Linearised(_Layout):
    """Every batch recorded once and kept."""

    def __init__(self, problem: Problem, w: Tensor, parts: _Parts, kept: list[tuple[_Recorded, float]]) -> None:
        super().__init__(problem, w, parts)
        self.kept = kept

    def add(self, out: Tensor, block: Tensor) -> None:
        for recorded, weight in self.kept:
            self.rows(out, block, recorded, weight)


class _Rebuilt(_Layout):
    """Each batch recorded anew for a block, used for all of its vectors, and dropped."""

    def add(self, out: Tensor, block: Tensor) -> None:
        for batch, weight in self.problem.batches():
            self.rows(out, block, self.record(batch), weight)


class _Forward(_Layout):
    """Forward mode for ``J v`` in a pass that saves nothing, then an ordinary one for ``J' r``: least memory.

    One pass for both would save one of six matrix products a layer, and record the changes along with the outputs.
    """

    def __init__(self, problem: Problem, w: Tensor, parts: _Parts) -> None:
        super().__init__(problem, w, parts)
        self.outline = parts.without_matrix()

    def add(self, out: Tensor, block: Tensor) -> None:
        for batch, weight in self.problem.batches():
            for target, v in zip(out, block):
                add_parts(self.problem, target, self._one(batch, v), weight)

    def _one(self, batch: Any, v: Tensor) -> Sequence[Tensor | None]:
        device, directions = self.problem.device, self.problem.layout.split(v)
        with torch.enable_grad(), no_autocast(device), forward_ad.dual_level(), saved_tensors_hooks(_forget, _forget):
            duals = [_make_dual(leaf, part) for leaf, part in zip(self.leaves(), directions)]
            outputs, _ = self.problem._call(self.outline, duals, batch)
            changes = [own(_unpack_dual(z).tangent, v) for z in outputs]
        del duals, outputs
        leaves = self.leaves()
        with torch.enable_grad(), no_autocast(device):
            outputs, matrix = self.problem._call(self.parts, leaves, batch)
        return pull(outputs, leaves, matrix.product(changes), keep=False)


def _forget(_: Any) -> Any:
    """Save nothing for a backward pass that is never taken."""


class SandwichOperator(Operator):
    """``v -> sum_b (n_b / N) J_b' M_b J_b v``: symmetric, and positive semidefinite where the ``M_b`` are.

    Attributes:
        layout_used: The layout that computes the products.
        record: Why it was picked: estimated and allowed bytes.
    """

    def __init__(
        self, problem: Problem, w: Tensor, cutter: Cutter, layout: LayoutName, memory_limit: int | None, note: str
    ) -> None:
        super().__init__(problem.dimension, problem.dtype, problem.device)
        if layout not in get_args(LayoutName):
            raise InvalidInput(
                explain(
                    f"The layout {layout!r} is unknown",
                    "it names how products are computed",
                    f"Choose among {', '.join(get_args(LayoutName))}",
                )
            )
        problem.layout.split(w)  # checks the shape
        self.record: dict[str, Any] = {"asked": layout}
        self._note = note
        self._layout = self._choose(
            problem, w, _Parts(problem._function.model, problem._function.loss, cutter), layout, memory_limit
        )

    @property
    def layout_used(self) -> LayoutName:
        """How products are computed now."""
        return _NAMES[type(self._layout)]

    def close(self) -> None:
        """Free what is kept. Later products record it anew, batch by batch."""
        self._layout = _Rebuilt(self._layout.problem, self._layout.w, self._layout.parts)

    def __enter__(self) -> SandwichOperator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _matvec(self, v: Tensor) -> Tensor:
        return self._product(v.unsqueeze(0))[0]

    def _matmat(self, block: Tensor) -> Tensor:
        return self._product(block.T.contiguous()).T

    def _product(self, block: Tensor) -> Tensor:
        out = torch.zeros_like(block)
        try:
            with no_autocast(self.device):
                self._layout.add(out, block)
        except (RuntimeError, NotImplementedError) as error:
            if not isinstance(self._layout, _Forward) or isinstance(error, torch.OutOfMemoryError):
                raise
            self.record["why"] = f"forward mode is missing: {str(error).splitlines()[0]}"
            self._layout = _Rebuilt(self._layout.problem, self._layout.w, self._layout.parts)
            return self._product(block)
        return out

    def _choose(
        self, problem: Problem, w: Tensor, parts: _Parts, layout: LayoutName, memory_limit: int | None
    ) -> _Layout:
        if layout == "forward":
            return _Forward(problem, w, parts)
        rebuilt = _Rebuilt(problem, w, parts)
        if layout == "rebuilt":
            return rebuilt
        allowed = memory.available(problem.device) // 4 if memory_limit is None else memory_limit
        known: int | None = problem.notes.get(self._note)
        self.record |= {"allowed_bytes": allowed, "graph_bytes": known}
        kept: list[tuple[_Recorded, float]] = []
        size = 0
        for number, (batch, weight) in enumerate(problem.batches()):
            if known is None:
                with memory.SavedBytes() as saved:
                    kept.append((rebuilt.record(batch), weight))
                size += saved.bytes + kept[-1][0].matrix.bytes
                self.record["graph_bytes"] = size * problem.batch_count // (number + 1)
            elif known <= allowed or layout == "linearised":
                kept.append((rebuilt.record(batch), weight))
            if layout == "auto" and self.record["graph_bytes"] > allowed:
                problem.notes[self._note] = self.record["graph_bytes"]
                self.record["why"] = "the kept graph would need more memory than allowed"
                return _Forward(problem, w, parts)
        problem.notes[self._note] = self.record["graph_bytes"]
        self.record["why"] = "the graph fits in memory, and reusing it costs least per product"
        return _Linearised(problem, w, parts, kept)


_make_dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
_unpack_dual: Callable[[Tensor], Any] = forward_ad.unpack_dual
_NAMES: dict[type[_Layout], LayoutName] = {_Linearised: "linearised", _Forward: "forward", _Rebuilt: "rebuilt"}


def _no_second_backward(error: Exception | None) -> NotDifferentiable:
    found = "no output depends on the parameters" if error is None else str(error).splitlines()[0]
    return NotDifferentiable(
        explain(
            f"The backward pass of the model cannot be differentiated by its input: {found}",
            "a product with the Jacobian is taken that way",
            'Use layout="forward", or replace the operation',
        )
    )
