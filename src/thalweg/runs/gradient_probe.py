"""The gradient level along a run: in `train` as a measure, in a loop of the user's through the `Recorder`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from thalweg import _rng
from thalweg.errors import InvalidInput, NonFinite, NumericalWarning, explain
from thalweg.problem import Problem
from thalweg.runs.gradient_draws import Draws, Mode
from thalweg.runs.gradient_moments import moments
from thalweg.runs.gradient_sums import Keep, Sums, add_up, check_count, groups_of, joined
from thalweg.runs.measures import Context, Measure, check_every
from thalweg.runs.metrics import Value, Variable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from thalweg.runs.recorder import Recorder

UNBIASED, BIASED, NOISE, ERROR = "gradient_unbiased", "gradient_biased", "gradient_noise", "gradient_standard_error"
Z, DETECTABLE, PLAIN, SCALE_FREE = "gradient_z", "gradient_detectable", "gradient_plain", "gradient_scale_free"
_SQUARE = "(loss / weight)^2"
_WHAT = {
    UNBIASED: (_SQUARE, "squared gradient norm, unbiased"),
    BIASED: (_SQUARE, "squared norm of the mean gradient, biased by noise"),
    NOISE: (_SQUARE, "noise of a mini-batch gradient, trace of its covariance"),
    ERROR: (_SQUARE, "standard error of the squared gradient norm"),
    Z: ("1", "test of a zero gradient"),
    DETECTABLE: (_SQUARE, "smallest detectable squared gradient norm"),
    PLAIN: (_SQUARE, "squared gradient norm without decay, unbiased"),
    SCALE_FREE: ("loss^2", "squared gradient norm times squared weight norm, over scale-invariant groups"),
}


def variable(name: str, mode: Mode) -> str:
    """Return the name in a run's data: plain in train mode, with the mode behind it in another.

    Example:
        >>> variable(UNBIASED, "train"), variable(UNBIASED, "eval")
        ('gradient_unbiased', 'gradient_unbiased_eval')
    """
    return name if mode == "train" else f"{name}_{mode}"


@dataclass(frozen=True)
class GradientProbe(Measure):
    r"""Every so many steps, ``U``, ``A``, ``V`` and the error of ``U`` from fresh mini-batches over all data.

    It records, at each probe: ``gradient_unbiased`` (U, of mean ``|\nabla L|^2``; may be negative), ``gradient_biased``
    (A), ``gradient_noise`` (V), ``gradient_standard_error``, ``gradient_z``, ``gradient_detectable``; with decay also
    ``gradient_plain``, U of the loss alone; with groups also ``gradient_scale_free``. In eval mode all names end in
    ``_eval``. A probe costs ``batches`` forward-backward passes for each mode.

    Args:
        batch_size: Samples in a mini-batch; best the one of the steps.
        every: Steps between two probes.
        batches: Mini-batches in a probe.
        modes: Of the model: ``"train"`` (what SGD moves along), ``"eval"``, or both.
        decay: ``gamma`` of coupled weight decay, so that the gradient is that of ``L + (gamma / 2)|w|^2``. None: what
            the run's rule says, where its decay is coupled; zero in a loop of the user's.
        keep: How inner products are kept; see `add_up`.
        groups: Scale-invariant groups of parameters, by name; see `thalweg.stationarity.scale_free`.

    Raises:
        InvalidInput: A setting is out of range.

    Example:
        >>> import thalweg as tw
        >>> x = torch.randn(60, 2)
        >>> problem = tw.Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, x[:, :1]))
        >>> probe = GradientProbe(batch_size=10, every=5)
        >>> run = tw.train(problem, tw.rules.GradientDescent(lr=0.1), 10, batch_size=10, measures=[probe])
        >>> run.data["gradient_unbiased"].dropna("step").step.values.tolist()
        [0, 5, 10]
    """

    batch_size: int
    every: int = 500
    batches: int = 64
    modes: Sequence[Mode] = ("train",)
    decay: float | None = None
    keep: Keep = "auto"
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: str = "gradient_probe"

    def __post_init__(self) -> None:
        check_every(self.name, self.every)
        check_count(self.batches)
        unknown = [mode for mode in self.modes if mode not in get_args(Mode)]
        if unknown or not self.modes or isinstance(self.modes, str):
            raise InvalidInput(
                explain(
                    f"modes is {self.modes!r}", "it lists modes of the model", "Pass ('train',) or ('train', 'eval')"
                )
            )

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Every column that a probe may fill; those that do not apply stay NaN."""
        return {
            variable(name, mode): Variable(units, f"{text}, {mode} mode")
            for mode in self.modes
            for name, (units, text) in _WHAT.items()
            if (name != PLAIN or self.decay != 0) and (name != SCALE_FREE or self.groups)
        }

    def measure(self, context: Context) -> Mapping[str, Value]:
        """Probe at ``context.w``."""
        decay = self.decay
        if decay is None:
            decay = 0.0 if context.rule.decoupled else context.rule.decay
        seed = _rng.derive_seed(context.seed, "measure", self.name, context.step)
        try:
            return self.probe(context.problem, context.w, seed=seed, decay=decay)
        except NonFinite as error:
            context.note("gradient probe", str(error))
            return {}

    def probe(
        self,
        problem: Problem,
        w: Tensor | None = None,
        *,
        seed: int = 0,
        decay: float | None = None,
        group: ProcessGroup | None = None,
        shared: bool = False,
    ) -> dict[str, float]:
        """Return the numbers of one probe, by name.

        Args:
            problem: On all data.
            w: The point; None: where the model is.
            seed: Of the mini-batches.
            decay: In place of the probe's own.
            group: Process group; None: the default one, if ``shared``.
            shared: Whether to share the mini-batches out over processes, with one reduction for each mode.

        Raises:
            NonFinite: A loss or gradient is NaN or infinite.
        """
        point = problem.initial if w is None else w
        gamma = (self.decay or 0.0) if decay is None else decay
        d = gamma * point if gamma else None
        found: dict[str, float] = {}
        for mode in self.modes:
            draws = Draws(problem, self.batch_size, seed, mode)
            sums = add_up(draws, point, self.batches, d=d, keep=self.keep, group=group, shared=shared)
            whole = sums.whole()
            level = moments(whole, shifted=d is not None)
            values = {
                UNBIASED: level.unbiased,
                BIASED: level.biased,
                NOISE: level.noise,
                ERROR: level.standard_error,
                Z: level.z,
                DETECTABLE: level.detectable,
            }
            if d is not None:
                values[PLAIN] = moments(whole).unbiased
            if self.groups:
                values[SCALE_FREE] = self._scale_free(problem, point, sums)
            found |= {variable(name, mode): value for name, value in values.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def record(
        self,
        recorder: Recorder,
        problem: Problem,
        *,
        seed: int = 0,
        group: ProcessGroup | None = None,
        shared: bool = False,
        now: bool = False,
    ) -> dict[str, float] | None:
        """Probe where the model is and file it under the recorder's point, if a probe is due.

        Call it before the loop and after each `Recorder.step`; nothing of the model, its gradients, the optimizer or
        any random stream is changed.

        Args:
            recorder: Of the loop.
            problem: A `Problem` on the model that is trained, and on all of its data.
            seed: Root of the mini-batches.
            group: As of `probe`.
            shared: As of `probe`.
            now: Probe though none is due.

        Returns:
            What was filed; None where no probe was due, or where the loss was not finite (a warning says so).
        """
        step = recorder.steps_done
        if step % self.every and not now:
            return None
        try:
            found = self.probe(
                problem, seed=_rng.derive_seed(seed, "measure", self.name, step), group=group, shared=shared
            )
        except NonFinite as error:
            warnings.warn(f"No gradient level at step {step}. {error}", NumericalWarning, stacklevel=2)
            return None
        recorder.log(step, **found)
        return found

    def _scale_free(self, problem: Problem, w: Tensor, sums: Sums) -> float:
        layout = problem.layout
        pieces = layout.split(w.to(torch.float64))
        total = 0.0
        for places in groups_of(layout.names, self.groups).values():
            length = sum(float(pieces[t].square().sum()) for t in places)
            total += length * moments(joined([sums.products(t) for t in places])).unbiased
        return total
