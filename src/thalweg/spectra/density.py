"""The density of eigenvalues by stochastic Lanczos quadrature, with error bands over probes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.operators.base import Operator
from thalweg.spectra.estimate import EstimateStop
from thalweg.spectra.krylov import Krylov
from thalweg.spectra.quadratures import Density as Density
from thalweg.spectra.sampling import safety, stream_of, unfinished


def spectral_density(
    operator: Operator,
    *,
    probes: int = 10,
    steps: int = 40,
    target: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> Density:
    r"""Estimate the density of eigenvalues, ``(1/P) sum_i delta(x - lambda_i)``.

    From a random unit vector v, Lanczos steps with full reorthogonalisation give the Gauss quadrature of
    ``v' f(A) v``, whose mean over v is ``tr f(A) / P``: nodes are Ritz values, weights the squares of the first
    entries of their eigenvectors. It is exact for polynomials of degree ``2 steps - 1``.

    Args:
        operator: Symmetric, shape ``(P, P)``.
        probes: Random vectors; with a target, those of the first round.
        steps: Lanczos steps a probe, at most P; ``steps + 1`` vectors are kept. Resolution is about range / steps.
        target: Add probes until the integrated standard error of the smoothed density (`Density.distance`) is below
            this: the fraction of mass in doubt.
        max_products: Budget. Default: what ``probes`` need without a target, 10,000 with one.
        seed: Seed of the probes.
        strict: Raise where the target is not met; False returns what there is.

    Returns:
        `Density`.

    Raises:
        InvalidInput: Fewer than 2 probes or 1 step, or a budget below ``probes * steps``.
        NotConverged: The budget did not reach the target (``strict=True``); ``error.result`` holds the density.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> from thalweg.operators import from_dense
        >>> A = from_dense(torch.diag(torch.linspace(-1, 3, 100, dtype=torch.float64)))
        >>> found = spectral_density(A, probes=20, steps=15)
        >>> low, high = found.moment(1).interval()
        >>> bool(low < 1.0 < high), bool(torch.allclose(found.weights.sum(dim=1), torch.ones(20).double()))
        (True, True)

    Sources: Golub and Meurant (2010, Matrices, Moments and Quadrature); Ubaru, Chen and Saad (2017, SIAM J. Matrix
    Anal. Appl. 38, 4), algorithm 1.
    """
    steps = min(steps, operator.size)
    first = probes * steps
    budget = max_products if max_products is not None else (first if target is None else max(10_000, first))
    if probes < 2 or steps < 1 or budget < first or (target is not None and not target > 0):
        raise InvalidInput(
            explain(
                f"spectral_density got probes={probes}, steps={steps}, max_products={max_products}, target={target}",
                "it needs two probes for an error, a step, a positive target, and products for the first round",
                f"Pass probes >= 2, steps >= 1, max_products >= {first}",
            )
        )
    start = operator.products
    rows: list[tuple[Tensor, Tensor, bool]] = []
    goal = probes if target is not None else max(probes, budget // steps if max_products is not None else 0)
    while True:
        rows += [_quadrature(operator, steps, stream_of(seed, f"density {i}")) for i in range(len(rows), goal)]
        found = _collect(rows, operator, operator.products - start, EstimateStop.SPENT)
        if target is None:
            return found
        bound = found.distance() / safety(len(rows) - 1)
        if bound <= target:
            return _collect(rows, operator, found.products, EstimateStop.TARGET)
        wanted = math.ceil(len(rows) * min(max((bound / target) ** 2, 1.5), 2.0))
        goal = min(wanted, len(rows) + (budget - found.products) // steps)
        if goal <= len(rows):
            short = _collect(rows, operator, found.products, EstimateStop.BUDGET)
            return unfinished(short, found.distance(), target, strict)


def _quadrature(operator: Operator, steps: int, stream: torch.Generator) -> tuple[Tensor, Tensor, bool]:
    """Return nodes, weights and whether the Krylov space of one probe is invariant."""
    space = Krylov(operator, steps, stream)
    space.begin(None)
    while space.size < steps:
        space.expand()
        if space.beta == 0.0:
            break
    values, vectors, _ = space.ritz()
    weights = vectors[0] ** 2
    short = steps - space.size
    nodes = np.concatenate([values, np.full(short, values[-1])])
    weights = np.concatenate([weights / weights.sum(), np.zeros(short)])
    return torch.from_numpy(nodes), torch.from_numpy(weights), space.beta == 0.0


def _collect(rows: list[tuple[Tensor, Tensor, bool]], operator: Operator, products: int, stop: EstimateStop) -> Density:
    nodes, weights = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    return Density(nodes, weights, operator.size, products, stop, all(r[2] for r in rows))
