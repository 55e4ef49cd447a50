"""The diagonal of an operator from products with random signs, with a standard error for every entry."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.spectra.deflation import Deflation
from thalweg.spectra.estimate import Estimate
from thalweg.spectra.sampling import Moments, columns, draw, estimate, exactly, multiply, stream_of

DiagonalMethod = Literal["xdiag", "plain"]

_BLOCK = 16
_CACHED = 1 << 16
"""Numbers of one array in a piece of rows: several such arrays stay in a processor's cache."""
_NOISE = 8.0
"""Rounding of an entry of a product, in units of eps times its usual size."""


def diagonal(
    operator: Operator,
    *,
    method: DiagonalMethod = "xdiag",
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Estimate:
    r"""Estimate all ``A_ii`` without bias.

    ``"plain"`` averages ``w * A w`` over probes of random signs: 1 product a probe, the variance of entry i is the sum
    of the squares of its row without the diagonal. ``"xdiag"`` first takes out what probes find of ``A``,
    ``diag(P_i A) + w_i * (I - P_i) A w_i``, each probe left out of its own projection: 2 products a probe, better
    where eigenvalues decay. Its standard errors count that these are not independent (`thalweg.spectra.leave_out`).

    Args:
        operator: Symmetric, shape ``(P, P)``.
        method: See above.
        target: Stop when the norm of all standard errors is below this fraction of the norm of the diagonal.
        max_products: Budget. Default: 100 products without a target, 10,000 with one.
        seed: Seed of the probes.
        strict: Raise where the target is not met; False returns what there is.

    Returns:
        `Estimate` whose value and standard error have shape ``(P,)``.

    Raises:
        InvalidInput: An argument makes no sense.
        NotConverged: The budget did not reach the target (``strict=True``); ``error.result`` holds the estimate.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> u = torch.linspace(1.0, 2.0, 50, dtype=torch.float64)
        >>> found = diagonal(from_dense(torch.outer(u, u)))
        >>> found.stop.name, bool(torch.allclose(found.value, u * u))
        ('EXACT', True)

    Sources: Bekas, Kokiopoulou and Saad (2007, Appl. Numer. Math. 57); Epperly, Tropp and Webber (2024, SIAM J. Matrix
    Anal. Appl. 45, 1), section 2.4.
    """
    samplers: dict[str, type[_XDiag] | type[_Plain]] = {"xdiag": _XDiag, "plain": _Plain}
    if method not in samplers:
        known = get_args(DiagonalMethod)
        raise InvalidInput(explain(f"method is {method!r}", "no such estimator of a diagonal", f"Pass one of {known}"))
    return estimate(operator, samplers[method](operator, seed), target, max_products, strict)


class _OfDiagonal:
    scale: Literal["linear", "square"] = "linear"
    exact = False
    deflates = True

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.probes = 0
        self.eps = float(torch.finfo(operator.dtype).eps)

    def by_columns(self) -> Moments:
        """Read the diagonal off."""
        size, device = self.operator.size, self.operator.device
        found = torch.zeros(size, dtype=torch.float64, device=device)
        squares = torch.zeros(size, dtype=torch.float64, device=device)

        def take(block: Tensor, first: int) -> None:
            found[first : first + block.shape[1]] = block[first:].diagonal().double()
            squares.add_(block.double().square().sum(dim=1))

        columns(self.operator, take)
        return exactly(found, _NOISE * self.eps * squares.sqrt())

    def wrap(self, mean: Tensor, variance: Tensor, row_norms: Tensor) -> Moments:
        """Moments of entries that are sums over many signs, so without skewness."""
        rounding = _NOISE * self.eps * row_norms.double()
        return Moments(mean, variance.sqrt(), self.probes - 1, torch.zeros_like(mean), rounding)


class _Plain(_OfDiagonal):
    """Running mean and variance of ``w * A w``; memory does not grow with probes."""

    method = "plain diagonal"
    deflates = False

    def __init__(self, operator: Operator, seed: int) -> None:
        super().__init__(operator)
        self.stream = stream_of(seed, "diagonal")
        self.mean = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
        self.scatter = torch.zeros_like(self.mean)

    def cost(self, probes: int) -> int:
        """One product a probe."""
        return probes - self.probes

    def grow(self, probes: int) -> None:
        """Update mean and scatter probe by probe (Welford, 1962)."""
        while self.probes < probes:
            omega = draw(self.operator, min(_BLOCK, probes - self.probes), self.stream, "signs")
            for sample in (omega * multiply(self.operator, omega)).T:
                self.probes += 1
                step = sample.double() - self.mean
                self.mean += step / self.probes
                self.scatter += step * (sample.double() - self.mean)

    def moments(self) -> Moments:
        """Mean and variance of the mean."""
        variance = self.scatter / (self.probes - 1) / self.probes
        size = (self.mean.square() + self.scatter / self.probes).sqrt()
        return self.wrap(self.mean.clone(), variance, size)


class _XDiag(_OfDiagonal):
    """Mean over probes of the captured diagonal plus a sample of the rest."""

    method = "XDiag"

    def __init__(self, operator: Operator, seed: int) -> None:
        super().__init__(operator)
        self.deflation = Deflation(operator, stream_of(seed, "xdiag"), "signs")

    def cost(self, probes: int) -> int:
        """Two products a probe."""
        return 2 * (probes - self.probes)

    def grow(self, probes: int) -> None:
        """Extend the basis."""
        self.deflation.grow(probes - self.probes)
        self.probes, self.exact = probes, self.deflation.exact

    def moments(self) -> Moments:
        """Mean and unbiased variance, entry by entry, in pieces of rows so that memory stays that of a few blocks."""
        held = self.deflation
        if self.exact:
            whole = (held.basis.double() * held.images.double()).sum(dim=1)
            return exactly(whole, _NOISE * self.eps * held.row_norms.double())
        pairs = _Pairs(held)
        rows = max(1, _CACHED // self.probes)
        pieces = [pairs.of_rows(slice(a, a + rows)) for a in range(0, self.operator.size, rows)]
        return self.wrap(torch.cat([m for m, _ in pieces]), torch.cat([v for _, v in pieces]), held.row_norms)


class _Pairs:
    """Leave-one-out and leave-two-out diagonals of some rows, from small matrices made once."""

    def __init__(self, held: Deflation) -> None:
        device = held.operator.device
        self.held = held
        self.s = held.directions().to(device)
        self.mixed = held.triangle.to(device)
        """``Q'A w = (A Q)'w``."""
        self.gram = self.s.T @ self.s
        self.scale = (1 - self.gram.square()).clamp_min(1e-14).rsqrt().fill_diagonal_(0.0)
        self.along = self.s.T @ self.mixed

    def of_rows(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the mean for these rows."""
        held, k = self.held, self.held.size
        basis, images, omega = (t[rows].double() for t in (held.basis, held.images, held.omega))
        new, new_images = basis @ self.s, images @ self.s
        whole = (basis * images).sum(dim=1, keepdim=True)
        # (I - P_i) A w_i = A w_i - Q Q'A w_i + (Q s_i) s_i'Q'A w_i, and A w_i = Q Q'A w_i.
        left = whole - new * new_images + omega * new * self.along.diagonal()
        mean = left.mean(dim=1)
        covariance = torch.zeros_like(mean)
        for i in range(1, k):
            covariance += self._products(i, new, new_images, omega)
        covariance = (2 * covariance / (k * (k - 1))).clamp_min_(0)
        return mean, left.var(dim=1, correction=1) / k + covariance

    def _products(self, i: int, new: Tensor, new_images: Tensor, omega: Tensor) -> Tensor:
        """``sum_{j < i} d_ij d_ji``, with ``d_ij`` what leaving j out as well changes in the estimate of i, negated."""
        mine, others = slice(i, i + 1), slice(0, i)
        scale, cosine = self.scale[i, others], self.gram[i, others]
        diagonal = self.along.diagonal()
        part = scale * (self.along[others, i] - cosine * diagonal[i])
        vector = scale * (new[:, others] - cosine * new[:, mine])
        image = scale * (new_images[:, others] - cosine * new_images[:, mine])
        found = vector * (image - omega[:, mine] * part)
        part = scale * (self.along[i, others] - cosine * diagonal[others])
        vector = scale * (new[:, mine] - cosine * new[:, others])
        image = scale * (new_images[:, mine] - cosine * new_images[:, others])
        return (found * vector * (image - omega[:, others] * part)).sum(dim=1)
