"""What runs side by side in a comparison of flows: one step of time after another, with a record of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from thalweg.flows.laws import Law
from thalweg.problem import Problem
from thalweg.rules import State

PRODUCT, LINEARISATION = 1.5, 1.75
"""Cost of a Hessian product from a kept graph, and of recording the graph, in gradients (measured on an MLP)."""

SAMPLE = 25
"""Weights whose squared gradients are followed one by one."""


@dataclass
class Ledger:
    """What a process has computed, in pieces, and together in gradient-equivalents.

    Attributes:
        gradients: Gradients over all data.
        products: Hessian products from a kept graph.
        linearisations: Graphs recorded for them.
    """

    gradients: float = 0.0
    products: float = 0.0
    linearisations: float = 0.0

    @property
    def equivalents(self) -> float:
        """``gradients + 1.5 products + 1.75 linearisations``."""
        return self.gradients + PRODUCT * self.products + LINEARISATION * self.linearisations


@dataclass(frozen=True)
class Frame:
    """One process at one time.

    Attributes:
        time: In steps of the discrete rule.
        w: Weights, shape ``(P,)``.
        values: Scalars by name; see `thalweg.flows.result` for units.
        eigenvalues: Effective eigenvalues (of ``P^{-1} H``) known here, descending, or None.
        X: Covariance of the oscillation in the basis of ``directions``, or None.
        basis: Critical directions in weight space, ``(P, k)``, shared by the frames of a segment, or None.
        turn: ``(k, k)``: ``basis @ turn`` are `directions`.
        metric: ``P`` of this step.
        sample: Squared entries of the gradient at the coordinates of `sampled`, or None.
        predicted_sample: Their averages over the oscillation, or None.
    """

    time: float
    w: Tensor
    values: dict[str, float] = field(default_factory=dict)
    eigenvalues: Tensor | None = None
    X: Tensor | None = None
    basis: Tensor | None = None
    turn: Tensor | None = None
    metric: Tensor | None = None
    sample: Tensor | None = None
    predicted_sample: Tensor | None = None

    @property
    def directions(self) -> Tensor | None:
        """Critical eigenvectors, ``(P, k)``, ``U' P U = I``, in which X is diagonal; None where nothing oscillates."""
        return self.basis if self.basis is None or self.turn is None else self.basis @ self.turn.to(self.basis)


@lru_cache(maxsize=16)
def sampled(size: int) -> Tensor:
    """Return the positions of up to `SAMPLE` weights, equally spaced."""
    return torch.linspace(0, size - 1, min(size, SAMPLE)).round().long()


class Process(ABC):
    """A trajectory that advances by one unit of time, which is one step of the rule.

    Args:
        problem: Model, loss and data.
        law: The rule as flows see it.
        w: Starting point, shape ``(P,)``.
        state: State of the rule there, before the gradient at ``w`` is taken in.
    """

    name: str

    def __init__(self, problem: Problem, law: Law, w: Tensor, state: State) -> None:
        self.problem, self.law = problem, law
        self.w = w.detach().clone()
        self.state = {key: tensor.clone() for key, tensor in state.items()}
        self.time = 0.0
        self.ledger = Ledger()

    @property
    def point(self) -> Tensor:
        """Weights at the present time, that of the next frame."""
        return self.w

    @abstractmethod
    def step(self) -> Frame:
        """Record where the process is, and advance by one unit of time."""

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at ``w``, counted."""
        self.ledger.gradients += 1
        value, gradient = self.problem.value_and_gradient(w)
        return float(value), gradient

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        return {
            "w": self.w.clone(),
            "time": torch.tensor(self.time, dtype=torch.float64),
            "ledger": torch.tensor(
                [self.ledger.gradients, self.ledger.products, self.ledger.linearisations], dtype=torch.float64
            ),
            **{f"state.{key}": tensor.clone() for key, tensor in self.state.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.w, self.time = state["w"].clone(), float(state["time"])
        self.ledger = Ledger(*state["ledger"].tolist())
        self.state = {k.removeprefix("state."): t.clone() for k, t in state.items() if k.startswith("state.")}


class Discrete(Process):
    """The rule itself."""

    name = "discrete"

    def step(self) -> Frame:
        """Take one step of the rule."""
        value, gradient = self.gradient(self.w)
        values = {"loss": value, "squared_gradient": float(gradient @ gradient)}
        sample = gradient[sampled(len(gradient)).to(gradient.device)].square()
        frame = Frame(self.time, self.w, values, sample=sample)
        self.w, self.state = self.law.rule.advance(self.w, self.state, gradient)
        self.time += 1
        return frame
