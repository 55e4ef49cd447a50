r"""Weights whose length does not matter: found by rescaling, and the gradient level that does not depend on it.

For weights ``w`` that a normalisation follows, ``L(c w) = L(w)``, hence ``<w, \nabla_w L> = 0`` and
``\nabla L(c w) = \nabla L(w) / c``. Where decay shrinks ``|w|`` the gradient norm grows though nothing else changes;
``|w| |\nabla_w L|``, the gradient on the unit sphere, does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg._vectors import Layout
from thalweg.errors import InvalidInput, explain
from thalweg.problem import Problem
from thalweg.runs.gradient_draws import Draws, Mode
from thalweg.runs.gradient_moments import Moments, Products, moments
from thalweg.runs.gradient_sums import groups_of, joined
from thalweg.spectra.layers import layer_groups

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FACTORS = (2.0, 0.5)
"""Powers of two: rescaling then rounds nothing."""
SAME_LOSS = 1e-3
"""Relative change of the loss up to which it is the same; the eps of a norm may take as much."""
SAME_GRADIENT = 2e-2
"""Relative error of ``c \\nabla L(c w) = \\nabla L(w)`` up to which it holds; without invariance it is 1 or more."""
RADIAL = 1e-2
"""``|<w, \\nabla L>| / (|w| |\\nabla L|)`` up to which rescaling is tried."""
_IDLE = 1e-6


@dataclass(frozen=True)
class Invariance:
    r"""Groups of parameters whose common scale the loss ignores.

    Attributes:
        groups: Names of parameters by group.
        loss: Largest relative change of the loss by rescaling each.
        gradient: Largest relative error of ``c \nabla L(c w) = \nabla L(w)`` of each.
        radial: ``|<w, \nabla L>| / (|w| |\nabla L|)`` of each, zero by Euler's identity.
        passes: Forward-backward passes that it took.
    """

    groups: Mapping[str, tuple[str, ...]]
    loss: Mapping[str, float]
    gradient: Mapping[str, float]
    radial: Mapping[str, float]
    passes: int

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} ({self.gradient[name]:.0e})" for name in list(self.groups)[:6])
        more = ", ..." if len(self.groups) > 6 else ""
        return f"Invariance({len(self.groups)} groups: {shown}{more})"


@dataclass(frozen=True)
class ScaleFree:
    r"""``F = |w|^2 |\nabla_w L|^2`` of each scale-invariant group, unbiased: the squared gradient on the unit sphere.

    Attributes:
        groups: Moments times ``|w|^2``, by group; decay has no part in them, as it acts along ``w``.
        norms: ``|w|`` by group.
        invariance: How the groups were found and checked; None where they were given.
    """

    groups: Mapping[str, Moments]
    norms: Mapping[str, float]
    invariance: Invariance | None

    @property
    def unbiased(self) -> float:
        """Sum of F over groups; NaN where there is none."""
        return sum(one.unbiased for one in self.groups.values()) if self.groups else math.nan

    @property
    def noise(self) -> float:
        """Sum of ``|w|^2 V`` over groups; NaN where there is none."""
        return sum(one.noise for one in self.groups.values()) if self.groups else math.nan

    def plot(self) -> Figure:
        """Draw F by group with intervals."""
        import plotly.graph_objects as go

        bars = go.Bar(
            x=list(self.groups),
            y=[one.unbiased for one in self.groups.values()],
            error_y={"type": "data", "array": [1.96 * one.standard_error for one in self.groups.values()]},
        )
        return go.Figure(bars).update_layout(title="Scale-free squared gradient", yaxis_title="|w|² |∇L|²")

    def __repr__(self) -> str:
        if not self.groups:
            return "scale-free: no group of parameters is scale-invariant"
        count = len(self.groups)
        return f"scale-free: |w|² U = {self.unbiased:.4g} over {count} scale-invariant group{'s' if count > 1 else ''}"


def scale_invariant(
    problem: Problem,
    w: Tensor | None = None,
    *,
    batch_size: int | None = None,
    mode: Mode = "train",
    seed: int = 0,
    batches: int = 2,
) -> Invariance:
    r"""Find groups of parameters with ``L(c w) = L(w)``, by doubling and halving them.

    Candidates have ``<w, \nabla_w L> = 0`` on each mini-batch: single tensors first, then what is left of a module's
    own parameters together (a layer with a bias before LayerNorm). All of them are rescaled at once, each by another
    factor, which must keep the loss and ``c \nabla_w L(c w) = \nabla_w L(w)``, and every other gradient as it was;
    where that fails, one after the other. Tensors without a gradient, such as a bias before BatchNorm, are not counted.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; None: where the model is.
        batch_size: Samples in a mini-batch; None: 64, or all where there are fewer.
        mode: Of the model.
        seed: Of the mini-batches.
        batches: Mini-batches on which it must hold, 2 at least for both factors.

    Returns:
        `Invariance`.

    Raises:
        NonFinite: A loss or gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        >>> x = torch.randn(50, 3)
        >>> problem = Problem(net, torch.nn.MSELoss(), (x, x[:, :2]))
        >>> list(scale_invariant(problem).groups)
        ['0.weight']
    """
    size = min(64, problem._batches.samples or 64) if batch_size is None else batch_size
    point = (problem.initial if w is None else problem._own(w)).detach()
    search = _Search(Draws(problem, size, seed, mode), point, max(2, batches))
    names = problem.layout.names
    candidates = search.candidates()
    found = search.rescale(candidates)
    if not all(_holds(one) for one in found.values()):  # one that fails spoils the others
        found = {name: search.rescale({name: places})[name] for name, places in candidates.items()}
    found = {name: one for name, one in found.items() if _holds(one)}
    return Invariance(
        {name: tuple(names[t] for t in candidates[name]) for name in found},
        {name: one[0] for name, one in found.items()},
        {name: one[1] for name, one in found.items()},
        {name: search.radial(candidates[name]) for name in found},
        search.passes,
    )


def _holds(errors: tuple[float, float]) -> bool:
    return errors[0] <= SAME_LOSS and errors[1] <= SAME_GRADIENT


class _Search:
    """Losses and gradients of a few mini-batches at ``w``, and what rescaling does to them."""

    def __init__(self, draws: Draws, w: Tensor, batches: int) -> None:
        self.draws, self.w, self.layout = draws, w, draws.problem.layout
        self.before = [draws.gradient(w, i) for i in range(batches)]
        self.passes = batches
        self.parts = self.layout.split(w)
        self.lengths = [_length([part]) for part in self.parts]
        self.whole = [_length(grads) for _, grads in self.before]
        self.idle = [
            any(_length([grads[t]]) <= _IDLE * whole for (_, grads), whole in zip(self.before, self.whole))
            for t in range(len(self.parts))
        ]

    def radial(self, places: Sequence[int]) -> float:
        r"""Return the largest ``|<w, \nabla L>| / (|w| |\nabla L|)`` over mini-batches."""
        length = _length([self.parts[t] for t in places])
        if length == 0:
            return math.inf
        found = []
        for _, grads in self.before:
            inner = abs(sum(float((self.parts[t].double() * grads[t].double()).sum()) for t in places))
            found.append(inner / (length * _length([grads[t] for t in places])))
        return max(found)

    def candidates(self) -> dict[str, list[int]]:
        """Return groups that satisfy Euler's identity, by name."""
        found: dict[str, list[int]] = {}
        for module, members in layer_groups(self.layout.names).items():
            live = [t for t in map(self.layout.names.index, members) if not self.idle[t]]
            # Beside a partner of length zero a tensor passes alone, though only the two together are invariant.
            alone = [t for t in live if self.radial([t]) <= RADIAL] if all(self.lengths[t] for t in live) else []
            found |= {self.layout.names[t]: [t] for t in alone}
            left = [t for t in live if t not in alone]
            if len(left) > 1 and self.radial(left) <= RADIAL:
                found[module] = left
        return found

    def rescale(self, groups: Mapping[str, Sequence[int]]) -> dict[str, tuple[float, float]]:
        """Rescale all groups at once; return the relative change of the loss and the error of the gradient of each."""
        errors = dict.fromkeys(groups, (0.0, 0.0))
        for i, (value, grads) in enumerate(self.before if groups else []):
            factors = [1.0] * len(self.parts)
            for k, places in enumerate(groups.values()):
                for t in places:
                    factors[t] = FACTORS[(k + i) % 2]
            moved = self.w.clone()
            for part, factor in zip(self.layout.split(moved), factors):
                part.mul_(factor)
            now, after = self.draws.gradient(moved, i)
            self.passes += 1
            off = [factor * a.double() - g.double() for factor, a, g in zip(factors, after, grads)]
            rest = _length([o for o, factor in zip(off, factors) if factor == 1.0]) / self.whole[i]
            change = abs(now - value) / max(abs(value), 1e-30)
            for name, places in groups.items():
                own = _length([off[t] for t in places]) / _length([grads[t] for t in places])
                errors[name] = max(errors[name][0], change), max(errors[name][1], own, rest)
        return errors


def _length(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def scale_free(
    layout: Layout,
    w: Tensor,
    products: Callable[[int], Products],
    groups: Invariance | Mapping[str, Sequence[str]],
) -> ScaleFree:
    """Return ``|w|^2`` times the moments of each group.

    Args:
        layout: Of ``w``.
        w: The point, shape ``(P,)``.
        products: Gives the inner products of one tensor's gradients by its place.
        groups: Names of parameters, by group.

    Raises:
        InvalidInput: A group names a tensor that is not there, or two groups share one.
    """
    named = groups.groups if isinstance(groups, Invariance) else groups
    places = groups_of(layout.names, named)
    flat = [t for members in places.values() for t in members]
    if len(flat) != len(set(flat)):
        raise InvalidInput(
            explain("Two scale-invariant groups share a tensor", "their sum would count it twice", "Take them apart")
        )
    parts = layout.split(w)
    norms, found = {}, {}
    for name, members in places.items():
        square = sum(float(parts[t].double().square().sum()) for t in members)
        norms[name] = math.sqrt(square)
        found[name] = moments(joined([products(t) for t in members])).scaled(square)
    return ScaleFree(found, norms, groups if isinstance(groups, Invariance) else None)
