"""The options of ``thalweg phase``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from thalweg.cli.options import FLAG, check_counts, if_given
from thalweg.errors import InvalidInput, explain
from thalweg.phases.diagram_cells import MeasureCell, phase_plan
from thalweg.phases.early_network import EarlySpec
from thalweg.sweeps.plan import Plan

DESCRIPTION = """Draw the phase diagram of early training: which learning rates lower the loss at once, catapult, or diverge, for each depth and width.

Every network is trained for a few steps at many learning rates c / (sharpness at its start). c_loss is the least c at which the loss rises, c_sharp the least at which the sharpness does, c_max the largest at which training does not diverge, c_barrier the least at which the loss rises along the straight line to where training went. The plan and its cost are shown first. Results go into --out: the ledger of the sweep, phases.nc, which xarray opens, and a page. The same command goes on after a crash or a Ctrl-C.

examples:
  thalweg phase
  thalweg phase --depths 4 8 --widths 64 128 256 --seeds 5 --data digits
  thalweg phase --depths 8 --widths 256 512 --data cifar10 --path cifar --samples 4096 --workers 4
  thalweg phase --init zero_output                a network that starts at an output of zero
  thalweg phase --loss cross_entropy --window catapult
  thalweg phase --engine ray --address auto --out sweep

exit codes: 0 done, 1 no cell succeeded, or writing failed, 2 wrong input, 130 stopped with Ctrl-C (finished cells are kept)
"""  # noqa: E501  (a paragraph is one line: tyro breaks no others as they stand here)


@dataclass(frozen=True)
class Told:
    """What ``thalweg phase`` is told.

    Attributes:
        depths: Layers of weights, the last one included.
        widths: Units or channels of a hidden layer.
        seeds: Initialisations of each network.
        data: Name of the data.
        path: Folder of local files of the data.
        samples: Train and measure on the first so many samples.
        all_samples: Train and measure on all of them.
        model: Architecture: ReLU, without biases and norms.
        init: Initialisation of the last layer: standard, zero_output, small_output, or mup.
        loss: mse_mean (half the mean over batch and classes), mse (summed over classes), or cross_entropy.
        batch_size: Samples of a step; by default all at once.
        steps: Steps of each short run.
        dtype: Precision.
        mode: bisect finds each constant by a few runs; grid runs every learning rate and measures every step.
        grid_step: Distance of learning rates in log2 c.
        window: Steps that count: all (paper), or those of a catapult, as one wants with cross-entropy.
        eps_sharp: Relative rise of the sharpness that does not count; by default 0, 0.05 for zero_output.
        no_barrier: Do not look for c_barrier, which takes many forward passes.
        saturation: Also follow every network to gradient-flow time 100 / sharpness at more learning rates, for the
            curve on which c_crit lies. Takes many times longer.
        out: Folder of the results; by default phases-DATA-MODEL here.
        engine: local: processes of this machine; or ray: those of a Ray cluster.
        address: Address of the Ray cluster; by default one is started here.
        workers: Processes; by default one for each core.
        retry_failed: Compute cells that failed again.
        plan: Show the plan and its cost only.
    """

    depths: tuple[int, ...] = (4, 8)
    widths: tuple[int, ...] = (64, 128, 256)
    seeds: int = 5
    data: str = "digits"
    path: Annotated[str | None, if_given("DIR")] = None
    samples: int = 512
    all_samples: Annotated[bool, *FLAG] = False
    model: Literal["mlp", "cnn", "resnet"] = "mlp"
    init: Literal["standard", "zero_output", "small_output", "mup"] = "standard"
    loss: Literal["mse_mean", "mse", "cross_entropy"] = "mse_mean"
    batch_size: Annotated[int | None, if_given("N")] = None
    steps: int = 10
    dtype: Literal["float32", "float64"] = "float32"
    mode: Literal["bisect", "grid"] = "bisect"
    grid_step: float = 0.1
    window: Literal["paper", "catapult"] = "paper"
    eps_sharp: Annotated[float | None, if_given("FLOAT")] = None
    no_barrier: Annotated[bool, *FLAG] = False
    saturation: Annotated[bool, *FLAG] = False
    out: Annotated[Path | None, if_given("DIR")] = None
    engine: Literal["local", "ray"] = "local"
    address: Annotated[str | None, if_given("HOST:PORT")] = None
    workers: Annotated[int | None, if_given("N")] = None
    retry_failed: Annotated[bool, *FLAG] = False
    plan: Annotated[bool, *FLAG] = False

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out if self.out is not None else Path(f"phases-{self.data}-{self.model}")

    @property
    def spec(self) -> EarlySpec:
        """Model, data and protocol."""
        return EarlySpec(
            model=self.model,
            init=self.init,
            data=self.data,
            samples=None if self.all_samples else self.samples,
            path=self.path,
            loss=self.loss,
            batch_size=self.batch_size,
            steps=self.steps,
            dtype=self.dtype,
        )

    @property
    def measure(self) -> MeasureCell:
        """What is done with each cell."""
        default = 0.05 if self.init == "zero_output" else 0.0
        return MeasureCell(
            self.spec,
            mode=self.mode,
            grid_step=self.grid_step,
            window=self.window,
            eps_sharp=default if self.eps_sharp is None else self.eps_sharp,
            barrier=not self.no_barrier,
            product=100.0 if self.saturation else None,
        )

    @property
    def cells(self) -> Plan:
        """All cells."""
        return phase_plan(self.depths, self.widths, self.seeds)


def parse(arguments: Sequence[str]) -> Told:
    """Read the options.

    Raises:
        InvalidInput: A number is out of range, or options contradict each other.
        SystemExit: Help was asked for, or an option is unknown.
    """
    told = tyro.cli(Told, args=arguments, prog="thalweg phase", description=DESCRIPTION)
    check_counts(
        {
            "seeds": told.seeds,
            "samples": told.samples,
            "steps": told.steps,
            "batch-size": told.batch_size,
            "workers": told.workers,
        }
    )
    if not told.grid_step > 0 or (told.eps_sharp is not None and told.eps_sharp < 0):
        raise InvalidInput(
            explain(
                f"--grid-step is {told.grid_step:g}, --eps-sharp {told.eps_sharp}",
                "the one is positive, the other at least 0",
                "Correct the number",
            )
        )
    if told.address is not None and told.engine != "ray":
        raise InvalidInput(
            explain("--address is given without --engine ray", "only Ray has an address", "Add --engine ray")
        )
    told.cells  # noqa: B018  (sizes that are none are an error now)
    return told
