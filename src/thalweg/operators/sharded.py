"""A problem whose parameters lie in pieces on several processes, differentiable to any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from thalweg._vectors import Layout, Pattern
from thalweg.errors import DistributedError, InvalidInput, explain
from thalweg.operators.gathering import Book, Cut
from thalweg.operators.pieces import Pieces
from thalweg.operators.processes import Processes, digest
from thalweg.operators.sharded_hessian import ShardedHessian, ShardedLayout
from thalweg.operators.skeleton import fresh_buffers, is_fully_sharded, skeleton
from thalweg.operators.wrapped import WrappedGradient, flat_mesh, reshard, rows
from thalweg.problem import determinism
from thalweg.problem.guards import evaluation, no_autocast
from thalweg.problem.losses import calls_the_model
from thalweg.problem.parameters import select, slots
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardedProblem:
    r"""The mean loss over the samples of all processes, ``L(w) = sum_r (n_r / N) L_r(w)``, of a sharded model.

    The model may come from ``fully_shard``, have DTensor parameters of any placement, or be plain and equal on every
    process. torch's backward through ``fully_shard`` cannot be differentiated again, so derivatives are taken on a
    copy of the model's structure without the sharding's hooks. Each process computes with its own samples; a
    parameter is gathered where a layer reads it, and again where a backward pass needs it, by operations whose
    derivatives of every order are right. Graphs hold pieces and activations, no whole parameters.

    ``w``, gradients and products are *pieces*: flat vectors of shape ``(space.length,)`` with this process's rows of
    every parameter. `whole` and `piece` convert. Every method must be called on all processes, in the same order, and
    on all of them the model must do the same operations. A process that raises leaves the others waiting for the
    group's timeout, or for torchrun to end them.

    Args:
        model: The module, in the mode that it is in. It is called and resharded, otherwise not changed.
        loss: As for `Problem`; it sees plain outputs and targets of this process.
        data: This process's own samples, as for `Problem`; other processes may hold more or fewer.
        batch_size: Samples of this process evaluated at a time.
        parameters: Name pattern of the parameters in ``w``.
        mesh: A flat device mesh over the processes; default that of the parameters, else all processes.
        check: Compare the loss with the model's own forward pass, refuse randomness, and compare the first product
            with a difference of gradients.

    Attributes:
        space: How vectors are cut.
        layout: Names and whole shapes of the parameters in ``w``.
        dimension: ``P``, of all processes together.
        samples: ``N``.
        dtype: Dtype of ``w``.
        device: Device of ``w``.

    Raises:
        DistributedError: No group is initialised, the processes differ, or the two forward passes disagree.
        InvalidInput: The model, the loss or the data cannot be used.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> problem = ShardedProblem(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(6, 2), torch.ones(6, 1)))
        >>> H = problem.hessian()
        >>> [round(value, 4) for value in problem.whole(H.matvec(problem.piece(torch.ones(3)))).tolist()]
        [6.0, 6.0, 6.0]
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        data: Any,
        *,
        batch_size: int | None = None,
        parameters: Pattern | None = None,
        mesh: DeviceMesh | None = None,
        check: bool = True,
    ) -> None:
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.processes = Processes(None, self.device)  # first of all: its error says what to do
        reshard(model)
        self.mesh = mesh or flat_mesh(model, self.device, self.processes.count)
        if self.mesh.size() != self.processes.count:
            self.processes = Processes(self.mesh.get_group(), self.device)
        self.check, self._model, self._book = check, model, Book()
        self.space: Pieces
        self._local: _Local
        self.processes.agree(lambda: self._take(model, loss, data, batch_size, parameters))
        self.layout, self.dimension = self.space.layout, self.space.size
        pieces = [rows(p, self.mesh) for p in self._every]  # each process, in the same order: this communicates
        self._constants = [None if n in self._places else piece for n, piece in enumerate(pieces)]
        self.dtype = self._local.dtype
        self._start = Layout.join([pieces[n].to(self.dtype) for n in self._places])
        self._count()
        if check:
            self._compare_forward()

    @property
    def initial(self) -> Tensor:
        """This process's piece of the model's current point, shape ``(space.length,)``."""
        return self._start.clone()

    def whole(self, piece: Tensor) -> Tensor:
        """Return the whole vector, shape ``(P,)``, on every process."""
        return self.space.whole(piece)

    def piece(self, whole: Tensor) -> Tensor:
        """Return this process's piece of a whole vector."""
        return self.space.piece(whole)

    def value(self, w: Tensor) -> Tensor:
        """Return ``L(w)``, 0-dim, the same on every process; ``w`` is a piece."""
        leaves, total = self.leaves(w), self._start.new_zeros(())
        with torch.no_grad():
            for batch, weight in self.steps():
                total += self.loss(leaves, batch) * weight
        return self.space.all_sum(total)

    def gradient(self, w: Tensor) -> Tensor:
        """Return this process's piece of ``grad L(w)``."""
        return self.value_and_gradient(w)[1]

    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``L(w)`` and this process's piece of its gradient."""
        leaves = [leaf.requires_grad_() for leaf in self.leaves(w)]
        total, gradient = self._start.new_zeros(()), torch.zeros_like(self._start)
        with torch.enable_grad(), self.differentiation():
            for batch, weight in self.steps():
                value = self.loss(leaves, batch) * weight
                grads = torch.autograd.grad(value, leaves, allow_unused=True)
                self.add(gradient, grads)
                total += value.detach()
        return self.space.all_sum(total), gradient

    def hessian(self, w: Tensor | None = None, *, layout: ShardedLayout = "double_backward") -> ShardedHessian:
        """Return the Hessian of ``L`` at ``w`` as an operator on pieces.

        Args:
            w: A piece; default ``initial``. It is copied.
            layout: ``"double_backward"`` rebuilds the graph for each block of vectors: least memory. ``"linearised"``
                keeps it. ``"difference"`` takes two gradients per product through ``fully_shard`` itself, hooks and
                all: right to about 1e-8 in float64, for losses without a second derivative.

        Raises:
            InvalidInput: The layout is unknown, or ``w`` is not a piece.
            NotDifferentiable: An operation has no second derivative.
            DistributedError: The first product differs from a difference of gradients (with ``check``).
        """
        if layout not in get_args(ShardedLayout):
            raise InvalidInput(
                explain(
                    f"The layout {layout!r} is unknown",
                    "it names how sharded products are computed",
                    f"Choose among {', '.join(get_args(ShardedLayout))}",
                )
            )
        point = self.initial if w is None else w.detach().to(self.device, self.dtype, copy=True)
        self.leaves(point)  # checks the shape
        return ShardedHessian(self, point, layout)

    def leaves(self, w: Tensor) -> list[Tensor]:
        """Return this process's rows of every parameter as views of the piece ``w``."""
        if w.shape != (self.space.length,):
            raise InvalidInput(
                explain(
                    f"The vector has shape {tuple(w.shape)}",
                    f"this process holds {self.space.length} of the {self.dimension} entries",
                    "Pass a piece, such as problem.initial or problem.piece(whole)",
                )
            )
        return self.space.local.split(w.detach().to(self.device, self.dtype))

    def loss(self, leaves: Sequence[Tensor], batch: Any) -> Tensor:
        """Return the mean loss of this process's batch, 0-dim, with a graph that leads to ``leaves``."""
        return self._evaluate(leaves, batch)[0]

    def steps(self) -> Iterator[tuple[Any, float]]:
        """Yield this process's batches with weights ``n_b / N``.

        Every process yields equally many, because gathering needs all of them; those that are done repeat a batch
        with weight zero.
        """
        taken, first = 0, None
        for batch, weight in self._local.batches():
            first, taken = (batch if first is None else first), taken + 1
            yield batch, weight * self._share
        for _ in range(self._steps - taken):
            yield first, 0.0

    def outer_gradient(self, w: Tensor) -> Tensor:
        """Return a piece of the gradient by the model's own passes; by ours where ``fully_shard`` was not applied."""
        return self.gradient(w) if self._wrapped is None else self._wrapped.gradient(w, self.steps())

    @contextmanager
    def differentiation(self) -> Iterator[None]:
        """Open around forward and backward passes: graphs made inside keep no gathered parameter."""
        with self._book.saving_notes(), no_autocast(self.device):
            yield

    def add(self, total: Tensor, derivatives: Sequence[Tensor | None]) -> None:
        """Add derivatives by `leaves` to the piece ``total``."""
        for place, part in zip(self.space.local.split(total), derivatives):
            if part is not None:
                place.add_(part)

    def __repr__(self) -> str:
        return (
            f"ShardedProblem({type(self._skeleton).__name__}, {self.dimension:,} parameters, "
            f"{self.space.length:,} of them here, {self.samples:,} samples on {self.processes.count} processes, "
            f"{self.dtype}, {self.device})"
        )

    def _take(
        self, model: nn.Module, loss: Any, data: Any, batch_size: int | None, parameters: Pattern | None
    ) -> dict[str, str]:
        """Everything that needs no other process; what it returns must be the same on all."""
        selection = select(model, parameters)
        determinism.refuse_batch_statistics(model, batches=2)
        self.space = Pieces(selection.layout, self.processes)
        known = {id(p): p for _, p in slots(model, "_parameters")}
        self._every = list(known.values())
        numbers = {key: number for number, key in enumerate(known)}
        self._places = {numbers[id(model.get_parameter(name))]: i for i, name in enumerate(self.space.layout.names)}
        count, rank, group = self.processes.count, self.processes.rank, self.processes.group
        self._book.cuts = [Cut(p.shape[0] if p.ndim else 1, count, rank, group, not p.ndim) for p in self._every]
        self._dtypes = [p.dtype for p in self._every]
        self._skeleton = skeleton(model, numbers, self._book)
        chosen = frozenset(name for slot in selection.slots for name in slot)
        self._local = _Local(
            self._skeleton, loss, data, batch_size=batch_size, parameters=lambda n: n in chosen, device=self.device
        )
        function = self._local._form(model, loss)
        sharded = is_fully_sharded(model)
        self._wrapped = WrappedGradient(model, function, self.space, self.mesh) if sharded else None
        return {
            "the layout of w": f"{selection.layout.names}{selection.layout.shapes}{selection.dtypes}",
            "the model's class or mode": f"{type(model)}{[(type(m), m.training) for m in model.modules()]}",
            "the model's buffers": digest(model.named_buffers()),
        }

    def _evaluate(self, leaves: Sequence[Tensor], batch: Any) -> tuple[Tensor, float]:
        pieces = [
            leaves[self._places[n]].to(dtype) if constant is None else constant
            for n, (constant, dtype) in enumerate(zip(self._constants, self._dtypes))
        ]
        fresh_buffers(self._skeleton, self._model)
        with self._book.open(pieces), evaluation(self.device):
            value, weight = self._local._function(batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InvalidInput(
                explain("The loss is not one number", "it must be the mean over the batch", "Reduce it with .mean()")
            )
        return value.reshape(()), float(weight)

    def _count(self) -> None:
        """Agree on how many batches each process evaluates, and on how much weight they have."""
        local, self._share = self._local, 1.0
        self._steps = int(self.processes.gather([local.batch_count]).max())
        if local.counts_itself:  # only an evaluation tells, and all processes must evaluate together
            leaves = self.leaves(self._start)
            with torch.no_grad():
                counts = [self._evaluate(leaves, batch)[1] for batch, _ in self.steps()]
            local._weights = tuple(counts[: local.batch_count])
        with_weight = [float(n) for n in local._weights if n]
        rows_ = self.processes.gather([sum(with_weight), len(with_weight)])
        if not bool((rows_[:, 0] > 0).all()):
            raise InvalidInput(
                explain(
                    f"Process {int(rows_[:, 0].argmin())} holds no sample with weight",
                    "every process takes part in every evaluation",
                    "Share the samples out so that each has some",
                )
            )
        self._steps = int(rows_[:, 1].max())
        self._share = float(rows_[self.processes.rank, 0] / rows_[:, 0].sum())
        self.samples = round(float(rows_[:, 0].sum()))

    def _compare_forward(self) -> None:
        """Refuse randomness, and a skeleton that is another function than the model."""
        value = float(self.value(self._start))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20 + self.processes.rank)
            again = float(self.value(self._start))
        tolerance = 1e3 * torch.finfo(self.dtype).eps * max(1.0, abs(value))
        if not abs(again - value) <= tolerance:
            raise DistributedError(
                explain(
                    f"Two evaluations of the sharded loss gave {value:.8g} and {again:.8g}",
                    "dropout makes it another function each time, and a loss that adds up model.parameters() makes it "
                    "NaN, because no process has them whole",
                    "Call model.eval(); add such terms up over problem.initial instead",
                )
            )
        other = value if self._wrapped is None else float(self._wrapped.value(self._start, self.steps()))
        if not abs(other - value) <= tolerance:
            raise DistributedError(
                explain(
                    f"The loss without the sharding's hooks is {value:.8g}, with them {other:.8g}",
                    "the model computes in another precision under fully_shard, or depends on its hooks",
                    "Shard it without a mixed-precision policy; check=False accepts the loss without hooks",
                )
            )


class _Local(Problem):
    """This process's samples and their weights, on a skeleton whose parameters have no numbers of their own."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any], data: Any, **options: Any) -> None:
        self.counts_itself = calls_the_model(loss)
        super().__init__(model, loss, data, check=False, **options)

    @property
    def initial(self) -> Tensor:
        """Zeros that take no memory: only their shape is used."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.dimension)

    def _weigh(self, batch: Any) -> float:
        return 1.0 if self.counts_itself else super()._weigh(batch)
