"""Eigensolvers from every side, and how far each must be pushed to reach one and the same residual.

Each solver has settings ordered from cheap to costly. The cheapest that is right is picked with the answer in hand, and
only then timed. Where the setting is the residual itself (ours, ARPACK), that is what a user would do. A number of
steps, or the change of a value between iterations, does not say how large the residual will be: there the choice is
hindsight, and is marked so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from _cases import Case
from _common import clock, default_dtype, math_attention
from _products import kept_graph, whole
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

import thalweg as tw


@dataclass(frozen=True)
class Pairs:
    """Values in descending order, vectors as columns, products used."""

    values: Tensor
    vectors: Tensor
    products: int
    claimed: bool = True
    """Whether the solver itself says that it converged."""


@dataclass(frozen=True)
class Solver:
    """``solve(case, k, setting)``, the settings to try for a residual, and the peer's own default."""

    name: str
    solve: Callable[[Case, int, Any], Pairs]
    settings: Callable[[int, float], Sequence[Any]]
    default: str = ""
    """What the setting None means."""
    only_k: int | None = None
    text: str = "tol={:.0e}"
    hindsight: bool = False
    """Whether nothing but the right answer tells its user which setting to take."""


class Truth:
    """Leading eigenvalues at the case's own point in float64, by plain torch and LAPACK or ARPACK."""

    def __init__(self, case: Case, count: int = 10) -> None:
        self.case = case.to(torch.float64)
        self.count = count

    @cached_property
    def product(self) -> Callable[[Tensor], Tensor]:
        """Product by plain torch."""
        return kept_graph(self.case, whole(self.case))

    @cached_property
    def values(self) -> Tensor:
        """The ``count`` largest, descending."""
        n = self.case.size
        if self.case.dense:
            matrix = torch.stack([self.product(e) for e in torch.eye(n, dtype=torch.float64)])
            return torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)[: self.count]
        operator = LinearOperator((n, n), matvec=lambda x: self.product(_tensor(x)).numpy(), dtype=np.float64)
        start = np.random.default_rng(12).standard_normal(n)
        found, _ = eigsh(operator, self.count, which="LA", ncv=8 * self.count, tol=1e-12, v0=start)
        return torch.from_numpy(np.sort(found)[::-1].copy())

    @property
    def method(self) -> str:
        """How the values were found."""
        return "dense float64 matrix" if self.case.dense else "ARPACK in float64 to 1e-12, twice the pairs"

    def residual(self, pairs: Pairs) -> float:
        """Largest ``|H v - rho v| / |rho|`` with the Rayleigh quotient rho, which favours nobody's own value."""
        worst = 0.0
        for v in pairs.vectors.double().T:
            v = v / v.norm()
            image = self.product(v)
            rho = v @ image
            worst = max(worst, float((image - rho * v).norm() / rho.abs()))
        return worst

    def error(self, pairs: Pairs) -> float:
        """Largest relative error of a value."""
        right = self.values[: len(pairs.values)]
        return float(((pairs.values.double() - right).abs() / right.abs()).max())


@dataclass(frozen=True)
class Outcome:
    """A solver at one setting, with what it got."""

    setting: Any
    products: int
    residual: float
    error: float
    seconds: float
    right: bool
    """Residual within the tolerance, and values within ten times it: a converged pair may still be another pair."""


def try_setting(solver: Solver, case: Case, k: int, setting: Any, tol: float, truth: Truth) -> Outcome:
    """Run once and compare with the truth."""
    start = clock()
    pairs = solver.solve(case, k, setting)
    seconds = clock() - start
    residual, error = truth.residual(pairs), truth.error(pairs)
    return Outcome(setting, pairs.products, residual, error, seconds, residual <= tol and error <= 10 * tol)


def calibrate(solver: Solver, case: Case, k: int, tol: float, truth: Truth, patience: float) -> Outcome:
    """Return the outcome at the cheapest setting that is right to ``tol``.

    Doubling strides, then bisection. After ``patience`` seconds of trying, the last outcome is returned, right or not.
    """
    settings = list(solver.settings(k, tol))
    spent, failed, stride, at = 0.0, -1, 1, 0
    while True:
        outcome = try_setting(solver, case, k, settings[at], tol, truth)
        spent += outcome.seconds
        if outcome.right:
            break
        if at == len(settings) - 1 or spent > patience:
            return outcome
        failed, at, stride = at, min(at + stride, len(settings) - 1), 2 * stride
    best, best_at = outcome, at
    while best_at - failed > 1 and spent < patience:
        at = (best_at + failed) // 2
        outcome = try_setting(solver, case, k, settings[at], tol, truth)
        spent += outcome.seconds
        if outcome.right:
            best, best_at = outcome, at
        else:
            failed = at
    return best


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.reshape(-1)))


def _descending(values: Tensor, vectors: Tensor, products: int) -> Pairs:
    order = values.argsort(descending=True)
    return Pairs(values[order], vectors[:, order], products)


def _tolerances(k: int, tol: float) -> list[float]:
    return [tol / 10 ** (i / 2) for i in range(9)]


def _start(case: Case) -> Tensor:
    """The vector that hessian-eigenthings draws for seed 0; every solver that takes one starts from it."""
    return torch.randn(case.size, dtype=case.dtype, generator=torch.Generator().manual_seed(0))


def _ours(check: bool, case: Case, k: int, tol: float) -> Pairs:
    method = tw.Lanczos(tol=tol, check_multiplicity=check)
    with tw.hessian(case.problem) as operator:
        found = tw.top_eigenpairs(operator, k, method=method, start=_start(case), strict=False)
    return Pairs(found.values, found.vectors, found.products)


def _arpack(operator: LinearOperator, case: Case, k: int, tol: float, ncv: int | None) -> tuple[Tensor, Tensor]:
    values, vectors = eigsh(operator, k, which="LA", tol=tol, v0=_start(case).numpy(), ncv=ncv)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def arpack_ours(wide: bool, case: Case, k: int, tol: float) -> Pairs:
    """SciPy's solver on our products."""
    with tw.hessian(case.problem) as operator:
        found = _arpack(operator.to_scipy(), case, k, tol, 3 * k + 30 if wide else None)
        return _descending(*found, operator.products)


def arpack_curvlinops(case: Case, k: int, tol: float) -> Pairs:
    """The way that the library's own documentation shows."""
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        case.model, case.loss, case.parameters, [(case.x, case.y)], check_deterministic=False, progressbar=False
    ).to_scipy()
    counted = _Counted(operator.matvec)
    with math_attention():
        found = _arpack(LinearOperator(operator.shape, matvec=counted, dtype=operator.dtype), case, k, tol, None)
    return _descending(*found, counted.calls)


def eigenthings(case: Case, k: int, steps: int | None, tol: float = 1e-4) -> Pairs:
    """So many Lanczos steps with full orthogonalisation, or the defaults."""
    from hessian_eigenthings import HessianOperator, lanczos
    from hessian_eigenthings.loss_fns import supervised_loss

    operator = HessianOperator(case.model, [(case.x, case.y)], supervised_loss(case.loss))
    more = {} if steps is None else {"max_iter": steps, "reorthogonalize": True}
    with math_attention():
        found = lanczos(operator, k=k, which="LA", seed=0, tol=tol, **more)
    pairs = _descending(found.eigenvalues, found.eigenvectors.T, found.iterations)
    return replace(pairs, claimed=bool(found.converged.all()))


def eigenthings_trusted(case: Case, k: int, tol: float) -> Pairs:
    """Double the steps from the default 2 k until the solver itself reports convergence; a run cannot be resumed."""
    steps, spent = 2 * k, 0
    while True:
        pairs = eigenthings(case, k, steps, tol)
        spent += pairs.products
        if pairs.claimed or steps > 300:
            return replace(pairs, products=spent)
        steps *= 2


POWER_STEPS = 1000
"""Power iterations per pair that PyHessian is granted at most."""


def pyhessian_power(case: Case, k: int, tol: float | None) -> Pairs:
    """Power iteration with deflation until a value changes by less than ``tol``, relative."""
    import pyhessian

    counted = _Counted(sys.modules["pyhessian.hessian"].hessian_vector_product)
    more = {} if tol is None else {"maxIter": POWER_STEPS, "tol": tol}
    with (
        math_attention(),
        default_dtype(case.dtype),
        torch.random.fork_rng(),
        mock.patch.object(sys.modules["pyhessian.hessian"], "hessian_vector_product", counted),
    ):
        torch.manual_seed(0)
        peer = pyhessian.hessian(case.copy_of_model(), case.loss, data=(case.x, case.y), cuda=False)
        values, vectors = peer.eigenvalues(top_n=k, **more)
    columns = [torch.cat([part.reshape(-1) for part in vector]).detach() for vector in vectors]
    return _descending(torch.tensor(values), torch.stack(columns, dim=1), counted.calls)


class _Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


def _changes(k: int, tol: float) -> list[float]:
    """Relative changes of the value at which a power iteration stops; its residual goes like their root."""
    return [10.0**-i for i in range(3, 16)]


def _steps(k: int, tol: float) -> list[int]:
    return list(range(k + 1, 301))


OURS = "thalweg"
"""Our solver as users call it."""
OURS_BARE = "thalweg, no multiplicity check"
"""Without looking for repeated eigenvalues, as no other solver here does."""
TRUSTED = "hessian-eigenthings lanczos, steps doubled"
"""Until it reports convergence itself."""
SOLVERS = (
    Solver(OURS, partial(_ours, True), _tolerances),
    Solver(OURS_BARE, partial(_ours, False), _tolerances, only_k=5),
    Solver("SciPy eigsh on thalweg's operator", partial(arpack_ours, False), _tolerances),
    Solver("SciPy eigsh on thalweg's operator, wide basis", partial(arpack_ours, True), _tolerances),
    Solver("SciPy eigsh on curvlinops", arpack_curvlinops, _tolerances),
    Solver("hessian-eigenthings lanczos", eigenthings, _steps, default="2 k steps", text="{} steps", hindsight=True),
    Solver(TRUSTED, eigenthings_trusted, lambda k, tol: [tol]),
    Solver("PyHessian power iteration", pyhessian_power, _changes, default="tol=1e-03, at most 100", hindsight=True),
)
