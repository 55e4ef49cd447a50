"""The Frobenius norm of an operator from products with random vectors."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.spectra.estimate import Estimate
from thalweg.spectra.leave_out import Forms, mean_and_variance
from thalweg.spectra.sampling import Moments, columns, estimate, exactly, inner
from thalweg.spectra.trace import Hutchinson, XTrace, scalars

FrobeniusMethod = Literal["deflated", "plain"]


def frobenius_norm(
    operator: Operator,
    *,
    method: FrobeniusMethod = "deflated",
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Estimate:
    r"""Estimate ``|A|_F = (sum_ij A_ij^2)^{1/2}``; its square is estimated without bias.

    ``"plain"`` averages ``|A w|^2``, whose mean is ``|A|_F^2 = tr A^2``: 1 product a probe. ``"deflated"`` treats
    ``A^2`` as `trace` treats ``A``: what random probes find of ``A`` is counted exactly, ``|A Q|_F^2``, and only
    ``|A (I - Q Q') w|^2`` is sampled, each probe left out of its own basis: 2 products a probe, since ``A w`` and
    ``A Q`` give all of it. Squares decay twice as fast as eigenvalues, so it pays for every Hessian with a few large
    ones; for a flat spectrum its error is ``\sqrt 2`` that of the plain one.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        method: See above.
        target: Stop at this relative standard error of the norm.
        max_products: Budget. Default: 100 products without a target, 10,000 with one.
        seed: Seed of the probes.
        strict: Raise where the target is not met; False returns what there is.

    Returns:
        `Estimate` of the norm; its interval is that of the square, with the root taken of both ends.

    Raises:
        InvalidInput: An argument makes no sense.
        NotConverged: The budget did not reach the target (``strict=True``); ``error.result`` holds the estimate.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(0.8 ** torch.arange(200, dtype=torch.float64)))
        >>> low, high = frobenius_norm(A, target=1e-3).interval()
        >>> bool(low < 5 / 3 < high)
        True

    Sources: the deflated form is XTrace (Epperly, Tropp and Webber, 2024, SIAM J. Matrix Anal. Appl. 45, 1) for ``A^2``
    with a basis of the range of ``A``; its variance is derived in `thalweg.spectra.leave_out`.
    """
    samplers: dict[str, type[_Deflated] | type[_Plain]] = {"deflated": _Deflated, "plain": _Plain}
    if method not in samplers:
        known = get_args(FrobeniusMethod)
        raise InvalidInput(explain(f"method is {method!r}", "no such estimator of a norm", f"Pass one of {known}"))
    return estimate(operator, samplers[method](operator, seed), target, max_products, strict)


def _root(square: Moments, norm_rounding: Tensor) -> Moments:
    """Turn moments of a square into those of its root, to first order; `Estimate.interval` goes back for the rest."""
    value = square.value.clamp_min(0).sqrt()
    error = torch.where(value > 0, square.error / (2 * value).clamp_min(1e-300), square.error.sqrt())
    return Moments(value, error, square.degrees, square.skewness, norm_rounding)


def _by_columns(operator: Operator) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)

    def take(block: Tensor, first: int) -> None:
        total.add_(block.double().square().sum().cpu())

    columns(operator, take)
    return total


class _Plain(Hutchinson):
    """Mean of ``|A w|^2``: Hutchinson's estimate for ``A^2`` at one product a probe."""

    method = "plain Frobenius"
    scale: Literal["linear", "square"] = "square"

    def absorb(self, omega: Tensor, products: Tensor) -> None:
        """Keep ``W'A^2W`` instead of ``W'AW``."""
        overlap, forms = inner(omega, omega), inner(products, products)
        self.blocks.append((forms, overlap))
        self.squares += self.operator.size * float((forms.diagonal() / overlap.diagonal()).sum())

    def moments(self) -> Moments:
        """Those of the square, carried to the root."""
        return _root(super().moments(), self.rounding(self.norm()))

    def by_columns(self) -> Moments:
        """Sum the squares of all entries."""
        total = _by_columns(self.operator).sqrt()
        return exactly(total, self.rounding(float(total)))


class _Deflated(XTrace):
    """XTrace for ``A^2``."""

    method = "deflated Frobenius"
    scale: Literal["linear", "square"] = "square"

    def moments(self) -> Moments:
        """Those of the square, carried to the root."""
        held = self.deflation
        inside = inner(held.images, held.images)
        rounding = self.rounding(held.norm)
        if self.exact:
            return exactly(inside.trace().sqrt(), rounding)
        # A w = Q R w, so that Q'A^2 w = (A Q)'(A w) = (A Q)'Q R w.
        mixed = inner(held.images, held.basis) @ held.triangle
        forms = Forms(
            inside=inside,
            mixed=mixed,
            outside=held.triangle.T @ held.triangle,
            coordinates=inner(held.basis, held.omega),
            overlap=held.overlap,
            directions=held.directions(),
            dimension=self.operator.size,
        )
        mean, variance = mean_and_variance(forms)
        return _root(scalars(mean, variance, 0.0, self.probes, rounding, degrees=self.probes - 1), rounding)

    def by_columns(self) -> Moments:
        """Sum the squares of all entries."""
        total = _by_columns(self.operator).sqrt()
        return exactly(total, self.rounding(float(total)))
