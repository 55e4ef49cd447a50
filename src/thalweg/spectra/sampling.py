"""Draw probes until an error is small enough or a budget is spent: the loop that all estimators share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NonFinite, NotConverged, explain
from thalweg.operators.base import Operator
from thalweg.spectra.estimate import Estimate, EstimateStop

FEWEST = 10
"""Probes below which no standard error is quoted: its own error would be larger than a quarter of it."""
_WITHOUT_TARGET = 100
"""Products granted where the caller names neither target nor budget."""
_MOST = 10_000
"""Products granted where the caller names a target only."""
ROWS = 1 << 16
"""Rows that are converted to float64 at a time."""


@dataclass(frozen=True)
class Moments:
    """What probes say so far: mean, standard error (without rounding), degrees of freedom, skewness of the mean."""

    value: Tensor
    error: Tensor
    degrees: float
    skewness: Tensor
    rounding: Tensor
    """What the rounding of the products can move the value by."""


class Stopped(Protocol):
    """A result that says what it cost and why it ended."""

    @property
    def products(self) -> int:
        """Operator products."""

    @property
    def stop(self) -> EstimateStop:
        """Why it ended."""


Result = TypeVar("Result", bound=Stopped)


class Sampler(Protocol):
    """An estimator that can take more probes."""

    method: str
    scale: Literal["linear", "square"]
    probes: int
    exact: bool
    """Whether the probes span the range of the operator."""
    deflates: bool
    """Whether more probes also make the rest smaller, so that the error falls faster than ``probes^{-1/2}``."""

    def cost(self, probes: int) -> int:
        """Return the products that growing to ``probes`` will take, at most."""

    def grow(self, probes: int) -> None:
        """Take probes until there are ``probes``."""

    def moments(self) -> Moments:
        """Return what they say."""

    def by_columns(self) -> Moments:
        """Return the exact value by P products with unit vectors."""


def estimate(
    operator: Operator, sampler: Sampler, target: float | None, max_products: int | None, strict: bool
) -> Estimate:
    """Run ``sampler`` to ``target`` (relative standard error) or through the budget.

    With a target, the error is looked at after 10 probes and then only when their number has grown by a quarter to
    twice, as the power of the number with which the error has fallen suggests. It must be below the target with 90 per
    cent confidence: a rule that looks after every probe, or takes a standard error at its word, stops at the first one
    that is too small by chance, and its intervals cover too little. Where all columns are the cheaper way, even if the
    error is smaller than it looks, they are taken.

    Raises:
        InvalidInput: The target or the budget makes no sense.
        NotConverged: The budget ran out before the target was met (``strict=True``).
    """
    least = min(sampler.cost(FEWEST), operator.size)
    check(target, max_products, least)
    budget = max_products or max(_MOST if target is not None else _WITHOUT_TARGET, least)
    start = operator.products

    def rounding(found: Moments) -> Tensor:
        return torch.hypot(found.rounding, torch.finfo(operator.dtype).eps * found.value.abs())

    def result(found: Moments, stop: EstimateStop) -> Estimate:
        error = torch.hypot(found.error, rounding(found))
        shaped = [t.to(operator.dtype) for t in (found.value, error, found.skewness)]
        samples = sampler.probes if stop is not EstimateStop.EXACT or sampler.exact else operator.size
        return Estimate(
            shaped[0],
            shaped[1],
            operator.products - start,
            samples,
            stop,
            sampler.method,
            found.degrees,
            shaped[2],
            sampler.scale,
        )

    goal = FEWEST if target is not None else _affordable(sampler, budget)
    dear = target is None or sampler.cost(goal) >= operator.size
    pace = _Pace(sampler.deflates)
    while True:
        if dear and operator.products - start + operator.size <= budget:
            return result(sampler.by_columns(), EstimateStop.EXACT)
        sampler.grow(goal)
        found = sampler.moments()
        now = result(found, EstimateStop.EXACT if sampler.exact else EstimateStop.SPENT)
        if sampler.exact or target is None:
            return now
        relative = now.relative_error
        if relative <= target * safety(found.degrees):
            return result(found, EstimateStop.TARGET)
        if float(rounding(found).double().norm()) > target * float(found.value.double().norm()):
            return unfinished(result(found, EstimateStop.ROUNDING), relative, target, strict)
        wanted = pace.next(sampler.probes, relative, target * safety(found.degrees))
        goal = min(wanted, _affordable(sampler, budget - (operator.products - start)))
        hopeful = relative / (1 + 2 * relative) if math.isfinite(relative) else 0.5  # a value that is too small by 2 s
        likely = math.ceil(sampler.probes * (hopeful / target) ** 2)
        dear = max(sampler.cost(goal), 0 if sampler.deflates else sampler.cost(likely)) >= operator.size
        if goal <= sampler.probes:
            return unfinished(result(found, EstimateStop.BUDGET), relative, target, strict)


class _Pace:
    """How many probes to have at the next look, from how fast the error has fallen."""

    def __init__(self, deflates: bool) -> None:
        self.deflates = deflates
        self.last: tuple[int, float] | None = None

    def next(self, probes: int, error: float, wanted: float) -> int:
        """Return the number that suffices if the error goes on as a power of it; a quarter to twice as many."""
        power = 0.5
        if self.deflates and self.last is not None and math.isfinite(self.last[1]):
            fallen = math.log(self.last[1] / error) / math.log(probes / self.last[0])
            power = min(max(fallen, power), 4.0)
        self.last = (probes, error)
        growth = (error / wanted) ** (1 / power) if math.isfinite(error) else 2.0
        return math.ceil(probes * min(max(growth, 1.25), 2.0))


def check(target: float | None, max_products: int | None, least: int) -> None:
    """Refuse a target or a budget that makes no sense; ``least`` products are needed for a standard error."""
    if target is not None and not target > 0:
        raise InvalidInput(
            explain(f"target is {target}", "it is a relative standard error", "Pass 0.01 for one per cent")
        )
    if max_products is not None and max_products < least:
        raise InvalidInput(
            explain(
                f"max_products is {max_products}",
                f"a standard error of this method needs at least {least} products",
                "Grant more, or take a method that needs fewer",
            )
        )


def draw(operator: Operator, count: int, stream: torch.Generator, kind: Literal["normal", "signs"]) -> Tensor:
    """Return ``count`` probes, shape ``(P, count)``: independent normal entries, or independent signs."""
    block = torch.empty(operator.size, count, dtype=operator.dtype, device=operator.device)
    for j in range(count):  # column by column: the float64 original of all of them would need twice the memory
        if kind == "normal":
            block[:, j] = torch.randn(operator.size, generator=stream, dtype=torch.float64).to(block)
        else:
            signs = torch.randint(0, 2, (operator.size,), generator=stream, dtype=torch.int8)
            block[:, j] = (2 * signs - 1).to(block)
    return block


def stream_of(seed: int, name: str) -> torch.Generator:
    """Return the random stream of an estimator."""
    return _rng.generator(seed, "estimate", name)


def multiply(operator: Operator, block: Tensor) -> Tensor:
    """Return ``A V``, or say that a product is not finite."""
    product = operator.matmat(block)
    if not bool(torch.isfinite(product).all()):
        raise NonFinite(
            explain(
                f"A product among the last {block.shape[1]} of {operator.products} is not finite",
                "the loss overflows or has left its domain at this point",
                "Check the loss and gradient there; lower the learning rate, or use float64",
            )
        )
    return product


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left' right`` in float64 on the CPU, converting some rows at a time."""
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for a, b in zip(torch.split(left, ROWS), torch.split(right, ROWS)):
        total += a.double().T @ b.double()
    return total.cpu()


def columns(operator: Operator, take: Callable[[Tensor, int], None], width: int = 16) -> None:
    """Multiply all P unit vectors, ``width`` at a time, and give ``A[:, j:j+width]`` and ``j`` to ``take``."""
    for first in range(0, operator.size, width):
        count = min(width, operator.size - first)
        block = torch.zeros(operator.size, count, dtype=operator.dtype, device=operator.device)
        block[range(first, first + count), range(count)] = 1.0
        take(multiply(operator, block), first)


def exactly(value: Tensor, rounding: Tensor) -> Moments:
    """Moments of a value that is exact to ``rounding``."""
    return Moments(value, torch.zeros_like(value), math.inf, torch.zeros_like(value), rounding)


def safety(degrees: float) -> float:
    """The factor by which a standard error may be too small, with 10 per cent probability of worse."""
    from scipy import stats

    return 1.0 if math.isinf(degrees) else math.sqrt(float(stats.chi2.ppf(0.1, degrees)) / degrees)


def _affordable(sampler: Sampler, products: int) -> int:
    """The most probes that ``products`` more can reach."""
    low, high = sampler.probes, sampler.probes + products + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sampler.cost(middle) <= products else (low, middle)
    return low


def unfinished(result: Result, relative: float, target: float, strict: bool) -> Result:
    """Raise `NotConverged` with ``result``, or return it."""
    if strict:
        raise NotConverged(
            explain(
                f"After {result.products} products the relative standard error is {relative:.2g}, "
                f"the target {target:.2g}",
                result.stop.value.split(": ")[0],
                f"To go on, {result.stop.value.split(': ')[1].rstrip('.')}; strict=False returns the estimate so far",
            ),
            result,
        )
    return result
