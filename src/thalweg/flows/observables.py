r"""What a flow predicts for any function of the weights: its average over the oscillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.flows.process import Frame

Observable = Callable[[Tensor], "Tensor | float"]
"""A number from flat weights, shape ``(P,)``."""


def average(observable: Observable, frame: Frame) -> tuple[float, float]:
    r"""Return ``phi(w)`` and ``phi(w) + 1/2 <\nabla^2 phi, Sigma>``.

    The second derivative along each direction of ``Sigma = sum_i xi_i u_i u_i'`` is taken between the walls,
    ``phi(w + h) + phi(w - h) - 2 phi(w)`` with ``h = xi_i^{1/2} u_i``: two evaluations for each direction that
    oscillates, and more than the second order where the oscillation is wide. (arXiv 2410.24206 predicts averages so,
    by the exact second derivative.)
    """
    here = float(observable(frame.w))
    total = here
    if frame.X is not None and frame.directions is not None:
        for variance, direction in zip(frame.X.tolist(), frame.directions.T):
            if variance > 0:
                step = variance**0.5 * direction
                total += 0.5 * (float(observable(frame.w + step)) + float(observable(frame.w - step)) - 2 * here)
    return here, total


def observe(observables: Mapping[str, Observable], frames: Mapping[str, Frame]) -> dict[str, float]:
    """Return all observables of all processes, and their predicted averages."""
    found = {}
    with torch.no_grad():
        for name, observable in observables.items():
            for process, frame in frames.items():
                if process == "central":
                    found[f"{name}_central"], found[f"predicted_{name}"] = average(observable, frame)
                else:
                    found[f"{name}_{process}"] = float(observable(frame.w))
    return found


def check_names(observables: Mapping[str, Observable], taken: set[str]) -> None:
    """Refuse names that cannot stand beside the flow's own.

    Raises:
        InvalidInput: A name is no identifier, or is one of the flow's own.
    """
    for name in observables:
        if not name.isidentifier() or name in taken:
            raise InvalidInput(
                explain(
                    f"An observable is called {name!r}",
                    f"it names variables of the result, which has {', '.join(sorted(taken))} of its own",
                    "Choose another identifier, such as test_loss",
                )
            )
