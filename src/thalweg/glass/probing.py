"""Mini-batches, signs and random states of probes: whatever is compared sees one batch and one set of masks."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NonFinite, NotDifferentiable, explain
from thalweg.problem.guards import preserved_rng
from thalweg.problem.problem import Problem
from thalweg.spectra.layers import layer_groups

COARSE = 0.05
"""Largest relative rounding of a probe's displacement: beyond it other points are compared than were asked for."""
USUAL = 64
"""Samples in a mini-batch where none are named and the data has four times as many."""


def point_of(problem: Problem, w: Tensor | None) -> Tensor:
    """Return ``w``, by default the model's own, checked for its shape."""
    point = problem.initial if w is None else w.detach().to(problem.device, problem.dtype)
    problem.layout.split(point)
    return point


def mini_batches(problem: Problem, batches: int, batch_size: int | None, seed: int) -> list[Problem]:
    """Return mini-batches, each as a problem of its own.

    Args:
        problem: Its samples are drawn without replacement, epoch after epoch; of a loader its own batches are taken.
        batches: How many; of a loader at most.
        batch_size: Samples in each; None: 64, or a quarter of the samples if those are fewer.
        seed: Of the permutations.

    Raises:
        InvalidInput: A number is out of range, or a batch size is given for a loader.
    """
    size = problem._batches.samples
    if batches < 1:
        raise InvalidInput(explain(f"batches is {batches}", "at least one is looked at", "Pass two or more"))
    if size is None:
        if batch_size is not None:
            raise InvalidInput(
                explain(
                    f"batch_size is {batch_size} and the data is a loader",
                    "it has cut its batches itself",
                    "Leave batch_size out, or give the Problem tensors or a map-style Dataset",
                )
            )
        return _own(problem, batches)
    wanted = min(USUAL, max(size // 4, 1)) if batch_size is None else batch_size
    if not 1 <= wanted <= size:
        raise InvalidInput(
            explain(
                f"The mini-batch size is {wanted}",
                f"the data has {size} samples",
                "Choose a size between 1 and that, or None",
            )
        )
    found: list[Problem] = []
    epoch = 0
    while len(found) < batches:
        order = torch.randperm(size, generator=_rng.generator(seed, "glass batches", epoch))
        for place in range(0, size - wanted + 1, wanted):
            if len(found) < batches:
                found.append(problem.subset(order[place : place + wanted]))
        epoch += 1
    return found


def _own(problem: Problem, most: int) -> list[Problem]:
    found = []
    for batch, _ in problem.batches():
        part = copy.copy(problem)
        part.notes = {}
        part.batches = lambda held=batch: iter([(held, 1.0)])  # type: ignore[method-assign, misc]
        found.append(part)
        if len(found) == most:
            break
    return found


@contextmanager
def shared_state(problem: Problem, seed: int, number: int) -> Iterator[None]:
    """Set the random state of batch ``number`` while open: every evaluation starts from it and so draws the same masks.

    An evaluation of a `Problem` puts the random state back where it was, so that one setting serves all of them. The
    caller's state is restored, and running averages of BatchNorm are not touched by any evaluation.
    """
    chosen = _rng.derive_seed(seed, "glass masks", number)
    with preserved_rng(problem.device):
        random.seed(chosen)
        np.random.seed(chosen % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(chosen)
        if problem.device.type == "cuda":
            torch.cuda.default_generators[problem.device.index or 0].manual_seed(chosen)
        yield


def signs(problem: Problem, seed: int, number: int) -> Tensor:
    """Return the signs of batch ``number``, shape ``(P,)``: plus and minus one with equal chances."""
    stream = _rng.generator(seed, "glass signs", number)
    drawn = torch.randint(0, 2, (problem.dimension,), generator=stream, dtype=torch.int8)
    return (2 * drawn - 1).to(problem.device, problem.dtype)


def gradient(part: Problem, point: Tensor) -> Tensor:
    """Return the gradient there, shape ``(P,)``.

    Raises:
        NonFinite: An entry is NaN or infinite.
    """
    found = part.gradient(point)
    if not bool(torch.isfinite(found).all()):
        raise NonFinite(
            explain(
                "A gradient is NaN or infinite",
                "differences of gradients have no meaning there",
                "Look at the loss at this point, or pass a smaller sigma",
            )
        )
    return found


def displacement_rounding(w: Tensor, sigma: float) -> float:
    r"""Return the root mean square of ``fl(w + \sigma) - w - \sigma``: what the number format takes off a probe.

    Raises:
        InvalidInput: ``sigma`` is not positive, or more than 5 % of it is lost.
    """
    if not 0 < sigma < float("inf"):
        raise InvalidInput(explain(f"sigma is {sigma}", "it is the length of a probe", "Pass a positive number"))
    moved = (w + sigma).double() - w.double() - sigma
    error = float(moved.square().mean().sqrt())
    if error > COARSE * sigma:
        raise InvalidInput(
            explain(
                f"With sigma {sigma:g} the weights move by something else, {error / sigma:.0%} off, in {w.dtype}",
                "the probe is lost in the rounding of the weights",
                "Pass a larger sigma, or Problem(..., dtype=torch.float64)",
            )
        )
    return error


def gradient_rounding(part: Problem, point: Tensor, g: Tensor) -> Tensor:
    """Return ``g - g64``, shape ``(P,)``: the rounding of a gradient, by evaluating it once in float64.

    Of float64 itself, and of a model that cannot be evaluated in it, four units in the last place are assumed.
    """
    if point.dtype != torch.float64:
        try:
            exact = part.in_dtype(torch.float64).gradient(point.double())
            return (g.double() - exact).to(g.device)
        except (RuntimeError, TypeError, InvalidInput, NotDifferentiable):  # no float64 on this device or in this model
            pass
    return 4 * torch.finfo(point.dtype).eps * g.double().abs()


def tensor_means(problem: Problem, values: Tensor) -> np.ndarray:
    """Return the mean over each parameter tensor, float64, shape ``(tensors,)``."""
    return np.array([float(part.double().mean()) for part in problem.layout.split(values)])


@dataclass(frozen=True)
class Groups:
    """How tensors form layers.

    Attributes:
        names: Of the layers.
        members: Names of the tensors in each.
        sizes: Coordinates in each, shape ``(layers,)``.
        weights: What turns means over tensors into means over layers, shape ``(tensors, layers)``.
    """

    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    sizes: np.ndarray
    weights: np.ndarray

    @classmethod
    def layers(cls, problem: Problem) -> Groups:
        """Parameters of one module together."""
        return cls.of(problem, layer_groups(problem.layout.names))

    @classmethod
    def tensors(cls, problem: Problem) -> Groups:
        """Every tensor by itself."""
        return cls.of(problem, {name: [name] for name in problem.layout.names})

    @classmethod
    def of(cls, problem: Problem, groups: dict[str, list[str]]) -> Groups:
        """Return groups given by the names in each."""
        sizes = dict(zip(problem.layout.names, problem.layout.sizes))
        total = np.array([sum(sizes[name] for name in members) for members in groups.values()])
        weights = np.zeros((len(sizes), len(groups)))
        rows = {name: row for row, name in enumerate(sizes)}
        for column, members in enumerate(groups.values()):
            for name in members:
                weights[rows[name], column] = sizes[name] / total[column]
        return cls(tuple(groups), tuple(tuple(m) for m in groups.values()), total, weights)
