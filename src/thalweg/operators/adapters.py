"""Operators from and to other libraries: SciPy's, and those with curvlinops' interface, Kronecker factors included."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg._rng import generator
from thalweg._vectors import Layout
from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.operators.base import Operator
from thalweg.problem.losses import calls_the_model
from thalweg.problem.problem import Problem


class _FromSciPy(Operator):
    """Products on NumPy arrays."""

    def __init__(self, inner: Any, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(inner.shape[0], dtype, device)
        self._inner = inner

    def _matvec(self, v: Tensor) -> Tensor:
        return self._back(self._inner.matvec(_array(v)))

    def _matmat(self, block: Tensor) -> Tensor:
        return self._back(self._inner.matmat(_array(block)))

    def _back(self, out: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(out)).to(self.device, self.dtype)  # a copy: A v may share memory with v


class _FromCurvlinops(Operator):
    """Products by ``@`` on tensors."""

    def __init__(self, inner: Any, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(inner.shape[0], dtype, device)
        self._inner = inner

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v.unsqueeze(1))[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        with torch.enable_grad():  # their products differentiate
            out: Tensor = self._inner @ block.clone()
        return out.detach().clone()


def from_scipy(
    operator: Any, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", check: bool = True
) -> Operator:
    """Wrap what SciPy takes for a linear operator, as an `Operator` on tensors.

    Args:
        operator: A symmetric ``LinearOperator``, sparse matrix or array, shape ``(P, P)``.
        dtype: Dtype of the tensors; default the operator's own.
        device: Device of the tensors; the operator itself sees NumPy arrays.
        check: Compare ``u' A v`` with ``v' A u`` at random vectors: two products, not counted.

    Returns:
        An operator that counts its products.

    Raises:
        InvalidInput: The operator is not square, not real, or not symmetric.

    Example:
        >>> from_scipy(np.diag([1.0, 4.0])).matvec(torch.ones(2, dtype=torch.float64)).tolist()
        [1.0, 4.0]
    """
    from scipy.sparse.linalg import aslinearoperator

    inner = aslinearoperator(operator)
    own = np.dtype(inner.dtype if inner.dtype is not None else np.float64)
    if own.kind == "c":
        raise InvalidInput(explain(f"The operator is {own}", "our vectors are real", "Pass its real form"))
    kind = dtype or (torch.float32 if own == np.float32 else torch.float64)
    return _checked(_FromSciPy, inner, kind, device, check)


def from_curvlinops(
    operator: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    check: bool = True,
) -> Operator:
    """Wrap an operator with curvlinops' interface, such as its Kronecker-factored curvature or an inverse.

    Their vectors are laid out in the order of the ``params`` that the operator was given; it is that of a problem's
    ``layout`` for the arguments of `curvlinops_arguments`.

    Args:
        operator: Anything symmetric with ``shape`` and ``@`` on tensors of shape ``(P, k)``.
        dtype: Dtype of the vectors; default the operator's ``dtype``.
        device: Device of the vectors; default the operator's ``device``.
        check: Compare ``u' A v`` with ``v' A u`` at random vectors: two products, not counted.

    Returns:
        An operator that counts its products.

    Raises:
        InvalidInput: The operator is not square or not symmetric, or does not say its dtype or device.

    Example:
        >>> class Double:  # curvlinops' interface, as far as it is needed
        ...     shape, dtype, device = (3, 3), torch.float64, torch.device("cpu")
        ...     def __matmul__(self, block):
        ...         return 2 * block
        >>> from_curvlinops(Double()).matvec(torch.ones(3, dtype=torch.float64)).tolist()
        [2.0, 2.0, 2.0]
    """
    try:
        dtype, device = dtype or operator.dtype, device or operator.device
    except (AttributeError, NotImplementedError) as error:
        raise InvalidInput(
            explain(
                f"{type(operator).__name__} does not say the dtype or device of its vectors",
                "tensors for it have to be made",
                "Pass dtype= and device=",
            )
        ) from error
    return _checked(_FromCurvlinops, operator, dtype, device, check)


def to_curvlinops(operator: Operator, layout: Layout | None = None) -> Any:
    """Return the same map as a ``curvlinops.PyTorchLinearOperator``, self-adjoint, for its inverses and estimators.

    Args:
        operator: Any of ours.
        layout: How the vectors fall into parameters, so that their lists of tensors work: ``problem.layout``.
            Default: one tensor of shape ``(P,)``.

    Returns:
        An object for ``CGInverseLinearOperator``, ``hutchpp_trace`` and the like. Its products count in ``operator``.

    Raises:
        InvalidInput: The layout has another size.
        MissingExtra: curvlinops is not installed.

    Example:
        >>> from thalweg.operators import from_dense
        >>> theirs = to_curvlinops(from_dense(torch.eye(3)))  # doctest: +SKIP
        >>> theirs @ torch.ones(3)  # doctest: +SKIP
        tensor([1., 1., 1.])
    """
    base = _import_base()
    shapes = [torch.Size([operator.size])] if layout is None else list(layout.shapes)
    if sum(shape.numel() for shape in shapes) != operator.size:
        raise InvalidInput(
            explain(
                f"The layout has {sum(shape.numel() for shape in shapes)} entries",
                f"the operator has size {operator.size}",
                "Pass the layout of the problem that the operator was built from",
            )
        )

    class Exported(base):  # type: ignore[valid-type, misc]
        """One of thalweg's operators."""

        SELF_ADJOINT = True
        dtype = operator.dtype
        device = operator.device

        def _matmat(self, parts: list[Tensor]) -> list[Tensor]:
            block = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
            out = torch.split(operator.matmat(block), [shape.numel() for shape in shapes])
            return [part.reshape(*shape, part.shape[-1]) for part, shape in zip(out, shapes)]

    return Exported([tuple(shape) for shape in shapes], [tuple(shape) for shape in shapes])


def curvlinops_arguments(problem: Problem) -> dict[str, Any]:
    """Return ``model_func``, ``loss_func``, ``params`` and ``data`` of a problem, as curvlinops' operators take them.

    ``KFACLinearOperator(**curvlinops_arguments(problem))`` is then laid out as ``problem.layout``. It is evaluated
    at the model's own point, in the model's own mode and dtype, whatever the problem says; its attention kernels are
    torch's choice, and tied or uncommon layers are refused by curvlinops itself.

    Args:
        problem: With a loss of ``(output, target)``, in the model's own dtype.

    Raises:
        InvalidInput: The loss calls the model itself, or the problem casts to another dtype than the model's.

    Example:
        >>> x, y = torch.ones(3, 2), torch.zeros(3, 1)
        >>> problem = Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, y))
        >>> sorted(curvlinops_arguments(problem))
        ['data', 'loss_func', 'model_func', 'params']
    """
    loss = problem._function.loss
    parameters = [problem.model.get_parameter(name) for name in problem.layout.names]
    if calls_the_model(loss):
        raise InvalidInput(
            explain(
                "The loss calls the model itself",
                "curvlinops takes a model and a loss(output, target)",
                "Give the Problem such a loss",
            )
        )
    if any(p.dtype != problem.dtype or p.device.type != problem.device.type for p in parameters):
        raise InvalidInput(
            explain(
                f"The problem runs in {problem.dtype} on {problem.device}, its model does not",
                "curvlinops evaluates the model as it is",
                "Convert the model itself: model.to(device, dtype)",
            )
        )
    data = [batch for batch, _ in problem.batches()]
    return {"model_func": problem.model, "loss_func": loss, "params": parameters, "data": data}


def _checked(
    kind: type[_FromSciPy] | type[_FromCurvlinops], inner: Any, dtype: torch.dtype, device: Any, check: bool
) -> Operator:
    shape = tuple(inner.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InvalidInput(explain(f"The operator has shape {shape}", "an operator is square", "Pass (P, P)"))
    wrapped = kind(inner, dtype, device)
    if check and wrapped.size:
        draw = generator(0, "adapters")
        u, v = torch.randn(2, wrapped.size, generator=draw, dtype=torch.float64).to(wrapped.device, dtype)
        au, av = wrapped._matvec(u), wrapped._matvec(v)
        gap, size = abs(float(u @ av - v @ au)), float(u.norm() * av.norm() + v.norm() * au.norm())
        if not gap <= torch.finfo(dtype).eps ** 0.5 * size:
            raise InvalidInput(
                explain(
                    f"At random vectors u'Av and v'Au differ by {gap / (size or 1.0):.1e} of |u||Av| + |v||Au|",
                    "every solver here assumes symmetry",
                    "Wrap (A + A') / 2, or pass check=False if the operator is a random estimate",
                )
            )
    return wrapped


def _array(tensor: Tensor) -> np.ndarray:
    kind = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype  # NumPy has no bfloat16
    return tensor.to("cpu", kind).numpy()


def _import_base() -> Any:
    try:
        return importlib.import_module("curvlinops._torch_base").PyTorchLinearOperator
    except ImportError as error:
        raise MissingExtra(
            explain(
                f"curvlinops cannot be imported: {error}",
                "the operator becomes one of its class",
                "pip install --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch einops einconv opt-einsum "
                "linear_operator (without --no-deps it brings torchvision, and with that another torch)",
            )
        ) from error
