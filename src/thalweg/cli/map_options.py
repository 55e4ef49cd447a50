"""The options of ``thalweg map``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from thalweg.cli.options import FLAG, check_counts, if_given
from thalweg.errors import InvalidInput, explain

DESCRIPTION = """Map the whole path of the weights: the cosine between every two checkpoints, lengths and angles, each number beside what a line, a random walk or mixing noise would give.

SOURCE is a run folder; a folder, a glob or several paths of checkpoints (safetensors, torch.save, torch.distributed.checkpoint, sharded or not, one file or folder a step); or a repository on the hub, hf://OWNER/NAME. Every byte is read once, within the budget of memory. Results go into analyses/ of a run, or into --out: netCDF files, which xarray opens, and a page. Tensors that are finished are kept: the same command goes on after a crash or a Ctrl-C, and another --anchor or other --groups read nothing again.

examples:
  thalweg map runs/quickstart
  thalweg map checkpoints --budget 300MiB --groups role
  thalweg map 'out/checkpoint-*' --select '*.attention.*' --out attention-map
  thalweg map pythia-70m --steps-from 1000 --every 4 --weight-decay 0.1 --decoupled --learning-rate 1e-3
  thalweg map pythia-12b --device cuda --missing skip

exit codes: 0 done, 1 a checkpoint has NaN or infinite values, or writing failed, 2 wrong input, 130 stopped with Ctrl-C (finished tensors are kept)
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)

UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}


@dataclass(frozen=True)
class Told:
    """What ``thalweg map`` is told.

    Attributes:
        source: Run folder; folder, glob or paths of checkpoints; or hf://OWNER/NAME.
        out: Folder for the results; by default analyses/ of the run, NAME-map here for other checkpoints.
        budget: Memory to use above what Python and torch take, for example 2GiB or 300MB; by default up to 1GiB.
        device: Where to multiply: cpu or cuda.
        groups: Parameters that get maps of their own.
        anchor: Step that relative quantities start from; by default the first.
        weights: Weights of checkpoints in mean similarities.
        select: Parameters to take, by globs of names.
        steps_from: First step to take.
        steps_to: Last step to take.
        every: Take every so many-th checkpoint of those.
        step_rule: How steps are read from names: a regular expression with one group.
        missing: What to do with a damaged or incomplete checkpoint: error, or skip and say so.
        not_finite: What to do with NaN and infinite values: error, or skip them in all checkpoints and say so.
        heads: Attention heads, to take Q, K and V of a GPT-NeoX apart; by default as config.json says.
        exact: Multiply in float64 whatever is stored.
        resident: Keep so many updates in memory and read the other checkpoints one at a time, where not all
            files can be open at once. Reads much more.
        sketch: Estimate from random projections to so many dimensions, one checkpoint at a time.
        weight_decay: Weight decay of the training, for the decay null; a run knows its own.
        momentum: Momentum of the training, which counts with coupled decay.
        decoupled: The decay acts on the weights directly, as in AdamW.
        learning_rate: Learning rate of the training where it was constant; else it is taken from what was logged.
        replace: Begin anew: use no tensors that were finished before.
        engine: local, or ray: the machines of a Ray cluster compute, each from the files that it has at the same paths.
        address: Address of the Ray cluster; by default one is started here.
        workers: Processes that share the work on this machine, and with it the budget; by default one, and with Ray
            as many as there are cores.
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE [SOURCE ...]")]
    out: Annotated[Path | None, if_given("DIR")] = None
    budget: Annotated[str | None, if_given("SIZE")] = None
    device: str = "cpu"
    groups: Literal["layer", "role", "tensor", "none"] = "layer"
    anchor: Annotated[int | None, if_given("STEP")] = None
    weights: Literal["uniform", "time", "learning_rate", "arclength"] = "uniform"
    select: Annotated[tuple[str, ...], if_given("[PATTERN [PATTERN ...]]")] = ()
    steps_from: Annotated[int | None, if_given("STEP")] = None
    steps_to: Annotated[int | None, if_given("STEP")] = None
    every: int = 1
    step_rule: Annotated[str | None, if_given("REGEX")] = None
    missing: Literal["error", "skip"] = "error"
    not_finite: Literal["error", "skip"] = "error"
    heads: Annotated[int | None, if_given("N")] = None
    exact: Annotated[bool, *FLAG] = False
    resident: Annotated[int | None, if_given("B")] = None
    sketch: Annotated[int | None, if_given("K")] = None
    weight_decay: Annotated[float | None, if_given("FLOAT")] = None
    momentum: float = 0.0
    decoupled: Annotated[bool, *FLAG] = False
    learning_rate: Annotated[float | None, if_given("FLOAT")] = None
    replace: Annotated[bool, *FLAG] = False
    engine: Literal["local", "ray"] = "local"
    address: Annotated[str | None, if_given("HOST:PORT")] = None
    workers: Annotated[int | None, if_given("N")] = None

    @property
    def bytes_allowed(self) -> int | None:
        """The budget in bytes.

        Raises:
            InvalidInput: It is no size.
        """
        return None if self.budget is None else size_of(self.budget)

    @property
    def spread(self) -> bool:
        """Whether other processes compute."""
        return self.engine != "local" or (self.workers or 1) > 1

    @property
    def share(self) -> int | None:
        """The budget of one process in bytes."""
        allowed = self.bytes_allowed
        return allowed // (self.workers or 1) if allowed is not None and self.engine == "local" else allowed

    @property
    def partial(self) -> bool:
        """Whether less than the whole trajectory is asked for."""
        return bool(self.select) or self.steps_from is not None or self.steps_to is not None or self.every != 1

    def wants(self, step: int) -> bool:
        """Whether a step lies in the range asked for."""
        return (self.steps_from is None or step >= self.steps_from) and (self.steps_to is None or step <= self.steps_to)


def parse(arguments: Sequence[str]) -> Told:
    """Read the options.

    Raises:
        InvalidInput: A number is out of range, or options contradict each other.
        SystemExit: Help was asked for, or an option is unknown.
    """
    told = tyro.cli(Told, args=arguments, prog="thalweg map", description=DESCRIPTION)
    check_counts(
        {
            "every": told.every,
            "heads": told.heads,
            "resident": told.resident,
            "sketch": told.sketch,
            "workers": told.workers,
        }
    )
    if told.step_rule is not None:
        _check_rule(told.step_rule)
    told.bytes_allowed  # noqa: B018  (a size that is none is an error now)
    one_by_one = "resident" if told.resident is not None else "sketch" if told.sketch is not None else None
    if told.resident is not None and told.sketch is not None:
        raise _together("resident", "sketch", "one is exact, the other estimates")
    if one_by_one is not None:
        given = {
            "device": told.device != "cpu",
            "not-finite": told.not_finite != "error",
            "engine": told.engine != "local",
            "workers": told.workers is not None,
            "budget": told.budget is not None and told.sketch is not None,
            "exact": told.exact and told.sketch is not None,
        }
        for name, is_given in given.items():
            if is_given:
                raise _together(one_by_one, name, "it reads one checkpoint after the other, on the CPU")
    if told.engine == "local" and told.address is not None:
        raise _together("engine local", "address", "it is that of a Ray cluster")
    decay = {"momentum": told.momentum != 0.0, "decoupled": told.decoupled, "learning-rate": told.learning_rate}
    lonely = [name for name, is_given in decay.items() if is_given]
    if told.weight_decay is None and lonely:
        raise InvalidInput(
            explain(f"--{lonely[0]} is given without --weight-decay", "it is for the decay null", "Give both, or none")
        )
    return told


def size_of(text: str) -> int:
    """Return the bytes that a size means: ``2GiB``, ``300 MB``, ``1.5g`` (of 1024), or plain bytes.

    Raises:
        InvalidInput: It is no size.

    Example:
        >>> size_of("2GiB"), size_of("1.5 kB"), size_of("1024")
        (2147483648, 1500, 1024)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS or float(match[1]) == 0:
        raise InvalidInput(
            explain(f"--budget is {text!r}", "it is a size of memory", "Write it as 2GiB, 300MB or a number of bytes")
        )
    return int(float(match[1]) * UNITS[match[2].lower()])


def _check_rule(rule: str) -> None:
    try:
        groups = re.compile(rule).groups
    except re.error as error:
        raise InvalidInput(
            explain(f"--step-rule is {rule!r}", f"it is no regular expression: {error}", r"Write one as 'step(\d+)'")
        ) from None
    if groups < 1:
        raise InvalidInput(
            explain(f"--step-rule is {rule!r}", "it has no group for the number", r"Write it as 'step(\d+)'")
        )


def _together(first: str, second: str, why: str) -> InvalidInput:
    return InvalidInput(explain(f"--{first} and --{second} are both given", why, "Leave one of them out"))
