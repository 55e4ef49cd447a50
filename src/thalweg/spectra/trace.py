"""The trace of an operator from products with random vectors, with a standard error that holds."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.spectra.deflation import Deflation
from thalweg.spectra.estimate import Estimate
from thalweg.spectra.leave_out import Forms, mean_and_variance
from thalweg.spectra.quadratic import moments_of
from thalweg.spectra.sampling import Moments, columns, draw, estimate, exactly, inner, multiply, stream_of

TraceMethod = Literal["xtrace", "hutch++", "hutchinson"]

BLOCK = 16
"""Probes whose products plain estimators keep at once."""
_NOISE = 8.0
"""Rounding of a product in units of ``eps |A|_F``: several operations meet in each entry."""


def trace(
    operator: Operator,
    *,
    method: TraceMethod = "xtrace",
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Estimate:
    r"""Estimate ``tr A = sum_i A_ii`` without bias.

    ``"xtrace"`` projects ``A`` on what random probes find of it and samples the rest, each probe serving both
    purposes: 2 products a probe, best where eigenvalues decay. ``"hutch++"`` uses separate probes for the two: 3
    products a probe. ``"hutchinson"`` averages ``w'Aw``: 1 product a probe, best for a flat spectrum, and the only one
    whose memory does not grow (the others keep 3 or 4 vectors a probe).

    Args:
        operator: Symmetric, shape ``(P, P)``.
        method: See above.
        target: Stop at this relative standard error. With an indefinite operator whose trace nearly cancels this may
            be out of reach.
        max_products: Budget. Default: 100 products without a target, 10,000 with one.
        seed: Seed of the probes.
        strict: Raise where the target is not met; False returns what there is.

    Returns:
        `Estimate`. Where the probes outnumber the rank, or P products are the cheaper way, the stop is ``EXACT`` and
        the standard error that of rounding.

    Raises:
        InvalidInput: An argument makes no sense.
        NotConverged: The budget did not reach the target (``strict=True``); ``error.result`` holds the estimate.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(0.8 ** torch.arange(200, dtype=torch.float64)))
        >>> found = trace(A, target=1e-3)
        >>> low, high = found.interval()
        >>> bool(low < 5.0 < high), found.relative_error < 1e-3, found.products == A.products
        (True, True, True)

    Sources: Hutchinson (1990); Meyer, Musco, Musco and Woodruff (2021, SOSA), algorithm 1; Epperly, Tropp and Webber
    (2024, SIAM J. Matrix Anal. Appl. 45, 1), section 2. The variances are ours: see `thalweg.spectra.leave_out` and
    `thalweg.spectra.quadratic`.
    """
    samplers: dict[str, type[XTrace] | type[HutchPlusPlus] | type[Hutchinson]] = {
        "xtrace": XTrace,
        "hutch++": HutchPlusPlus,
        "hutchinson": Hutchinson,
    }
    if method not in samplers:
        raise InvalidInput(
            explain(f"method is {method!r}", "no such estimator of a trace", f"Pass one of {get_args(TraceMethod)}")
        )
    return estimate(operator, samplers[method](operator, seed), target, max_products, strict)


class _OfTrace:
    """What samplers of a trace share."""

    scale: Literal["linear", "square"] = "linear"
    exact = False
    deflates = True

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.probes = 0
        self.eps = float(torch.finfo(operator.dtype).eps)

    def rounding(self, norm: float) -> Tensor:
        """What rounding moves a sum of quadratic forms by, for a Frobenius norm of about ``norm``."""
        return torch.tensor(_NOISE * self.eps * norm, dtype=torch.float64)

    def by_columns(self) -> Moments:
        """Sum the diagonal of ``A``."""
        total, squares = torch.zeros((), dtype=torch.float64), 0.0

        def take(block: Tensor, first: int) -> None:
            nonlocal squares
            total.add_(block[first:].diagonal().double().sum().cpu())
            squares += float(block.double().square().sum())

        columns(self.operator, take)
        return exactly(total, self.rounding(squares**0.5))


class Hutchinson(_OfTrace):
    """Mean of ``w'Aw`` over probes uniform on the sphere of radius ``sqrt(P)``."""

    method = "Hutchinson"
    deflates = False

    def __init__(self, operator: Operator, seed: int) -> None:
        super().__init__(operator)
        self.stream = stream_of(seed, "hutchinson")
        self.blocks: list[tuple[Tensor, Tensor]] = []
        self.squares = 0.0

    def cost(self, probes: int) -> int:
        """One product a probe."""
        return probes - self.probes

    def grow(self, probes: int) -> None:
        """Take blocks of nearly equal size, none smaller than is needed for pairs and triples."""
        fresh = probes - self.probes
        pieces = -(-fresh // BLOCK)
        for piece in range(pieces):
            count = (piece + 1) * fresh // pieces - piece * fresh // pieces
            omega = draw(self.operator, count, self.stream, "normal")
            self.absorb(omega, multiply(self.operator, omega))
        self.probes = probes

    def absorb(self, omega: Tensor, products: Tensor) -> None:
        """Keep the small matrices of one block."""
        overlap = inner(omega, omega)
        self.blocks.append((inner(omega, products), overlap))
        lengths = products.double().square().sum(0).cpu() / overlap.diagonal()
        self.squares += self.operator.size * float(lengths.sum())

    def moments(self) -> Moments:
        """Mean, and errors from products between probes."""
        found = moments_of(self.blocks, self.operator.size)
        return scalars(found.mean, found.variance, found.skewness, self.probes, self.rounding(self.norm()))

    def norm(self) -> float:
        """Estimate ``|A|_F``."""
        return math.sqrt(self.squares / self.probes)


class HutchPlusPlus(_OfTrace):
    """``tr Q'AQ`` with a basis from k probes, plus the mean of ``w'(I - QQ')A(I - QQ')w`` over k others."""

    method = "Hutch++"

    def __init__(self, operator: Operator, seed: int) -> None:
        super().__init__(operator)
        self.deflation = Deflation(operator, stream_of(seed, "hutch++ basis"), "normal")
        self.stream = stream_of(seed, "hutch++")
        self.omega = torch.empty(operator.size, 0, dtype=operator.dtype, device=operator.device)
        self.outside = torch.zeros(0, 0, dtype=torch.float64)

    def cost(self, probes: int) -> int:
        """Three products a probe."""
        return 3 * (probes - self.probes)

    def grow(self, probes: int) -> None:
        """Extend the basis; if that does not exhaust the operator, take as many samples."""
        fresh = probes - self.probes
        self.deflation.grow(fresh)
        self.probes, self.exact = probes, self.deflation.exact
        if self.exact:
            return
        omega = draw(self.operator, fresh, self.stream, "normal")
        products = multiply(self.operator, omega)
        mixed, corner = inner(self.omega, products), inner(omega, products)
        self.outside = torch.cat(
            [torch.cat([self.outside, mixed], dim=1), torch.cat([mixed.T, (corner + corner.T) / 2], dim=1)]
        )
        self.omega = torch.cat([self.omega, omega], dim=1)

    def moments(self) -> Moments:
        """The captured trace, and the moments of what is left."""
        basis, images = self.deflation.basis, self.deflation.images
        inside = inner(basis, images)
        rounding = self.rounding(self.deflation.norm)
        if self.exact:
            return exactly(inside.trace(), rounding)
        coordinates, mixed = inner(basis, self.omega), inner(images, self.omega)
        cross = coordinates.T @ mixed
        outside = self.outside - cross - cross.T + coordinates.T @ inside @ coordinates
        lengths = inner(self.omega, self.omega) - coordinates.T @ coordinates
        found = moments_of([(outside, lengths)], self.operator.size - self.deflation.rank)
        mean = float(inside.trace()) + found.mean
        return scalars(mean, found.variance, found.skewness, self.probes, rounding)


class XTrace(_OfTrace):
    """Mean over probes of the captured trace plus a sample of the rest, each probe left out of its own basis."""

    method = "XTrace"

    def __init__(self, operator: Operator, seed: int) -> None:
        super().__init__(operator)
        self.deflation = Deflation(operator, stream_of(seed, "xtrace"), "normal")

    def cost(self, probes: int) -> int:
        """Two products a probe."""
        return 2 * (probes - self.probes)

    def grow(self, probes: int) -> None:
        """Extend the basis."""
        self.deflation.grow(probes - self.probes)
        self.probes, self.exact = probes, self.deflation.exact

    def moments(self) -> Moments:
        """Mean and unbiased variance of the leave-one-out estimates."""
        held = self.deflation
        inside = inner(held.basis, held.images)
        rounding = self.rounding(held.norm)
        if self.exact:
            return exactly(inside.trace(), rounding)
        coordinates = inner(held.basis, held.omega)
        outside = coordinates.T @ held.triangle
        forms = Forms(
            inside=(inside + inside.T) / 2,
            mixed=held.triangle,
            outside=(outside + outside.T) / 2,
            coordinates=coordinates,
            overlap=held.overlap,
            directions=held.directions(),
            dimension=self.operator.size,
        )
        mean, variance = mean_and_variance(forms)
        return scalars(mean, variance, 0.0, self.probes, rounding, degrees=self.probes - 1)


def scalars(
    mean: float, variance: float, skewness: float, probes: int, rounding: Tensor, degrees: float | None = None
) -> Moments:
    """Wrap numbers. Errors from pairs of probes are worth about twice the degrees of freedom of a sample's own."""
    value, error, third = torch.tensor([mean, variance**0.5, skewness], dtype=torch.float64).unbind()
    return Moments(value, error, degrees or 2.0 * (probes - 1), third, rounding)
