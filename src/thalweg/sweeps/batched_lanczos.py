"""The largest eigenvalue of each of R Hessians, by as many Lanczos processes in step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.stack import RowOperator, Stack

BASIS = 24
"""Vectors that a row keeps before it restarts, unless told otherwise."""
KEPT = 6
"""Ritz vectors that a restart keeps."""
SHARES = (1.0, 0.3, 0.1)
"""Weights of the leading Ritz vectors in the start for a nearby point: the one that is about to overtake is in it."""
TOUCH = 1e-2
"""Length of the random vector added to a start of length one, which may be orthogonal to what is wanted."""
SMALL = 1e-3
"""Eigenvalues below this share of the norm are held to a residual relative to it, not to themselves."""


@dataclass(frozen=True, eq=False, repr=False)
class RowEigenvalues:
    r"""Largest eigenvalues of R matrices, ``H_r v_r = \theta_r v_r`` to a residual.

    Attributes:
        values: Largest algebraic eigenvalues, shape ``(R,)``, float64 on the CPU; NaN where a product was not finite.
        vectors: Their unit vectors, shape ``(R, P)``; zero where the value is NaN.
        residuals: ``|H v - theta v|``, shape ``(R,)``: an error of the value is at most that, mostly its square.
        products: Hessian products that each row took, shape ``(R,)``.
        converged: Whether the residual is within the tolerance, shape ``(R,)``.
        guess: What to start from at nearby points, shape ``(R, P)``: a mixture of the leading Ritz vectors.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: Tensor
    converged: Tensor
    guess: Tensor

    def __repr__(self) -> str:
        done, rows = int(self.converged.sum()), len(self.values)
        shown = ", ".join(f"{v:.6g}" for v in self.values[:6].tolist()) + (", ..." if rows > 6 else "")
        return f"RowEigenvalues({shown}; {done} of {rows} converged, {int(self.products.sum())} products)"


def top_eigenvalues(
    stack: Stack,
    W: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 1e-3,
    max_products: int = 300,
    basis: int = BASIS,
    seed: int = 0,
    operator: RowOperator | None = None,
    above: Tensor | None = None,
) -> RowEigenvalues:
    r"""Return the largest algebraic eigenvalue of the Hessian at each row of ``W``.

    Lanczos with full reorthogonalisation, twice, in all rows at once; the projected matrices are diagonalised in
    float64. A row that has converged, or whose product is not finite, leaves at once, and a basis that is full restarts
    from its leading Ritz vectors. No row sees another: results do not depend on what else is in the stack, up to the
    rounding of sums whose order depends on sizes.

    Args:
        stack: Model, loss and data.
        W: Points, shape ``(R, P)``.
        start: Guesses, shape ``(R, P)``, such as ``guess`` of an earlier result; rows that are zero or not finite, and
            all by default, start from a random vector, the same in each row.
        tol: Relative residual, ``|H v - theta v| <= tol max(|theta|, 1e-3 |H|)``, though never below rounding.
        max_products: Per row; rows that need more are returned as they are, ``converged`` False.
        basis: Vectors kept per row before a restart, at least 8.
        seed: Of the random vector.
        operator: ``stack.products(W)`` where it exists already.
        above: Levels, shape ``(R,)``. A row leaves as soon as its largest Ritz value exceeds its level: that is a lower
            bound of the eigenvalue, so whether it exceeds the level is settled, and the bound is returned.

    Returns:
        Values, vectors, residuals and what they cost.

    Raises:
        InvalidInput: A shape or number is out of range.

    Example:
        >>> from thalweg.problem import Problem
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> stack = Stack(Problem(model, torch.nn.MSELoss(), (x, x[:, :1])))
        >>> found = top_eigenvalues(stack, torch.zeros(3, 2, dtype=torch.float64), tol=1e-10)
        >>> [round(v, 9) for v in found.values.tolist()]  # of 2 x'x / 2 = diag(1, 4)
        [4.0, 4.0, 4.0]
    """
    if not 0 < tol < 1 or max_products < 1 or basis < 8 or _misfit(W, start, above):
        raise InvalidInput(
            explain(
                f"Got tol={tol}, max_products={max_products}, basis={basis}, start of "
                f"{None if start is None else tuple(start.shape)}, above of "
                f"{None if above is None else tuple(above.shape)} for W of {tuple(W.shape)}",
                "a residual is relative, a basis holds at least 8 vectors, and each row has its own start and level",
                "Correct the argument",
            )
        )
    if operator is not None:
        return _Solve(operator, start, tol, max_products, basis, seed, above).run()
    size = stack.rows_that_fit(basis + 8)
    parts = []
    for first in range(0, max(len(W), 1), size):
        rows = slice(first, first + size)
        guess = None if start is None else start[rows]
        level = None if above is None else above[rows]
        parts.append(_Solve(stack.products(W[rows]), guess, tol, max_products, basis, seed, level).run())
    fields = ("values", "vectors", "residuals", "products", "converged", "guess")
    return RowEigenvalues(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})


def _misfit(W: Tensor, start: Tensor | None, above: Tensor | None) -> bool:
    return (start is not None and start.shape != W.shape) or (above is not None and above.shape != W.shape[:1])


class _Solve:
    """All rows of one operator. ``live`` are the rows still at work, and ``slots`` where their bases lie in ``Q``."""

    def __init__(
        self, operator: RowOperator, start: Tensor | None, tol: float, budget: int, basis: int, seed: int,
        above: Tensor | None = None,
    ) -> None:  # fmt: skip
        W = operator.W
        self.above = torch.full((len(W),), torch.inf).double() if above is None else above.to("cpu", torch.float64)
        self.operator, self.tol, self.budget = operator, tol, budget
        rows, size = W.shape
        self.capacity = min(basis, size)
        self.eps = float(torch.finfo(W.dtype).eps)
        self.values = torch.full((rows,), torch.nan, dtype=torch.float64)
        self.residuals = torch.full((rows,), torch.nan, dtype=torch.float64)
        self.products = torch.zeros(rows, dtype=torch.int64)
        self.converged = torch.zeros(rows, dtype=torch.bool)
        self.vectors, self.guess = torch.zeros_like(W), torch.zeros_like(W)
        self.live, self.slots = torch.arange(rows), torch.arange(rows)
        self.Q = torch.empty(rows, self.capacity + 1, size, dtype=W.dtype, device=W.device)
        self.T = torch.zeros(rows, self.capacity, self.capacity, dtype=torch.float64)
        self.norm = torch.zeros(rows, dtype=torch.float64)
        noise = torch.randn(size, generator=_rng.generator(seed, "batched_lanczos"), dtype=torch.float64).to(W)
        self.Q[:, 0] = noise / noise.norm()
        if start is not None:
            lengths = start.to(W).norm(dim=1)
            good = torch.isfinite(lengths) & (lengths > 0)
            warm = start.to(W)[good] / lengths[good, None] + TOUCH * noise / noise.norm()
            self.Q[good, 0] = warm / warm.norm(dim=1, keepdim=True)

    def run(self) -> RowEigenvalues:
        """Expand, look, and let rows go until none is left."""
        j, room = 0, self.Q.shape[2]
        while len(self.live):
            product = self.operator.matvec(self.Q[self.slots.to(self.Q.device), j])
            self.products[self.live] += 1
            lengths = product.norm(dim=1)
            finite = torch.isfinite(lengths)
            if not bool(finite.all()):  # such rows keep NaN
                product, lengths = product[finite], lengths[finite]
                self._keep(finite.cpu())
                if not len(self.live):
                    break
            beta = self._append(product, lengths, j)
            j += 1
            values, coordinates = torch.linalg.eigh(self.T[:, :j, :j])
            self.norm = torch.maximum(self.norm, values[:, [0, -1]].abs().amax(dim=1))
            residuals = beta * coordinates[:, -1, -1].abs()
            limits = self.tol * torch.maximum(values[:, -1].abs(), SMALL * self.norm)
            good = (residuals <= torch.maximum(limits, 4 * self.eps * self.norm)) | (beta == 0) | (j == room)
            gone = good | (self.products[self.live] >= self.budget) | (values[:, -1] > self.above)
            if bool(gone.any()):
                rounding = self.eps * self.norm[gone] * self.products[self.live[gone]].sqrt()
                self._store(gone, good, values, coordinates, torch.maximum(residuals[gone], rounding), j)
                self._keep(~gone)
                values, coordinates = values[~gone], coordinates[~gone]
            if len(self.live) and j == self.capacity:
                j = self._restart(values, coordinates)
        return RowEigenvalues(self.values, self.vectors, self.residuals, self.products, self.converged, self.guess)

    def _append(self, product: Tensor, lengths: Tensor, j: int) -> Tensor:
        """Take in ``H q_j``; return the length of what is new in it, zero where that is rounding."""
        bases = [self.Q[slot, : j + 1] for slot in self.slots.tolist()]
        total = torch.zeros(len(self.live), j + 1, dtype=product.dtype, device=product.device)
        for _ in range(2):
            if product.device.type == "cpu":  # bmm is several times slower than its rows where these are vectors
                parts = [torch.mv(own, one) for own, one in zip(bases, product)]
                rest = [torch.addmv(one, own.T, part, alpha=-1) for own, one, part in zip(bases, product, parts)]
                product, part = torch.stack(rest), torch.stack(parts)
            else:
                basis = self.Q[:, : j + 1]
                part = torch.bmm(basis, product.unsqueeze(2)).squeeze(2)
                product = product - torch.bmm(basis.transpose(1, 2), part.unsqueeze(2)).squeeze(2)
            total += part
        coefficients = total.to("cpu", torch.float64)
        self.T[:, j, : j + 1] = coefficients
        self.T[:, : j + 1, j] = coefficients
        beta = product.norm(dim=1)
        self.Q[self.slots.to(self.Q.device), j + 1] = product / torch.where(beta > 0, beta, 1.0).unsqueeze(1)
        found = beta.to("cpu", torch.float64)
        scale = torch.maximum(self.norm, lengths.to("cpu", torch.float64))
        return torch.where(found <= 10 * self.eps * scale, 0.0, found)

    def _store(
        self, gone: Tensor, good: Tensor, values: Tensor, coordinates: Tensor, residuals: Tensor, j: int
    ) -> None:
        """Write down what rows that leave have found."""
        rows = self.live[gone]
        self.values[rows], self.residuals[rows] = values[gone, -1], residuals
        self.converged[rows] = good[gone]
        count = min(len(SHARES), j)
        leading = coordinates[gone][:, :, -count:].flip(2).transpose(1, 2).to(self.Q)
        ritz = torch.stack([own @ self.Q[slot, :j] for own, slot in zip(leading, self.slots[gone].tolist())])
        self.vectors[rows] = ritz[:, 0] / ritz[:, 0].norm(dim=1, keepdim=True)
        self.guess[rows] = torch.einsum("i,rip->rp", torch.tensor(SHARES[:count]).to(ritz), ritz)

    def _keep(self, which: Tensor) -> None:
        """Let the other rows go."""
        at = torch.nonzero(which).squeeze(1)
        self.live, self.T, self.norm, self.above = self.live[at], self.T[at], self.norm[at], self.above[at]
        if len(at):
            if self.Q.device.type == "cpu":  # where a copy of the bases costs as much as a product
                self.slots = self.slots[at]
            else:
                self.Q, self.slots = self.Q[at.to(self.Q.device)], torch.arange(len(at))
            self.operator = self.operator.select(at)

    def _restart(self, values: Tensor, coordinates: Tensor) -> int:
        """Keep the leading Ritz vectors and the newest direction; return how many."""
        kept = min(KEPT, self.capacity - 2)
        change = coordinates[:, :, -kept:].transpose(1, 2).to(self.Q)
        for own, slot in zip(change, self.slots.tolist()):
            newest = self.Q[slot, self.capacity].clone()
            self.Q[slot, :kept] = own @ self.Q[slot, : self.capacity]
            self.Q[slot, kept] = newest
        self.T.zero_()
        self.T.diagonal(dim1=1, dim2=2)[:, :kept] = values[:, -kept:]
        return kept
