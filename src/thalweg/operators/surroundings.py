"""Checks of what surrounds the derivatives: randomness, weighting of samples, kernels, layers, installed packages."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from thalweg.errors import NotDeterministic, NotDifferentiable
from thalweg.operators.diagnosis import Check, judged
from thalweg.operators.layouts import linearise, second_derivative
from thalweg.problem import determinism
from thalweg.problem.batches import map_tensors
from thalweg.problem.guards import preserved_rng
from thalweg.problem.losses import leading_size
from thalweg.problem.problem import Problem

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)


def deterministic(problem: Problem) -> Check:
    """The guard of the constructor once more, for problems built with ``check=False``."""
    batches = problem._batches
    try:
        determinism.survey(problem, getattr(batches, "source", batches), check=True)
    except NotDeterministic as error:
        return Check("determinism", "fail", None, None, str(error), "Remove the randomness before measuring anything")
    return Check("determinism", "ok", None, None, "Two evaluations from different random states agree")


def duplicates(problem: Problem) -> Check:
    """Each sample twice leaves a mean as it is, and doubles a sum."""

    def twice(batch: Any, count: int) -> list[Any]:
        return [map_tensors(lambda t: torch.cat([t, t]) if _per_sample(t, count) else t, batch)]

    return _weighted(
        problem,
        "duplicates",
        twice,
        "The loss is a mean: every sample twice leaves it as it is",
        "Every sample twice changes the loss, so it is no mean over samples",
        "Divide by the number of samples, or return (mean, count) from a loss(model, batch)",
    )


def split(problem: Problem) -> Check:
    """A batch in two unequal parts, weighted by their counts, is the batch."""

    def parts(batch: Any, count: int) -> list[Any]:
        def part(piece: slice) -> Any:
            return map_tensors(lambda t: t[piece] if _per_sample(t, count) else t, batch)

        cut = max(1, count // 3)
        return [part(slice(None, cut)), part(slice(cut, None))]

    statistics = any(isinstance(m, _BatchNorm) and m.training for m in problem.model.modules())
    return _weighted(
        problem,
        "batch split",
        parts,
        "Parts of a batch, weighted by their counts, add up to the batch",
        "BatchNorm in training mode mixes the samples of a batch, so results depend on the batch size"
        if statistics
        else "Parts of a batch, weighted by their counts, do not add up to the batch",
        "Call model.eval(), or keep to one batch"
        if statistics
        else "Return (mean, count) from a loss(model, batch), with the count that the mean divides by",
        otherwise="warn" if statistics else "fail",
    )


def attention(problem: Problem) -> Check:
    """Whether attention is computed, and whether the kernel that torch would choose has a second derivative."""
    batch, _ = next(iter(problem.batches()))
    leaves = problem.layout.split(problem.initial)
    with _Calls() as calls, torch.no_grad():
        problem.loss(leaves, batch)
    if not calls.seen:
        return Check("attention", "skipped", None, None, "The model calls no fused attention")
    try:
        _product(*linearise(problem, problem.initial, batch))
    except NotDifferentiable as error:
        remedy = 'Let the model leave the kernel to torch; for Hugging Face models attn_implementation="eager"'
        return Check("attention", "fail", None, None, f"The model forces a kernel. {error}", remedy)
    try:
        _product(*_plain(problem, batch))
    except NotDifferentiable:
        meaning = "torch's own choice of kernel has no second derivative here; thalweg evaluates with the math kernel"
        return Check("attention", "ok", None, None, meaning)
    return Check("attention", "ok", None, None, "The kernel that torch chooses has a second derivative")


def norms(problem: Problem) -> Check:
    """Which normalisation layers there are, and whether any mixes the samples of a batch."""
    found = Counter(type(m).__name__ for m in problem.model.modules() if isinstance(m, NORMS))
    if not found:
        return Check("norms", "skipped", None, None, "The model has no normalisation layer that torch provides")
    listed = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    live = sum(isinstance(m, _BatchNorm) and m.training for m in problem.model.modules())
    if live:
        meaning = f"{listed}; {live} in training mode use the statistics of the batch"
        return Check("norms", "warn", live, 0, meaning, "Call model.eval() unless you mean the full-batch statistics")
    return Check("norms", "ok", 0, 0, listed)


def torchvision(torch_version: str | None = None, vision_version: str | None = None) -> Check:
    """Whether an installed torchvision was built for the installed torch; neither is imported."""
    name = "torchvision"
    ours = torch_version or importlib.metadata.version("torch")
    if vision_version is None:
        try:
            vision_version = importlib.metadata.version("torchvision")
        except importlib.metadata.PackageNotFoundError:
            return Check(name, "skipped", None, None, "torchvision is not installed, and not needed")
    numbers, theirs = re.match(r"(\d+)\.(\d+)", ours), re.match(r"(\d+)\.(\d+)", vision_version)
    if not numbers or not theirs or numbers[1] != "2" or theirs[1] != "0":
        meaning = f"torch {ours} and torchvision {vision_version}: which fit together is not known here"
        return Check(name, "skipped", None, None, meaning)
    expected = 15 + int(numbers[2])  # torch 2.0 came with torchvision 0.15, and both count on together
    built = [version.partition("+")[2] for version in (ours, vision_version)]
    if int(theirs[2]) == expected and (not all(built) or built[0] == built[1]):
        return Check(name, "ok", None, None, f"torch {ours} and torchvision {vision_version} fit together")
    meaning = f"torch {ours} goes with torchvision 0.{expected}, here is {vision_version}: importing it may crash"
    remedy = "pip uninstall torchvision (thalweg does not need it), or install the build that fits"
    return Check(name, "fail", None, None, meaning, remedy)


def _weighted(
    problem: Problem,
    name: str,
    change: Callable[[Any, int], list[Any]],
    good: str,
    bad: str,
    remedy: str,
    otherwise: Any = "fail",
) -> Check:
    batch, _ = next(iter(problem.batches()))
    count = leading_size(batch)
    if count is None or count < 2:
        return Check(name, "skipped", None, None, "The first batch has fewer than two samples")
    leaves = problem.layout.split(problem.initial)
    with torch.no_grad():
        whole = float(problem._evaluate(leaves, batch)[0])
        pairs = [problem._evaluate(leaves, part) for part in change(batch, count)]
    total = sum(weight for _, weight in pairs)
    mean = sum(float(value) * weight for value, weight in pairs if weight) / (total or 1.0)
    error = abs(mean - whole) / (max(abs(whole), abs(mean)) or 1.0)
    tolerance = 1e3 * torch.finfo(problem.dtype).eps
    check = judged(name, error, tolerance, good, bad, remedy)
    return check if check.status == "ok" else Check(name, otherwise, error, tolerance, bad, remedy)


def _per_sample(tensor: Tensor, count: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == count


class _Calls(TorchFunctionMode):
    """Notes whether attention is called while open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fused = (F.scaled_dot_product_attention, F.multi_head_attention_forward, torch._transformer_encoder_layer_fwd)
        self.seen = self.seen or function in fused
        return function(*args, **(kwargs or {}))


def _plain(problem: Problem, batch: Any) -> tuple[list[Tensor], Any]:
    """Leaves and gradient with history, as torch computes them without our choice of kernels."""
    leaves = [leaf.detach().requires_grad_() for leaf in problem.layout.split(problem.initial)]
    tensors = problem._constants()
    for known, leaf in zip(problem._names, leaves):
        tensors.update(dict.fromkeys(known, leaf))
    with preserved_rng(problem.device), torch.enable_grad(), second_derivative():
        value, _ = functional_call(problem._function, tensors, (batch,), tie_weights=False)
        return leaves, torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)


def _product(leaves: list[Tensor], grads: Any) -> None:
    """Take one Hessian product, for the errors it may raise."""
    live = [g for g in grads if g.requires_grad]
    with second_derivative():
        torch.autograd.grad(live, leaves, [torch.ones_like(g) for g in live], allow_unused=True)
