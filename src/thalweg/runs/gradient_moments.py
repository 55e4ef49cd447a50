r"""The squared norm of a gradient from noisy samples of it: without bias, with its error, and a test of zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILE = 1.959963984540054
"""Of the normal distribution, for intervals of 95 per cent."""


@dataclass(frozen=True)
class Products:
    r"""Inner products of ``n`` sampled gradients ``g_i``, with ``S = \sum g_i``; float64, of one tensor or of several.

    Attributes:
        gram: ``<g_i, g_j>``, shape ``(n, n)``, exact or from sketches.
        squares: ``|g_i|^2``, shape ``(n,)``.
        inners: ``<g_i, S>``, shape ``(n,)``.
        total: ``|S|^2``.
        pull: ``<g_i, d>`` with a known vector ``d`` (decay, penalty), shape ``(n,)``.
        push: ``|d|^2``.
        blur: Mean squared error of an entry of ``gram`` off the diagonal; 0 where it is exact.
    """

    gram: Tensor
    squares: Tensor
    inners: Tensor
    total: float
    pull: Tensor
    push: float
    blur: float = 0.0

    def __add__(self, other: Products) -> Products:
        return Products(
            self.gram + other.gram,
            self.squares + other.squares,
            self.inners + other.inners,
            self.total + other.total,
            self.pull + other.pull,
            self.push + other.push,
            self.blur + other.blur,
        )


@dataclass(frozen=True)
class Moments:
    r"""What ``n`` independent gradients say of ``|\nabla L|^2``.

    Attributes:
        unbiased: ``U = (|S|^2 - q) / (n (n - 1))``, ``q = \sum |g_i|^2``; its mean is ``|\nabla L|^2``, and it may be
            negative.
        biased: ``A = |S|^2 / n^2``, of mean ``|\nabla L|^2 + tr(\Sigma) / n``.
        noise: ``V = (q - |S|^2 / n) / (n - 1)``, of mean ``tr(\Sigma)``, the noise of one mini-batch.
        standard_error: Of ``U``, by leaving out one mini-batch at a time; NaN below three.
        noise_square: ``T2``, an estimate of ``tr(\Sigma^2)``.
        n: Mini-batches.
    """

    unbiased: float
    biased: float
    noise: float
    standard_error: float
    noise_square: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """``U -+ 1.96 standard_error``."""
        half = QUANTILE * self.standard_error
        return self.unbiased - half, self.unbiased + half

    @property
    def z(self) -> float:
        r"""``U / \sqrt{2 T2 / (n (n - 1))}``, about standard normal where ``\nabla L = 0``."""
        error = math.sqrt(2 * self.noise_square / (self.n * (self.n - 1)))
        if error == 0:
            return math.nan if self.unbiased == 0 else math.copysign(math.inf, self.unbiased)
        return self.unbiased / error

    @property
    def p(self) -> float:
        """Probability of a ``z`` at least as large where the gradient is zero."""
        return 0.5 * math.erfc(self.z / math.sqrt(2))

    @property
    def detectable(self) -> float:
        r"""``2.5 \sqrt{2 T2} / n``: the least ``|\nabla L|^2`` that the test finds four times out of five."""
        return 2.5 * math.sqrt(2 * self.noise_square) / self.n

    @property
    def signal_to_noise(self) -> float:
        """``U / V`` of one mini-batch."""
        return _ratio(self.unbiased, self.noise)

    def scaled(self, factor: float) -> Moments:
        """Return the moments of gradients that are ``sqrt(factor)`` times as long."""
        return Moments(
            self.unbiased * factor,
            self.biased * factor,
            self.noise * factor,
            self.standard_error * factor,
            self.noise_square * factor**2,
            self.n,
        )


def moments(products: Products, *, shifted: bool = False) -> Moments:
    r"""Return `Moments` from inner products.

    With ``r_i = <g_i, S> - |g_i|^2`` and ``S2 = |S|^2 - q`` the estimate without mini-batch ``i`` is
    ``U_(i) = (S2 - 2 r_i) / ((n - 1)(n - 2))``, and the variance of U is ``(n - 1)/n \sum (U_(i) - mean)^2``.
    ``T2`` is the mean of ``<g_i - \bar g, g_j - \bar g>^2`` over ``i != j``.

    Args:
        products: Of two mini-batches at least.
        shifted: Add ``d`` to every gradient first.

    Example:
        >>> g = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> found = moments(inner_products(g))
        >>> found.unbiased, found.biased, found.noise  # |mean|^2 = 1, noise 1: U = 1 - 1/3
        (0.6666666666666666, 1.0, 1.0)
    """
    n = len(products.squares)
    squares, inners, total = products.squares, products.inners, products.total
    noise = max(0.0, float(squares.sum()) - total / n) / (n - 1)
    if shifted:
        pulled = float(products.pull.sum())
        squares = squares + 2 * products.pull + products.push
        inners = inners + n * products.pull + pulled + n * products.push
        total = total + 2 * n * pulled + n**2 * products.push
    pairs = total - float(squares.sum())
    error = math.nan
    if n > 2:
        left = (pairs - 2 * (inners - squares)) / ((n - 1) * (n - 2))
        error = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
    return Moments(pairs / (n * (n - 1)), total / n**2, noise, error, _noise_square(products), n)


def inner_products(gradients: Tensor, d: Tensor | None = None) -> Products:
    """Return the products of sampled gradients that are there as rows.

    Args:
        gradients: Shape ``(n, P)``.
        d: A known vector to go with each, shape ``(P,)``; None: zero.
    """
    wide = gradients.double()
    gram = (wide @ wide.T).cpu()
    pull = torch.zeros(len(wide), dtype=torch.float64) if d is None else (wide @ d.double()).cpu()
    push = 0.0 if d is None else float(d.double().square().sum())
    return Products(gram, gram.diagonal().clone(), gram.sum(1), float(gram.sum()), pull, push)


def _noise_square(products: Products) -> float:
    """Mean squared product of two different deviations from the mean, less what sketches add to it."""
    n = len(products.squares)
    row = products.gram.mean(1, keepdim=True)
    centred = products.gram - row - row.T + row.mean()
    off = (float(centred.square().sum()) - float(centred.diagonal().square().sum())) / (n * (n - 1))
    return max(0.0, off - products.blur)


def _ratio(over: float, under: float) -> float:
    if under == 0:
        return math.nan if over == 0 else math.copysign(math.inf, over)
    return over / under
