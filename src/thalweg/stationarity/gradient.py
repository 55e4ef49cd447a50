r"""How large is the gradient, with the noise taken out: ``|\nabla L|^2`` without bias, its interval, a test of zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from thalweg._vectors import matcher
from thalweg.errors import InvalidInput, NonFinite, explain
from thalweg.problem import Problem
from thalweg.runs.gradient_data import SampledProblem
from thalweg.runs.gradient_draws import Draws, Mode
from thalweg.runs.gradient_moments import Products, moments
from thalweg.runs.gradient_sums import Keep, add_up, check_count, groups_of, joined
from thalweg.spectra.layers import layer_groups
from thalweg.stationarity.gradient_result import Cost, GradientLevel
from thalweg.stationarity.scale_free import Invariance, ScaleFree, scale_free, scale_invariant

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Decay = float | Mapping[str, float] | Tensor
ScaleFreeGroups = Literal["auto"] | Invariance | Mapping[str, Sequence[str]] | None


def gradient_level(
    problem: Problem,
    w: Tensor | None = None,
    *,
    batches: int = 64,
    batch_size: int | None = None,
    seed: int = 0,
    mode: Mode = "train",
    decay: Decay = 0.0,
    penalty: Callable[[Tensor], Tensor] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    scale_invariant_groups: ScaleFreeGroups = "auto",
    keep: Keep = "auto",
    group: ProcessGroup | None = None,
    shared: bool = False,
) -> GradientLevel:
    r"""Estimate ``|\nabla (L + R)(w)|^2`` from ``n`` independent mini-batch gradients ``g_i``.

    With ``S = \sum g_i`` and ``q = \sum |g_i|^2`` it is ``U = (|S|^2 - q) / (n (n - 1))``, without bias at any ``n``,
    beside the usual ``A = |S|^2 / n^2``, which is too large by ``tr(\Sigma) / n``. Each mini-batch is drawn over all
    data, regardless of the others. In train mode the gradient is the mean over mini-batches of this size, which SGD
    moves along (with BatchNorm it depends on the size); in eval mode that of the loss that is tested. Neither the
    model, its buffers, modes and gradients nor any random stream is changed. Where mini-batches weigh differently
    (tokens that are left out), each counts alike, as in training.

    Args:
        problem: Model, loss and data that can be indexed; of a ``DataLoader``, a
            `thalweg.runs.gradient_data.SampledProblem`.
        w: The point, shape ``(P,)``; None: where the model is.
        batches: ``n``, 2 at least; 16 or more for a verdict.
        batch_size: Samples in a mini-batch, best the one of the steps; None: that of a loader, else 64, or half
            the data where that is less.
        seed: Of the mini-batches. Take another one for each probe.
        mode: ``"train"`` or ``"eval"``; ``"current"`` leaves each module as it is, for layers frozen in eval mode.
        decay: ``gamma`` in ``R = (gamma / 2)|w|^2``: one number, by patterns of names (others 0), or shape ``(P,)``.
        penalty: Another ``R(w)``, differentiable, 0-dim.
        groups: Names of parameters by group; None: the parameters of each module.
        scale_invariant_groups: ``"auto"`` finds them by rescaling (a few passes); an `Invariance` found before; names
            by group; None: not asked for.
        keep: How inner products are kept: see `thalweg.runs.gradient_sums.add_up`.
        group: Process group; None: the default one, if ``shared``.
        shared: Whether to share the mini-batches out over processes that all hold all data, with one reduction; the
            result is that of one process.

    Returns:
        `GradientLevel`.

    Raises:
        InvalidInput: One mini-batch, a size or group out of range, or data that cannot be indexed.
        NonFinite: A loss or gradient is NaN or infinite.
        DistributedError: Processes have different points, or one failed.

    Example:
        >>> x = torch.randn(400, 3)
        >>> problem = Problem(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (x, x[:, :1] + torch.randn(400, 1)))
        >>> level = gradient_level(problem, batches=32, batch_size=20)
        >>> exact = float(problem.gradient(problem.initial).square().sum())
        >>> abs(level.unbiased - exact) < 4 * level.standard_error, level.biased > level.unbiased
        (True, True)

    Source: the biased form is that of arXiv 2110.06256; the others are derived here.
    """
    check_count(batches)
    begin = time.perf_counter()
    point = problem.initial if w is None else w.detach()
    samples = problem._batches.samples or 0
    if batch_size is None and isinstance(problem, SampledProblem):
        batch_size = problem.batch_size
    size = max(1, min(64, samples // 2)) if batch_size is None else batch_size
    draws = Draws(problem, size, seed, mode)
    d = _known(problem, point, decay, penalty)
    sums = add_up(draws, point, batches, d=d, keep=keep, group=group, shared=shared)
    names = problem.layout.names
    parts = [sums.products(t) for t in range(len(names))]
    whole = joined(parts)
    shifted = d is not None
    members = groups_of(names, layer_groups(names) if groups is None else groups)
    checks, free = _free(problem, point, parts, size, mode, seed, scale_invariant_groups)
    plain = moments(whole)
    return GradientLevel(
        whole=moments(whole, shifted=True) if shifted else plain,
        plain=plain,
        tensors={name: moments(one, shifted=shifted) for name, one in zip(names, parts)},
        groups={name: moments(joined([parts[t] for t in places]), shifted=shifted) for name, places in members.items()},
        scale_free=free,
        mode=mode,
        loss=float(sums.losses.mean()),
        loss_error=float(sums.losses.std()) / math.sqrt(batches),
        batch_size=size,
        samples=samples,
        cost=Cost(sums.passes + checks, checks, time.perf_counter() - begin, sums.keep, sum(sums.widths)),
    )


def _known(problem: Problem, w: Tensor, decay: Decay, penalty: Callable[[Tensor], Tensor] | None) -> Tensor | None:
    """Return the gradient of decay and penalty, shape ``(P,)``; None without either."""
    gamma = _coefficients(problem, decay)
    found = None if gamma is None else gamma * problem._own(w)
    if penalty is not None:
        leaf = problem._own(w).detach().clone().requires_grad_()
        with torch.enable_grad():
            value = penalty(leaf)
            if value.numel() != 1 or not value.requires_grad:
                raise InvalidInput(
                    explain(
                        f"The penalty returned shape {tuple(value.shape)}"
                        + ("" if value.requires_grad else " without a gradient"),
                        "it is one number that depends on w",
                        "Compute it from the vector that it is given",
                    )
                )
            (pull,) = torch.autograd.grad(value.reshape(()), leaf)
        found = pull if found is None else found + pull
    if found is not None and not bool(torch.isfinite(found).all()):
        raise NonFinite(
            explain("The gradient of decay or penalty is not finite", "then no level is", "Check decay, penalty and w")
        )
    return found


def _coefficients(problem: Problem, decay: Decay) -> Tensor | float | None:
    if isinstance(decay, Tensor):
        if decay.shape != (problem.dimension,):
            raise InvalidInput(
                explain(
                    f"decay has shape {tuple(decay.shape)}", f"w has ({problem.dimension},)", "Pass one for each entry"
                )
            )
        return problem._own(decay)
    if isinstance(decay, Mapping):
        full = torch.zeros(problem.dimension, dtype=problem.dtype, device=problem.device)
        for pattern, value in decay.items():
            takes = matcher(pattern)
            if not any(takes(name) for name in problem.layout.names):
                raise InvalidInput(
                    explain(
                        f"The decay names {pattern!r}",
                        "no parameter matches it",
                        f"Choose among {', '.join(problem.layout.names[:8])}",
                    )
                )
            for name, part in problem.layout.slices():
                if takes(name):
                    full[part] = value
        return full
    return decay or None


def _free(
    problem: Problem,
    w: Tensor,
    parts: Sequence[Products],
    size: int,
    mode: Mode,
    seed: int,
    wanted: ScaleFreeGroups,
) -> tuple[int, ScaleFree | None]:
    """Find scale-invariant groups if asked to; return the passes that took, and their level."""
    if wanted is None:
        return 0, None
    passes = 0
    if wanted == "auto":
        wanted = scale_invariant(problem, w, batch_size=max(2, size), mode=mode, seed=seed)
        passes = wanted.passes
    return passes, scale_free(problem.layout, problem._own(w), lambda t: parts[t], wanted)
