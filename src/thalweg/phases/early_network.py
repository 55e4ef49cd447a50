"""Networks for short runs: which model, initialisation, data and loss, and what measures them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from thalweg import _rng
from thalweg.errors import InvalidInput, explain
from thalweg.phases.early import EarlyRuns
from thalweg.phases.early_copies import Copy
from thalweg.phases.early_loop import LoopRuns
from thalweg.phases.early_stack import StackRuns, obstacle
from thalweg.phases.labels import cutoff_for
from thalweg.problem import Problem
from thalweg.problem.data import Data, DataConfig, load_data, loss_for
from thalweg.problem.zoo import ModelConfig, build_model

Initialisation = Literal["standard", "zero_output", "small_output", "mup"]
Factory = Callable[[int, int, int], nn.Module]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EarlySpec:
    """What is trained for a few steps, and how it is measured; sizes and seeds apart."""

    model: Literal["mlp", "cnn", "resnet"] = "mlp"
    """Architecture of the zoo, with ReLU, without biases (but the last layer of a ResNet) and without norms."""
    init: Initialisation = "standard"
    """standard: weights of variance 2 / fan_in, 1 / fan_in in the last layer; zero_output: the last layer is zero;
    small_output: its variance is 1 / (width fan_in); mup: the output is divided by the root of the width."""
    data: str = "digits"
    """Name of the data, as for DataConfig; each image is standardised on its own."""
    samples: int | None = None
    """How many samples; default all."""
    path: str | None = None
    """Folder of local files of the data."""
    loss: Literal["mse_mean", "mse", "cross_entropy"] = "mse_mean"
    """mse_mean: half the mean square over batch and classes; mse: summed over classes; or cross-entropy."""
    batch_size: int | None = None
    """Samples of a step of SGD, by a permutation per epoch; default all at once."""
    steps: int = 10
    """Steps of a run."""
    cutoff: float | None = None
    """Loss beyond which a run has diverged; default 1e5, more for widths above 2,048."""
    measured: int = 4096
    """Loss and sharpness are measured on at most so many samples, chosen once."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of everything."""
    protocol: Literal["fixed", "demo"] = "fixed"
    """fixed: converged sharpness on one set; demo: as the paper's demonstration, 20 power iterations on batches."""
    tol: float = 1e-3
    """Relative residual of the sharpness; a tenth of it at initialisation."""
    engine: Literal["auto", "stack", "loop"] = "auto"
    """stack: all runs as one program; loop: one after the other; auto: the first where copies differ in nothing but
    their parameters."""

    def __post_init__(self) -> None:
        good = self.init in get_args(Initialisation) and self.dtype in ("float32", "float64")
        good = good and self.engine in ("auto", "stack", "loop")
        good = good and self.model in ("mlp", "cnn", "resnet") and self.protocol in ("fixed", "demo")
        cut = self.cutoff is None or self.cutoff > 0
        if not (good and cut and self.steps >= 1 and self.measured >= 1 and 0 < self.tol < 1):
            raise InvalidInput(
                explain(
                    f"Got {self!r}",
                    "a run has steps, a positive cutoff and tolerance, and known names elsewhere",
                    f"init is one of {', '.join(get_args(Initialisation))}; model of mlp, cnn, resnet; "
                    "dtype of float32, float64; protocol of fixed, demo",
                )
            )


def network_runs(
    depth: int,
    width: int,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    spec: EarlySpec | None = None,
    factory: Factory | None = None,
    data: Data | Pair | None = None,
    loss: Callable[..., Any] | None = None,
    **settings: Any,
) -> EarlyRuns:
    """Return the short runs of one architecture at several initialisations.

    Args:
        depth: Weight layers, the last one included.
        width: Hidden units or channels.
        seeds: One per initialisation and order of batches.
        spec: Model, data, loss and protocol; or pass its fields as ``settings``.
        factory: ``factory(depth, width, seed)`` returns a module; default a model of the zoo. Its modules have the same
            parameters for all seeds, in the mode that they are to be used in.
        data: Data, or a pair of tensors, in place of the one that ``spec`` names.
        loss: ``loss(output, target)``, the mean over a batch, in place of the one that ``spec`` names. Needed for a
            pair of tensors.
        settings: Fields of `EarlySpec`.

    Returns:
        What `critical_constants` and `saturation` measure.

    Raises:
        InvalidInput: A size below one, no or repeated seeds, a factory that fails or returns no module, or a setting
            out of range.

    Example:
        >>> runs = network_runs(depth=2, width=16, seeds=(0, 1), samples=50, init="zero_output")
        >>> runs.run([(0, 1.0), (1, 4.0)], measure=(1,)).loss.shape
        (2, 11)
    """
    spec = _spec(spec, settings)
    if depth < 1 or width < 1 or not seeds or len(set(seeds)) < len(seeds):
        raise InvalidInput(
            explain(
                f"Depth {depth}, width {width}, seeds {list(seeds)}",
                "a network has at least one layer of one unit, and is drawn once per seed, at least once",
                "Choose positive sizes and distinct seeds",
            )
        )
    pair, known = _samples(spec, data)
    if loss is None and known is None:
        raise InvalidInput(
            explain(
                "data is a pair of tensors, and there is no loss",
                "a named loss needs to know the number of classes",
                "Pass loss=, such as torch.nn.functional.cross_entropy",
            )
        )
    chosen = loss if loss is not None else loss_for(spec.loss, known)  # type: ignore[arg-type]
    if factory is None and known is None:
        raise InvalidInput(
            explain("data is a pair of tensors", "the zoo sizes its models for named data", "Pass a factory")
        )
    copies = []
    for seed in seeds:
        model = _zoo(depth, width, seed, spec, known) if factory is None else _made(factory, depth, width, seed)  # type: ignore[arg-type]
        copies.append(_copy(model, chosen, pair, seed, spec))
    return _engine(copies, spec, cutoff_for(width) if spec.cutoff is None else spec.cutoff)


def _engine(copies: list[Copy], spec: EarlySpec, cutoff: float) -> EarlyRuns:
    demo = spec.protocol == "demo"
    stacked = spec.engine == "stack" or (spec.engine == "auto" and not demo and not obstacle(copies))
    if stacked and demo:
        raise InvalidInput(
            explain(
                "The demonstration's protocol was asked for in a stack",
                "it measures each run on a batch of its own",
                "Use engine='loop' or 'auto'",
            )
        )
    how: dict[str, Any] = {
        "steps": spec.steps, "cutoff": cutoff, "batch_size": spec.batch_size, "tol": spec.tol
    }  # fmt: skip
    if stacked:
        try:
            return StackRuns(copies, **how)
        except InvalidInput:
            if spec.engine == "stack":
                raise
    return LoopRuns(copies, **how, demo=demo)


def _spec(spec: EarlySpec | None, settings: dict[str, Any]) -> EarlySpec:
    unknown = sorted(set(settings) - set(EarlySpec.__dataclass_fields__))
    if unknown or (spec is not None and settings):
        raise InvalidInput(
            explain(
                f"Settings {', '.join(unknown or settings)}" + ("" if unknown else " beside a spec"),
                f"settings are the fields of EarlySpec: {', '.join(EarlySpec.__dataclass_fields__)}",
                "Pass either a spec or such settings",
            )
        )
    return EarlySpec(**settings) if spec is None else spec


@functools.lru_cache(maxsize=2)
def _loaded(config: DataConfig) -> Data:
    return load_data(config)


def _samples(spec: EarlySpec, data: Data | Pair | None) -> tuple[Pair, Data | None]:
    known = data
    if data is None:
        known = _loaded(DataConfig(name=spec.data, samples=spec.samples, path=spec.path))  # type: ignore[arg-type]
    if isinstance(known, Data):
        pair = known.pair()
        if not isinstance(pair, tuple):
            raise InvalidInput(
                explain(f"The data {known.name!r} is a stream", "short runs keep theirs in memory", "Ask for samples")
            )
        return pair, known
    assert known is not None
    return known, None


def _zoo(depth: int, width: int, seed: int, spec: EarlySpec, data: Data) -> nn.Module:
    scale = width**-0.5 if spec.init == "mup" else 1.0
    norm: Literal["none"] | None = "none" if spec.model == "resnet" else None
    bias = None if spec.model == "resnet" else False
    config = ModelConfig(spec.model, depth, width, activation="relu", bias=bias, norm=norm, output_scale=scale)
    model = build_model(config, data, seed)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        if spec.init == "zero_output":
            last.weight.zero_()
        elif spec.init == "small_output":
            last.weight.mul_(width**-0.5)
    return model


def _made(factory: Factory, depth: int, width: int, seed: int) -> nn.Module:
    where = f"The factory, called with depth {depth}, width {width}, seed {seed},"
    try:
        model = factory(depth, width, seed)
    except Exception as error:  # whatever the user's code raises
        raise InvalidInput(
            explain(
                f"{where} raised {type(error).__name__}: {error}",
                "there is nothing to train",
                "Call it with these arguments to see where",
            )
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            explain(f"{where} returned a {type(model).__name__}", "a network is a torch.nn.Module", "Return one")
        )
    return model


def _copy(model: nn.Module, loss: Callable[..., Any], pair: Pair, seed: int, spec: EarlySpec) -> Copy:
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32
    train = Problem(model, loss, pair, dtype=dtype)
    count = int(train.samples)
    if count <= spec.measured:
        return Copy(seed, train, train)
    chosen = torch.randperm(count, generator=_rng.generator(0, "measured samples"))[: spec.measured]
    return Copy(seed, train, train.subset(chosen.sort().values))
