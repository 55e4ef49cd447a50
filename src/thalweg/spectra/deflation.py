"""A growing orthonormal basis of what random probes find of an operator, and all that follows from its products."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from thalweg.operators.base import Operator
from thalweg.spectra.sampling import draw, inner, multiply


class Deflation:
    """Probes ``W``, an orthonormal basis ``Q`` of ``A W``, and ``Z = A Q``: 2 products a probe.

    Everything else is small and kept in float64. Growing reuses every product: the basis is extended, not renewed.

    Attributes:
        omega: The probes, ``(P, k)``.
        basis: ``Q``, ``(P, r)``; ``r < k`` only where ``exact``.
        images: ``A Q``, ``(P, r)``.
        triangle: ``R`` of ``A W = Q R``, ``(r, k)``.
        exact: The probes outnumber the rank of ``A``, so that ``A = Q Q' A`` to rounding.
        norm: Root mean square length of the products ``A w``: about ``|A|_F`` for probes of length ``sqrt(P)``.
    """

    def __init__(self, operator: Operator, stream: torch.Generator, kind: Literal["normal", "signs"]) -> None:
        self.operator, self.stream, self.kind = operator, stream, kind
        empty = torch.empty(operator.size, 0, dtype=operator.dtype, device=operator.device)
        self.omega, self.basis, self.images = empty, empty.clone(), empty.clone()
        self.triangle = torch.zeros(0, 0, dtype=torch.float64)
        self.overlap = torch.zeros(0, 0, dtype=torch.float64)
        """``W'W``."""
        self.exact = False
        self.norm = 0.0
        self.eps = float(torch.finfo(operator.dtype).eps)
        self.row_norms = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        """Root mean square over probes of each entry of ``A w``."""

    @property
    def size(self) -> int:
        """Number of probes."""
        return self.omega.shape[1]

    @property
    def rank(self) -> int:
        """Number of basis vectors."""
        return self.basis.shape[1]

    def grow(self, count: int) -> None:
        """Take ``count`` more probes."""
        fresh = draw(self.operator, count, self.stream, self.kind)
        products = multiply(self.operator, fresh)
        old, total = self.size, self.size + count
        squares = old * self.row_norms.square() + products.square().sum(dim=1)
        self.row_norms = (squares / total).sqrt()
        self.norm = float(self.row_norms.double().norm())
        columns = torch.zeros(self.rank, count, dtype=torch.float64)
        for _ in range(2):  # once leaves components as large as the rounding of what was removed
            part = self.basis.T @ products
            products = products - self.basis @ part
            columns += part.to("cpu", torch.float64)
        corner, block = self._orthonormalise(products)
        images = multiply(self.operator, block) if block.shape[1] else block
        self.omega = torch.cat([self.omega, fresh], dim=1)
        self.overlap = inner(self.omega, self.omega)
        upper = torch.cat([self.triangle, columns], dim=1)
        lower = torch.cat([torch.zeros(len(corner), old, dtype=torch.float64), corner], dim=1)
        self.triangle = torch.cat([upper, lower])
        self.basis = torch.cat([self.basis, block], dim=1)
        self.images = torch.cat([self.images, images], dim=1)

    def _orthonormalise(self, products: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(R, Q)`` of what is left of new products; only its numerical range where that is deficient."""
        block, corner = torch.linalg.qr(products)
        for _ in range(1 if self.rank else 0):  # what QR magnified from rounding may lean into the old basis again
            block = block - self.basis @ (self.basis.T @ block)
            block, turn = torch.linalg.qr(block)
            corner = turn @ corner
        small = corner.to("cpu", torch.float64)
        left, values, right = torch.linalg.svd(small)
        # Products of length |A|_F carry rounding of about eps |A|_F; what is not above it is no direction of the range.
        alive = int((values > 10 * self.eps * self.norm).sum())
        if alive == products.shape[1]:
            return small, block
        self.exact = True
        turn = left[:, :alive].to(block)
        return values[:alive, None] * right[:alive], block @ turn

    def directions(self) -> Tensor:
        """Return ``S``, ``(r, k)``: in the basis, column i is the unit direction that probe i alone has brought.

        It is orthogonal to every other column of ``R``, so it is column i of ``R^{-T}``, normalised (Epperly, Tropp and
        Webber, 2024, SIAM J. Matrix Anal. Appl. 45, 1, section 2.3).
        """
        identity = torch.eye(self.size, dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(self.triangle, identity, upper=True)
        directions: Tensor = (inverse / inverse.norm(dim=1, keepdim=True)).T
        return directions
