"""Everything about glass at one point: density, powers, loss change, and which curvature matters where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import InvalidInput, NonFinite, NotDifferentiable, explain
from thalweg.glass.change import (
    LENGTHS,
    LossChange,
    compare_loss_change,
    expected_loss_change,
    measured_loss_change,
)
from thalweg.glass.density import GlassDensity, glass_density
from thalweg.glass.exponents import Exponents, variation_exponents
from thalweg.glass.printed import change_table, layer_table
from thalweg.glass.probing import gradient, mini_batches, point_of, shared_state
from thalweg.glass.words import LayerMatter, glassy, matters, summary
from thalweg.optim.virtual import virtual_update
from thalweg.problem.problem import Problem
from thalweg.rules.base import State
from thalweg.rules.live import Source

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

USUAL_SIGMA = 1e-3
"""Length of the probe per coordinate where there is no update to take it from."""
SHORTEST = 100.0
"""Distances are at least so many times the rounding of the weights."""


@dataclass(frozen=True)
class Glass:
    """What `look` found.

    Attributes:
        density: Density and curvature by coordinate, tensor and layer.
        exponents: Powers of gradient variation by layer.
        change: Loss change along the update, expected and measured; None without an update, or without a second
            derivative.
        layers: Which curvature matters in each layer, at the length of the step there.
        step: The update that was followed, shape ``(P,)``; None without one.
        notes: What limits the meaning of the numbers, in sentences.
    """

    density: GlassDensity
    exponents: Exponents
    change: LossChange | None
    layers: tuple[LayerMatter, ...]
    step: Tensor | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Which curvature matters in which layers, at which step length; what glass does along the update."""
        return summary(self)

    @property
    def glassy(self) -> bool:
        """Whether kinks show in the loss along the update; False without an update."""
        return glassy(self)

    def __repr__(self) -> str:
        parts = [self.text, layer_table(self), *([change_table(self.change, self.glassy)] if self.change else [])]
        return "\n\n".join([*parts, *self.notes])

    def plot(self) -> Figure:
        """Draw the loss change along the update; without an update the variation of gradients with distance."""
        return self.exponents.plot() if self.change is None else self.change.plot()


def look(
    problem: Problem,
    w: Tensor | None = None,
    *,
    update: Source | Tensor | None = None,
    state: State | None = None,
    sigma: float | None = None,
    batches: int = 16,
    batch_size: int | None = None,
    distances: Sequence[float] | None = None,
    lengths: Sequence[float] = LENGTHS,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> Glass:
    r"""Measure glass at ``w`` and say which curvature matters: `glass_density`, `variation_exponents`, loss changes.

    A layer's glass matters below the move ``s* = (8 / 3 \pi) \rho / h^2`` per coordinate at which its part of the
    expected loss change, ``c \sqrt{\rho} s^{3/2}``, equals the Hessian's ``h s^2 / 2``, ``h^2`` being the mean of
    ``\sum_j H_ij^2``; layers without jumps by their powers have none.

    Live dropout shares its masks between the gradients that are compared: give the problem ``check=False``, which lets
    a random loss pass. Weights of 16 bits, in whose rounding a probe would be lost, are probed in float32.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``.
        update: What moves the weights: a torch optimizer on ``problem.model`` or a rule, whose next update from the
            gradient of one further mini-batch is followed and not taken, or a step, shape ``(P,)``. None: the loss
            change is left out.
        state: State of a rule.
        sigma: Length of the probe per coordinate; default the root mean square of the update, else 1e-3.
        batches: Mini-batches of each measurement.
        batch_size: Samples in each; default 64, or a quarter of the data if that is less.
        distances: For the powers; default four from a tenth of sigma to three of it.
        lengths: Multiples of the update at which the loss is looked at.
        seed: Of batches, signs and masks.
        progress: Called with what is measured and the number of batches done.

    Returns:
        `Glass`; ``print(found.text)`` for the answer in words. It costs some 18 gradients a batch.

    Raises:
        InvalidInput: A number is out of range, or the update does not move.
        NonFinite: A gradient or loss is not finite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> Linear, ReLU = torch.nn.Linear, torch.nn.ReLU
        >>> model = torch.nn.Sequential(Linear(10, 50), ReLU(), Linear(50, 50), ReLU(), Linear(50, 1))
        >>> x = torch.randn(800, 10)
        >>> problem = Problem(model, torch.nn.MSELoss(), (x, torch.randn(800, 1)))
        >>> found = look(problem, update=torch.optim.Adam(model.parameters(), lr=1e-3), batches=8)
        >>> [(layer.name, layer.curvature) for layer in found.layers]
        [('0', 'glass'), ('2', 'glass'), ('4', 'Hessian')]
    """
    point = point_of(problem, w)
    step = None if update is None else _step(problem, point, update, state, batch_size, seed)
    least = _least(point)
    notes = []
    wanted = sigma
    if wanted is None:
        wanted = USUAL_SIGMA if step is None else float(step.double().square().mean().sqrt())
    if wanted < least and torch.finfo(point.dtype).bits < 32:
        notes.append(
            f"A probe of {wanted:.1e} is lost in the rounding of {str(point.dtype).removeprefix('torch.')}: the same "
            "weights are probed in float32."
        )
        problem, point = problem.in_dtype(torch.float32), point.float()
        step = None if step is None else step.float()
        least = _least(point)
    if sigma is None:
        sigma = wanted
        if sigma < least:
            notes.append(
                f"The update moves weights by {sigma:.1e} on average, which is near the rounding of {point.dtype}: "
                f"the probe is {least:.1e} long instead. Pass Problem(..., dtype=torch.float64) to look closer."
            )
            sigma = least
    if distances is None:
        low = max(sigma / 10, least)
        distances = tuple(np.geomspace(low, max(3 * sigma, 10 * low), 4))

    def tell(what: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(what, done)

    def measure(hessian: bool) -> GlassDensity:
        return glass_density(
            problem,
            point,
            sigma=sigma,
            batches=batches,
            batch_size=batch_size,
            hessian=hessian,
            seed=seed,
            progress=tell("density"),
        )

    twice = True
    try:
        density = measure(hessian=True)
    except NotDifferentiable as error:
        twice = False
        density = measure(hessian=False)
        notes.append(
            f"There is no Hessian: {str(error).split('. ')[0]}. Curvature by layer is what finite differences leave "
            "without their glass, and the loss change, which is held against a Hessian, is left out."
        )
    exponents = variation_exponents(
        problem,
        point,
        distances=distances,
        batches=batches,
        batch_size=batch_size,
        seed=seed,
        progress=tell("exponents"),
    )
    change = None
    if step is not None and twice:
        fine, at = _precise(problem, point)
        expected = expected_loss_change(
            fine,
            step,
            at,
            lengths=lengths,
            density=density,
            batches=batches,
            batch_size=batch_size,
            seed=seed,
            progress=tell("loss change"),
        )
        measured = measured_loss_change(
            fine, step, at, lengths=lengths, batches=batches, batch_size=batch_size, seed=seed
        )
        change = compare_loss_change(expected, measured)
    moves = _moves(problem, density, step, sigma)
    return Glass(density, exponents, change, matters(density, exponents, moves), step, tuple(notes))


def _least(point: Tensor) -> float:
    """Shortest probe that the number format takes without much rounding."""
    return SHORTEST * torch.finfo(point.dtype).eps * float(point.double().square().mean().sqrt())


def _step(
    problem: Problem, point: Tensor, update: Source | Tensor, state: State | None, batch_size: int | None, seed: int
) -> Tensor:
    """The step itself, or the update from the gradient of a mini-batch that no probe sees the masks of."""
    if isinstance(update, Tensor):
        step = update.detach().to(problem.device, problem.dtype)
        problem.layout.split(step)
    else:
        [part] = mini_batches(problem, 1, batch_size, seed + 1)
        with shared_state(problem, seed + 1, 0):
            force = gradient(part, point)
        virtual = virtual_update(problem, update, point, state, gradient=force)
        step = virtual.step(virtual.rate) - point
    if not bool(torch.isfinite(step).all()):
        raise NonFinite(
            explain(
                "The update has entries that are NaN or infinite",
                "the loss is followed along it",
                "Look at the gradient and the rule; in float16 the eps of Adam may be rounded to zero",
            )
        )
    if not bool(step.any()):
        raise InvalidInput(
            explain("The update does not move the weights", "the loss is followed along it", "Look at its rate")
        )
    return step


def _precise(problem: Problem, point: Tensor) -> tuple[Problem, Tensor]:
    """The problem in float64 where that works: what kinks do to a loss is often below the rounding of float32."""
    if problem.dtype == torch.float64:
        return problem, point
    fine = problem.in_dtype(torch.float64)
    try:
        [part] = mini_batches(fine, 1, 1 if problem._batches.samples is not None else None, 0)
        part.value(point.double())
    except (RuntimeError, TypeError):
        return problem, point
    return fine, point.double()


def _moves(problem: Problem, density: GlassDensity, step: Tensor | None, sigma: float) -> np.ndarray:
    """Root mean square move per coordinate in each layer; that of the probe without a step."""
    if step is None:
        return np.full(len(density.layers), sigma)
    squares = {
        name: (float(p.double().square().sum()), p.numel()) for name, p in problem.layout.unflatten(step).items()
    }
    found = []
    for row in density.layers:
        total, count = (sum(squares[name][i] for name in row.members) for i in range(2))
        found.append(math.sqrt(total / count))
    return np.array(found)
