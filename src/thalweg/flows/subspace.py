r"""The critical subspace of a flow: its curvature, the third derivatives that move it, and how a step changes both.

``U`` are the critical eigenvectors of ``P^{-1} H`` in weight space, ``U' P U = I``; ``A = U' H U``; the rows of ``D``
are ``grad_w (u_i' H u_j)`` in the packing of `svec`. Between refreshes ``U`` and ``D`` stand still, and one gradient a
step is enough: ``A`` moves by ``D dw``, so the constraint stays informed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.flows.complementarity import Complementarity, solve
from thalweg.flows.laws import LIMIT, Law
from thalweg.operators.packing import pairs, smat, svec

DAMP = 1 - (1 - math.exp(-LIMIT)) / LIMIT
"""Share of a step of length one that a flow takes back along directions that oscillate.

There the curvature is at the limit, and the step would carry the flow to the other wall and back for ever: its
multiplier is -1. The flow itself decays, ``exp(-2)`` in a unit of time, and so does what is left of the step.
"""

ALIKE = 0.9
"""Least cosine between the former and the fresh critical subspace for one to be taken as the other, turned."""


@dataclass
class Critical:
    """Directions ``U``, shape ``(P, k)``; curvature ``A``, ``(k, k)`` in float64; ``D``, ``(m, P)``."""

    U: Tensor
    A: Tensor
    D: Tensor

    @property
    def count(self) -> int:
        """``k``."""
        return self.U.shape[1]

    def move(self, dw: Tensor, bend: Tensor | None = None) -> None:
        """Take in the change of curvature that the move ``dw`` of the weights makes, and ``bend`` beside it."""
        self.A = self.A + smat((self.D @ dw).to("cpu", torch.float64))
        if bend is not None:
            self.A = self.A + bend

    @cached_property
    def gram(self) -> Tensor:
        """``U' U``, float64: ``U`` stands still between refreshes, and so does a scalar metric's share of the work."""
        return _sandwich(self.U, torch.ones((), dtype=torch.float64))

    @cached_property
    def gram_third(self) -> Tensor:
        """``D D'``."""
        return self.D @ self.D.T

    @cached_property
    def along(self) -> Tensor:
        """``D U``."""
        return self.D @ self.U

    def in_metric(self, metric: Tensor) -> Tensor:
        """Return ``U' diag(metric) U``, float64."""
        return _sandwich(self.U, metric) if metric.ndim else metric.to("cpu", torch.float64) * self.gram

    def root(self, metric: Tensor) -> Tensor:
        """Return the lower triangle ``R`` with ``R R' = U' P U``."""
        found: Tensor = torch.linalg.cholesky(self.in_metric(metric))
        return found

    def effective(self, root: Tensor) -> Tensor:
        """Return ``R^{-1} A R^{-T}``: the curvature in ``U R^{-T}``, orthonormal in the metric of ``root``."""
        half = torch.linalg.solve_triangular(root, self.A, upper=False)
        found: Tensor = torch.linalg.solve_triangular(root, half.T, upper=False)
        return found

    def eigenvalues(self, metric: Tensor, root: Tensor | None = None) -> Tensor:
        """Return the eigenvalues of ``P^{-1} H`` within the subspace, descending; ``root`` where it is known."""
        values: Tensor = torch.linalg.eigvalsh(self.effective(self.root(metric) if root is None else root))
        return values.flip(0)


@dataclass(frozen=True)
class Reaction:
    r"""What the oscillation does in one step: its covariance ``Sigma = U X U'``, and what follows from it.

    Attributes:
        solution: ``X`` with the residuals of its three conditions.
        penalty: ``1/2 grad_w <H, Sigma>``, shape ``(P,)``.
        squares: What ``H Sigma H`` adds to the averaged squares; None where the rule has none.
    """

    solution: Complementarity
    penalty: Tensor
    squares: Tensor | None


def react(
    block: Critical,
    law: Law,
    force: Tensor,
    metric: Tensor,
    ahead: Tensor,
    slope: Callable[[Tensor], Tensor | None],
    move: Tensor,
    gain: float = 1.0,
    start: Tensor | None = None,
    penalised: bool = True,
    damp: float = 0.0,
    bend: Tensor | None = None,
) -> Reaction:
    r"""Return the oscillation that keeps ``2 P - H >= 0`` on the subspace after a step.

    The slack after the step is linear in ``X``: ``alpha + beta[X]`` with ``alpha`` the slack without oscillation. The
    oscillation lowers ``H`` through the penalty, and raises ``P`` through the averaged squares (arXiv 2410.24206,
    the complementarity conditions of the central flow, imposed on the linearised end of the step).

    Args:
        block: The critical subspace.
        law: The rule's law.
        force: This step's gradient, shape ``(P,)``.
        metric: ``P`` of this step, shape ``(P,)`` or ``()``.
        ahead: ``P`` after it, as it would be without oscillation.
        slope: What a unit of averaged squares adds to ``ahead``.
        move: The step as it would be without oscillation, shape ``(P,)``.
        gain: The penalty moves the weights by this times ``P^{-1}``: the length of the step, times the law's gain.
        start: A former ``X`` to start from.
        penalised: Whether the oscillation pushes the weights at all; if not, the metric alone keeps the limit.
        damp: Share of the step within the subspace that is taken back; ``move`` has it already.
        bend: What ``A`` gains over the step beyond what third derivatives say, shape ``(k, k)``.

    Raises:
        NotConverged: The complementarity problem was not solved.
        Unbounded: No oscillation holds the curvature at the limit.
    """
    alpha = LIMIT * block.in_metric(ahead) - block.A - smat((block.D @ move).to("cpu", torch.float64))
    if bend is not None:
        alpha = alpha - bend
    scaled = metric.to(block.D)
    pushed = (block.D / scaled) @ block.D.T if metric.ndim else block.gram_third / scaled
    if damp:
        pushed = pushed - damp * (block.along @ block.along.T)
    beta = 0.5 * gain * penalised * pushed.to("cpu", torch.float64)
    # What a unit of X adds to the averaged squares: (H U)_i (H U)_j, with H u = 2 P u on the support of Sigma.
    size = (LIMIT * metric.to(block.U)).square()
    raised = slope(size)
    products = None
    if raised is not None:
        # A larger metric raises the limit. That it shortens this step, too, is of second order in the step.
        if metric.ndim:
            products = _products(block.U)
            moved = (products * raised) @ products.T
        else:
            packed_gram = svec(block.gram)
            moved = float(raised) * torch.outer(packed_gram, packed_gram)
        beta = beta + LIMIT * moved.to("cpu", torch.float64)
    solution = solve(alpha, (beta + beta.T) / 2, start=start)
    packed = svec(solution.X)
    penalty = 0.5 * penalised * (block.D.T @ packed.to(block.D))
    squares = None if raised is None else _spread(block, size, packed, products)
    return Reaction(solution, penalty, squares)


def push(
    block: Critical, law: Law, metric: Tensor, X: Tensor | None, penalised: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the penalty of a known oscillation, shape ``(P,)``, and what it adds to the averaged squares."""
    nothing = torch.zeros_like(block.U[:, 0])
    squares = law.squared(nothing, nothing)
    if X is None:
        return nothing, squares
    packed = svec(X)
    penalty = 0.5 * penalised * (block.D.T @ packed.to(block.D))
    if squares is not None:
        size = (LIMIT * metric.to(block.U)).square()
        # In a metric of one number coordinates may still be told apart.
        squares = _spread(block, size, packed, _products(block.U) if squares.ndim else None)
    return penalty, squares


def entry(block: Critical, metric: Tensor, ahead: Tensor, move: Tensor, X: Tensor | None) -> float:
    """Return the share of a step after which a direction that does not oscillate comes to the limit; 1 if none does.

    Args:
        block: The critical subspace at the start.
        metric: ``P`` there.
        ahead: ``P`` at the end.
        move: Of the weights, shape ``(P,)``.
        X: The present oscillation, or None.
    """
    moved = block.A + smat((block.D @ move).to("cpu", torch.float64))
    slack = [LIMIT * block.in_metric(metric) - block.A, LIMIT * block.in_metric(ahead) - moved]
    if X is not None:
        values, basis = torch.linalg.eigh(X)
        rest = basis[:, values <= 1e-6 * values[-1].clamp_min(0.0)]
        slack = [rest.T @ part @ rest for part in slack]
    if not len(slack[0]):
        return 1.0
    low, high = 0.0, 1.0
    if float(torch.linalg.eigvalsh(slack[1])[0]) >= 0 or float(torch.linalg.eigvalsh(slack[0])[0]) <= 0:
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        least = float(torch.linalg.eigvalsh((1 - middle) * slack[0] + middle * slack[1])[0])
        low, high = (middle, high) if least > 0 else (low, middle)
    return high


def misjudged(old: Critical, new: Critical, metric: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what a prediction of the curvature missed, in the basis of ``new``, and the rotation to that basis.

    Where ``new`` has more directions, nothing is said of those that ``old`` did not know.

    Args:
        old: Former directions, with the curvature that they were predicted to have by now.
        new: Fresh eigenvectors and eigenvalues.
        metric: ``P`` here, in which ``new`` is orthonormal.

    Returns:
        Matrices ``(k, k)`` and ``(k, k_old)``; None where neither space is nearly within the other.
    """
    root = old.root(metric)
    expected = old.effective(root)
    mixed = (new.U.T @ _columns(old.U, metric)).to("cpu", torch.float64)
    straight = torch.linalg.solve_triangular(root, mixed.T, upper=False).T
    left, overlap, right = torch.linalg.svd(straight, full_matrices=False)
    if float(overlap[-1]) < ALIKE:
        return None
    turn = left @ right
    if new.count < old.count:
        return new.A - turn @ expected @ turn.T, turn
    return turn @ (turn.T @ new.A @ turn - expected) @ turn.T, turn


def turned_rows(rows: Tensor, turn: Tensor) -> Tensor:
    """Return rows of ``D`` in the basis ``U turn'``: what ``smat(D v)`` becomes is ``turn smat(D v) turn'``."""
    units = torch.eye(len(rows), dtype=turn.dtype)
    operator = torch.stack([svec(turn @ smat(unit) @ turn.T) for unit in units], dim=1)
    return operator.to(rows) @ rows


class Unstable(InvalidInput):
    """A flow was to start far beyond its limit; ``sharpness`` is the largest effective eigenvalue there."""

    sharpness = float("nan")


def refuse_unstable(sharpness: float) -> None:
    """Raise where a flow would start far beyond the limit."""
    if sharpness > 1.1 * LIMIT:
        error = Unstable(
            explain(
                f"The flow starts at effective sharpness {sharpness:.3g}",
                f"the rule is unstable there (the limit is {LIMIT:g}), and an explosion has no average",
                "Let the rule itself take some steps first (warm_start=), or lower the learning rate",
            )
        )
        error.sharpness = sharpness
        raise error


def _products(U: Tensor) -> Tensor:
    """The rows ``u_i * u_j`` in the packing of `svec`, shape ``(m, P)``."""
    first, second = zip(*pairs(U.shape[1]))
    found = U.T[list(first)]  # rows: those of a fresh U lie in one piece
    found *= U.T[list(second)]
    for row, i, j in zip(found, first, second):
        if i != j:
            row *= 2.0**0.5
    return found


def _spread(block: Critical, size: Tensor, packed: Tensor, products: Tensor | None) -> Tensor:
    """What ``H Sigma H`` adds to averaged squares: per coordinate from ``products``, or its trace without them."""
    if products is None:
        return size * float(packed @ svec(block.gram))
    return size * (packed.to(products) @ products)


def _columns(U: Tensor, metric: Tensor) -> Tensor:
    """``P U``."""
    metric = metric.to(U)
    return U * (metric[:, None] if metric.ndim else metric)


def _sandwich(U: Tensor, diagonal: Tensor) -> Tensor:
    inner = (U.T @ _columns(U, diagonal)).to("cpu", torch.float64)
    return (inner + inner.T) / 2  # float32 rounds the two halves apart
