"""A model, a loss and data, as one function of one flat vector."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thalweg._vectors import Pattern
from thalweg.errors import InvalidInput, NotDeterministic, NotDifferentiable, explain
from thalweg.problem import determinism, losses
from thalweg.problem.batches import cache, make_batches, map_tensors, not_indexable, positions, tensors_in
from thalweg.problem.forms import ModelLoss, OutputLoss, pair
from thalweg.problem.guards import evaluation, no_autocast
from thalweg.problem.parameters import refuse_sharded, select, slots

if TYPE_CHECKING:
    from thalweg.problem.holdings import Job
    from thalweg.problem.plan import Plan
    from thalweg.problem.planner import PlannedLayout


class Problem:
    r"""The mean loss of a model over data, ``L(w) = sum_b (n_b / N) mean_{i in b} loss_i(w)``.

    ``w`` is one flat vector of shape ``(P,)`` that holds the selected parameters; every other parameter and
    every buffer is a constant. Batches are weighted by their number of samples ``n_b``, so the value, the gradient
    and every Hessian product are those of all ``N`` samples at once, however the data is cut. Nothing of the
    model is changed by an evaluation: mode, gradients, buffers, random state.

    Args:
        model: Any module. It is used in the mode that it is in (call ``model.eval()`` first if you mean that).
        loss: Either ``loss(model_output, target)``, the mean over a batch (torch's losses, or a function), or
            ``loss(model, batch) -> (mean loss, sample count)`` for models with other signatures; the second
            form is recognised by its first parameter's name ``model``, or marked with `batch_loss`.
        data: ``(inputs, targets)`` tensors, a map-style ``Dataset``, or a re-iterable of batches.
        batch_size: Samples evaluated at a time for tensors and Datasets; memory depends on it, results do not.
        parameters: Which parameters form ``w``: a glob, several globs, a compiled regular expression or a
            predicate on names. Default: all with ``requires_grad``. Tied parameters count once.
        device: Where to evaluate. Default: where the parameters are.
        dtype: Evaluate in this floating dtype, whatever the model's own (``torch.float64`` for references).
        check: Evaluate twice and refuse what is not a fixed function of ``w``: shuffled loaders, live dropout,
            augmentation, BatchNorm in training mode over more than one batch.

    Attributes:
        model: The module, as given.
        layout: Names and shapes of the parameters in ``w``.
        dimension: ``P``.
        dtype: Dtype of ``w``.
        device: Device of ``w``.
        samples: ``N``, as the sum of batch weights (tokens for cross-entropy over sequences).

    Raises:
        InvalidInput: The data, the loss or the parameter pattern cannot be used; the message says why.
        EmptyData: No sample, or a batch without one.
        NotDeterministic: Two evaluations differ.
        NotDifferentiable: The loss does not depend on the parameters through recorded operations.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> x, y = torch.randn(5, 2), torch.randn(5, 1)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, y), batch_size=2)
        >>> problem.dimension, problem.samples
        (3, 5)
        >>> value, gradient = problem.value_and_gradient(problem.initial)
        >>> gradient.shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        data: Any,
        *,
        batch_size: int | None = None,
        parameters: Pattern | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> None:
        refuse_sharded(model)
        self.model = model
        self._form = ModelLoss if losses.calls_the_model(loss) else OutputLoss
        if self._form is OutputLoss:
            losses.check_reduction(loss)
        self._function = self._form(model, loss)
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInput(
                explain(f"dtype is {dtype}", "derivatives need a floating dtype", "Pass torch.float64 or torch.float32")
            )
        self._selection = select(model, parameters)
        self.layout = self._selection.layout
        self.dimension = self.layout.size
        self.dtype = dtype or self._selection.common_dtype
        self._cast = dtype
        first = model.get_parameter(self.layout.names[0])
        self.device = torch.device(device) if device is not None else first.device
        self._names = [tuple(f"model.{name}" for name in known) for known in self._selection.slots]
        self._chosen = frozenset(name for known in self._names for name in known)
        source = make_batches(data, batch_size)
        self._batches = cache(source)
        self.notes: dict[str, Any] = {}
        """What operators learn about this problem and reuse, such as the memory of its graph."""
        survey = determinism.survey(self, source, check=check)
        self._weights, self.samples = survey.weights, survey.samples
        if check:
            determinism.refuse_batch_statistics(model, len(self._weights))

    @property
    def initial(self) -> Tensor:
        """The model's current point as a new vector, shape ``(P,)``."""
        current = [self.model.get_parameter(name).detach() for name in self.layout.names]
        return torch.cat([tensor.reshape(-1).to(self.device, self.dtype) for tensor in current])

    @property
    def batch_count(self) -> int:
        """Number of batches, those without weight included."""
        return len(self._weights)

    def batches(self) -> Iterator[tuple[Any, float]]:
        """Yield ``(batch, weight)`` with weights ``n_b / N`` that sum to one; batches are on ``device``."""
        total = sum(self._weights)
        seen = 0
        for batch, count in zip(self._batches, self._weights):
            seen += 1
            if count:
                yield self._place(batch), count / total
        if seen != len(self._weights):
            raise NotDeterministic(
                explain(
                    f"The loader gave {seen} batches where it gave {len(self._weights)} before",
                    "the loss is then another function at each evaluation",
                    "Give the Problem a loader of fixed length and order",
                )
            )

    def loss(self, leaves: Sequence[Tensor], batch: Any) -> Tensor:
        """Return the differentiable mean loss, 0-dim, of one batch at per-parameter tensors.

        Args:
            leaves: One tensor per name of ``layout``, in its order and shapes.
            batch: A batch as `batches` yields it.
        """
        return self._evaluate(leaves, batch)[0]

    def value(self, w: Tensor) -> Tensor:
        """Return ``L(w)``, 0-dim, without a graph. ``w`` has shape ``(P,)``."""
        leaves = self.layout.split(self._own(w))
        with torch.no_grad():
            return self._sum(self.loss(leaves, batch) * weight for batch, weight in self.batches())

    def gradient(self, w: Tensor) -> Tensor:
        """Return ``grad L(w)``, shape ``(P,)``, without a graph."""
        return self.value_and_gradient(w)[1]

    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(L(w), grad L(w))`` with shapes ``()`` and ``(P,)``, without a graph.

        Args:
            w: The point, shape ``(P,)``.

        Raises:
            InvalidInput: ``w`` has another shape.
            NotDifferentiable: The loss does not depend on any parameter.
        """
        leaves = [leaf.requires_grad_() for leaf in self.layout.split(self._own(w).detach())]
        gradient = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        values = []
        for batch, weight in self.batches():
            value, grads, _ = self._batch_gradient(leaves, batch)
            values.append(value * weight)
            for place, part in zip(self.layout.split(gradient), grads):  # joined first, they would take one more vector
                place.add_(part, alpha=weight)
            del grads, part  # or they would still be there while the next batch is evaluated
        return self._sum(values), gradient

    def subset(self, indices: Tensor | slice | Sequence[int], *, check: bool = False) -> Problem:
        """Return the problem on the samples at ``indices``; it shares the model.

        Args:
            indices: Which samples.
            check: Evaluate the part twice, as a new problem is, where the whole has not been.

        Raises:
            InvalidInput: The data is a loader, which cannot be indexed, or an index is out of range.
            EmptyData: No index.
            NotDeterministic: With ``check``, as for a new problem.
        """
        count = self._batches.samples
        if count is None:
            raise not_indexable()
        part = copy.copy(self)
        part.notes = {}
        part._batches = cache(self._batches.subset(positions(indices, count)))
        part._weights = tuple(part._weigh(batch) for batch in part._batches)
        part.samples = _whole(sum(part._weights))
        if check:
            determinism.survey(part, part._batches, check=True)
            determinism.refuse_batch_statistics(part.model, len(part._weights))
        return part

    def recut(self, batch_size: int) -> Problem:
        """Return the same problem evaluated ``batch_size`` samples at a time; it shares the model, unchecked.

        Raises:
            InvalidInput: The data is a loader, which has cut its batches itself.
        """
        if self._batches.samples is None:
            raise not_indexable()
        part = copy.copy(self)
        part.notes = {}
        part._batches = cache(self._batches.recut(batch_size))
        part._weights = tuple(part._weigh(batch) for batch in part._batches)
        return part

    def with_loss(self, loss: Callable[..., Any]) -> Problem:
        """Return the problem with another loss of the same batches and counts; it shares model and data, unchecked."""
        other = copy.copy(self)
        other.notes = {}
        other._form = ModelLoss if losses.calls_the_model(loss) else OutputLoss
        other._function = other._form(self.model, loss)
        return other

    def plan(
        self,
        job: Job = "eigenpairs",
        *,
        k: int = 1,
        budget: int | None = None,
        layout: PlannedLayout | Literal["auto"] = "auto",
        basis: int | None = None,
        products: int | None = None,
    ) -> Plan:
        r"""Predict peak memory and time of a job before it runs, and how to cut it so that it fits.

        Probes of 1, 2, 4, ... samples count the bytes alive after each operation, which are affine in the number of
        samples; from there ``peak(b) = vectors + graphs + max_i (a_i + c_i b)``. The largest probe was predicted by the
        smaller ones, or is as large as the budget lets it be.

        Args:
            job: ``"value"``, ``"gradient"``, ``"product"`` (a Hessian product), ``"eigenpairs"`` (by `Lanczos`),
                ``"density"`` or ``"critical_sharpness"``.
            k: Eigenpairs wanted.
            budget: Bytes that the job may hold at a time, beyond model and data; default half of what is free. One
                sample is evaluated to find out whether it fits.
            layout: Keep the gradient's graph (``"linearised"``) or rebuild it for each product
                (``"double_backward"``); ``"auto"`` takes what is faster within the budget.
            basis: Vectors of the Krylov basis; default ``3 k + 30`` (density: 40), or fewer if those do not fit. A
                solver that is not told may let it grow.
            products: How many products to count on for the time; default a guess from ``k``.

        Returns:
            A `Plan`: print it, ``plan.apply()`` it, and pass ``plan.layout`` and ``plan.basis`` on.

        Raises:
            InvalidInput: The budget is too small for one sample (the message says what the least is), or an argument
                is out of range.
            NotDifferentiable: The job needs a derivative that the loss does not have.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
            >>> problem = Problem(model, torch.nn.MSELoss(), (torch.randn(3000, 20), torch.randn(3000, 1)))
            >>> plan = problem.plan("eigenpairs", k=2, budget=1_000_000)
            >>> plan.peak_bytes <= 1_000_000, plan.layout, plan.apply().batch_count > 1
            (True, 'double_backward', True)
        """
        from thalweg.problem.plan import plan

        return plan(self, job, k=k, budget=budget, layout=layout, basis=basis, products=products)

    def in_dtype(self, dtype: torch.dtype) -> Problem:
        """Return the same problem evaluated in ``dtype``; it shares model and data and is not checked again."""
        other = copy.copy(self)
        other.notes = {}
        other.dtype = other._cast = dtype
        return other

    def load(self, w: Tensor) -> None:
        """Write ``w``, shape ``(P,)``, into the model. The one method that changes it."""
        with torch.no_grad():
            for name, view in self.layout.unflatten(w).items():
                self.model.get_parameter(name).copy_(view)

    def fingerprint(self) -> dict[str, str]:
        """Return hex digests of the model (class, parameter names, shapes, values; buffers) and of the data."""
        model = hashlib.blake2b(type(self.model).__name__.encode(), digest_size=16)
        for name, tensor in self.model.state_dict().items():
            if isinstance(tensor, Tensor):
                model.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                model.update(_bytes(tensor))
        data = hashlib.blake2b(digest_size=16)
        for batch in self._batches:
            for tensor in tensors_in(batch):
                data.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                data.update(_bytes(tensor))
        return {"model": model.hexdigest(), "data": data.hexdigest()}

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, {self.dimension:,} parameters, {self.samples:,} samples "
            f"in {len(self._weights)} batches, {self.dtype}, {self.device})"
        )

    def _own(self, w: Tensor) -> Tensor:
        return w.to(self.device, self.dtype)

    def _place(self, batch: Any) -> Any:
        def move(t: Tensor) -> Tensor:
            return t.to(self.device, self._cast if self._cast is not None and t.is_floating_point() else None)

        return map_tensors(move, batch)

    def _constants(self) -> dict[str, Tensor]:
        """Every parameter that is not in ``w``, detached, and every buffer, cloned: a forward may write to it."""
        constants: dict[str, Tensor] = {}
        placed: dict[int, Tensor] = {}
        for name, parameter in slots(self._function, "_parameters"):
            if name not in self._chosen:
                constants[name] = placed.setdefault(id(parameter), self._place(parameter.detach()))
        for name, buffer in slots(self._function, "_buffers"):
            if id(buffer) not in placed:
                placed[id(buffer)] = self._place(buffer).clone()
            constants[name] = placed[id(buffer)]
        return constants

    def _call(self, function: nn.Module, leaves: Sequence[Tensor], batch: Any) -> Any:
        """Call ``function``, which holds model and loss as ours does, on a batch with ``leaves`` in their places."""
        if self._cast is None and self._selection.mixed:
            leaves = [leaf.to(dtype) for leaf, dtype in zip(leaves, self._selection.dtypes)]
        tensors = self._constants()
        for known, leaf in zip(self._names, leaves):
            tensors.update(dict.fromkeys(known, leaf))
        with evaluation(self.device):
            return functional_call(function, tensors, (batch,), tie_weights=False)  # all slots given

    def _evaluate(self, leaves: Sequence[Tensor], batch: Any) -> tuple[Tensor, float]:
        value, weight = self._call(self._function, leaves, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInput(
                explain(
                    f"The loss returned {found}",
                    "it must be one number, the mean over the batch",
                    "Reduce it with .mean()",
                )
            )
        return value.reshape(()), weight

    def _batch_gradient(
        self, leaves: Sequence[Tensor], batch: Any, watched: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Sequence[Tensor], float]:
        """Value, gradient and weight of one batch; the value must not depend on ``watched``."""
        with torch.enable_grad(), no_autocast(self.device):
            value, weight = self._evaluate(leaves, batch)
            if not value.requires_grad:
                raise NotDifferentiable(
                    explain(
                        "The loss does not depend on any of the chosen parameters",
                        "its gradient was not recorded",
                        "Look for .detach(), .item(), no_grad() or inference_mode() in model, loss or caller",
                    )
                )
            found = torch.autograd.grad(value, [*leaves, *watched], allow_unused=True)
        if any(g is not None for g in found[len(leaves) :]):
            raise InvalidInput(
                explain(
                    "The loss uses parameters of the model that were taken from it beforehand",
                    "those stay at the model's own point when w moves, so value and gradient would be wrong",
                    "Read them where the loss is computed: model.parameters() inside the loss, not a list from outside",
                )
            )
        grads = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)]
        return value.detach(), grads, weight

    def _weigh(self, batch: Any) -> float:
        if self._form is ModelLoss:
            with torch.no_grad():
                return self._evaluate(self.layout.split(self.initial), self._place(batch))[1]
        return losses.batch_weight(self._function.loss, *pair(batch))

    def _sum(self, values: Any) -> Tensor:
        return torch.stack(list(values)).sum()


def _whole(count: float) -> int:
    return round(count)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
