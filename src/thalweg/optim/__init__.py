"""Schedules and optimizers that know the curvature: for any torch training loop."""

from thalweg.optim.alice import Alice as Alice
from thalweg.optim.gi_adam import gi_adam_ as gi_adam_
from thalweg.optim.persistent_catapult import PersistentCatapult as PersistentCatapult
from thalweg.optim.search import CriticalRate as CriticalRate
from thalweg.optim.search import critical_learning_rate as critical_learning_rate
from thalweg.optim.virtual import virtual_update as virtual_update
from thalweg.optim.warmup import CriticalRamp as CriticalRamp
from thalweg.optim.warmup import CriticalWarmup as CriticalWarmup

__all__ = [
    "Alice",
    "CriticalRamp",
    "CriticalRate",
    "CriticalWarmup",
    "PersistentCatapult",
    "critical_learning_rate",
    "gi_adam_",
    "virtual_update",
]
