"""The curvature that kinks add to the expected loss, which no Hessian sees (arXiv 2411.16914)."""

from thalweg.glass.change import LossChange as LossChange
from thalweg.glass.change import compare_loss_change as compare_loss_change
from thalweg.glass.change import expected_loss_change as expected_loss_change
from thalweg.glass.change import measured_loss_change as measured_loss_change
from thalweg.glass.density import GlassDensity as GlassDensity
from thalweg.glass.density import glass_density as glass_density
from thalweg.glass.exponents import Exponents as Exponents
from thalweg.glass.exponents import variation_exponents as variation_exponents
from thalweg.glass.look import Glass as Glass
from thalweg.glass.look import look as look
from thalweg.glass.stored import glass_dataset as glass_dataset

__all__ = [
    "Exponents",
    "Glass",
    "GlassDensity",
    "LossChange",
    "compare_loss_change",
    "expected_loss_change",
    "glass_dataset",
    "glass_density",
    "look",
    "measured_loss_change",
    "variation_exponents",
]
