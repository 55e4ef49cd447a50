"""Products over samples that lie on several processes, each with one all-reduce."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.operators.hessian import hessian
from thalweg.operators.processes import Processes, digest
from thalweg.problem.problem import Problem

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from thalweg._vectors import Layout


class DataParallel(Operator):
    r"""``v -> sum_r (n_r / N) A_r v`` over processes ``r`` that hold ``n_r`` of the ``N`` samples each.

    Vectors are whole, and equal, on every process; so is each product, bit for bit. One product, or one block of
    products, is one all-reduce.

    Attributes:
        inner: ``A_r``, the operator on this process's own samples.
        share: ``n_r / N``.
    """

    def __init__(self, inner: Operator, share: float, processes: Processes) -> None:
        super().__init__(inner.size, inner.dtype, inner.device)
        self.inner, self.share, self.processes = inner, share, processes

    def _matvec(self, v: Tensor) -> Tensor:
        return self.processes.sum(lambda: self.share * self.inner.matvec(v), v, v.numel())

    def _matmat(self, block: Tensor) -> Tensor:
        return self.processes.sum(lambda: self.share * self.inner.matmat(block), block, block.numel())

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self.inner, "close", None)
        if close is not None:
            close()


class DataParallelProblem:
    r"""``L(w) = sum_r (n_r / N) L_r(w)``: the mean loss over the samples of all processes.

    It has the methods of a `Problem` that take whole vectors; every one of them must be called on all
    processes, with the same ``w``. It has no ``batches``, so code that sums over batches itself cannot take one
    process's part for the whole.

    Attributes:
        local: The problem on this process's own samples.
        share: ``n_r / N``.
        samples: ``N``, all processes together.
    """

    def __init__(self, local: Problem, group: ProcessGroup | None) -> None:
        self.local = local = _unwrapped(local)
        self.processes = Processes(group, local.device)
        self.processes.agree(lambda: _facts(local))
        counts = self.processes.gather([sum(local._weights)])[:, 0]
        total = float(counts.sum())
        self.share = float(counts[self.processes.rank]) / total
        self.samples = round(total)

    @property
    def initial(self) -> Tensor:
        """The model's current point as a new vector, shape ``(P,)``."""
        return self.local.initial

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters in ``w``."""
        return self.local.layout

    @property
    def dimension(self) -> int:
        """``P``."""
        return self.local.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of ``w``."""
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        """Device of ``w``."""
        return self.local.device

    def value(self, w: Tensor) -> Tensor:
        """Return ``L(w)``, 0-dim; one all-reduce."""
        w = self._own(w)
        padded = self.processes.sum(lambda: self.share * self.local.value(w).expand(1), w, 1)
        return padded[0]

    def gradient(self, w: Tensor) -> Tensor:
        """Return ``grad L(w)``, shape ``(P,)``; one all-reduce."""
        return self.value_and_gradient(w)[1]

    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(L(w), grad L(w))``, shapes ``()`` and ``(P,)``; one all-reduce.

        Raises:
            DistributedError: A process failed, or has another ``w``.
        """
        w = self._own(w)

        def both() -> Tensor:
            value, gradient = self.local.value_and_gradient(w)
            return self.share * torch.cat([value.to(gradient).reshape(1), gradient])

        joint = self.processes.sum(both, w, w.numel() + 1)
        return joint[0], joint[1:]

    def hessian(self, w: Tensor | None = None, **options: Any) -> DataParallel:
        """Return the Hessian of ``L`` at ``w``; ``options`` are those of `thalweg.operators.hessian`.

        Raises:
            DistributedError: A process failed, or has another ``w``.
        """
        point = self.initial if w is None else self._own(w)
        made: list[Operator] = []

        def build() -> dict[str, str]:
            made.append(hessian(self.local, point, **options))
            return {"w": digest([("w", point)])}

        self.processes.agree(build)
        return DataParallel(made[0], self.share, self.processes)

    def lift(self, operator: Operator) -> DataParallel:
        """Return the mean over all samples of an operator that was built from ``local``, such as a Gauss-Newton one."""
        return _lift(operator, self.share, self.processes)

    def __repr__(self) -> str:
        return (
            f"DataParallelProblem({self.samples:,} samples on {self.processes.count} processes, "
            f"{self.share:.3g} of them here: {self.local!r})"
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("batches", "loss", "subset"):
            raise AttributeError(
                explain(
                    f"A data-parallel problem has no {name!r}",
                    "it would see only the samples of this process",
                    "Build the operator from .local and pass it to .lift(operator)",
                )
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _own(self, w: Tensor) -> Tensor:
        return w.detach().to(self.device, self.dtype)


@overload
def data_parallel(subject: Problem, *, group: ProcessGroup | None = None) -> DataParallelProblem: ...
@overload
def data_parallel(subject: Operator, *, samples: float, group: ProcessGroup | None = None) -> DataParallel: ...


def data_parallel(
    subject: Problem | Operator, *, samples: float | None = None, group: ProcessGroup | None = None
) -> DataParallelProblem | DataParallel:
    r"""Return the mean over the samples of all processes, ``sum_r (n_r / N) A_r``, each of which holds its own.

    Every process calls this, and everything on the result, in the same order: what the others wait for is an
    all-reduce. Counts ``n_r`` may differ; the result is that of all ``N`` samples on one process, to rounding.
    Vectors are whole on each process, products are equal bit for bit, so solvers take the same decisions
    everywhere. A process that raises inside a product, value or gradient makes the others raise, too; one that dies
    elsewhere leaves them waiting for the group's timeout (``init_process_group(timeout=...)``), unless torchrun,
    which ends all processes when one fails, started them.

    Args:
        subject: A `Problem` on this process's own samples (a model wrapped in DistributedDataParallel is unwrapped:
            its hooks would communicate in every evaluation), or an operator that is a mean over them.
        samples: ``n_r``, for an operator: the number that its mean divides by.
        group: The process group; default the one of ``torch.distributed.init_process_group``.

    Returns:
        `DataParallelProblem` for a problem, `DataParallel` for an operator.

    Raises:
        DistributedError: No group is initialised, or the models of the processes differ.
        InvalidInput: An operator without its number of samples, or one whose vectors lie in pieces.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> x = torch.randn(6, 2)
        >>> problem = data_parallel(Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, x[:, :1])))
        >>> H = problem.hessian()
        >>> H.matvec(torch.ones(3)).shape, problem.samples
        (torch.Size([3]), 6)
        >>> dist.destroy_process_group()
    """
    if isinstance(subject, Problem):
        return DataParallelProblem(subject, group)
    processes = Processes(group, subject.device)

    def facts() -> dict[str, str]:
        if samples is None or not samples >= 0:
            raise InvalidInput(
                explain(
                    f"samples is {samples} for an operator",
                    "means over different numbers of samples are weighted by them",
                    "Pass samples=problem.samples, what the mean of this process divides by",
                )
            )
        return {"the size of the operator": f"{subject.shape}", "its dtype": f"{subject.dtype}"}

    processes.agree(facts)
    counts = processes.gather([float(samples or 0)])[:, 0]
    return _lift(subject, float(counts[processes.rank] / counts.sum()), processes)


def _lift(operator: Operator, share: float, processes: Processes) -> DataParallel:
    if operator.space.length != operator.size:
        raise InvalidInput(
            explain(
                "The vectors of this operator lie in pieces on several processes",
                "a data-parallel sum needs whole ones",
                "Use the sharded operator as it is: it already sums over all samples",
            )
        )
    return DataParallel(operator, share, processes)


def _unwrapped(problem: Problem) -> Problem:
    """Return the same problem on the module inside DistributedDataParallel, if there is one."""
    if not isinstance(problem.model, nn.parallel.DistributedDataParallel):
        return problem
    chosen = set(problem.layout.names)
    inner = Problem(
        problem.model.module,
        problem._function.loss,
        [next(iter(problem._batches))],  # the others come below: reading them twice would copy them
        parameters=lambda name: f"module.{name}" in chosen,
        device=problem.device,
        dtype=problem._cast,
        check=False,
    )
    inner._batches, inner._weights, inner.samples = problem._batches, problem._weights, problem.samples
    return inner


def _facts(problem: Problem) -> dict[str, str]:
    state = [*problem.model.named_parameters(), *problem.model.named_buffers()]
    return {
        "the layout of w": f"{problem.layout.names}{problem.layout.shapes}{problem.dtype}",
        "the model's class": type(problem.model).__qualname__,
        "the model's parameters or buffers": digest(state),
    }
