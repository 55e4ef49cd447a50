"""What a map will cost, told before it begins, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console

from thalweg.cli.meter import BarMeter, LineMeter, RunMeter, duration
from thalweg.errors import InvalidInput, explain
from thalweg.runs.sources import TensorInfo, Trajectory
from thalweg.trajectories.gram_plan import GramPlan
from thalweg.trajectories.products import Products
from thalweg.trajectories.tiles import layout

SAMPLE = 8 << 20
"""Bytes that are read to learn how fast they come."""
PATIENCE = 0.2
"""Seconds after which that is enough."""
SAMPLED = 1 << 14
"""Elements of the sample that is multiplied."""


@dataclass(frozen=True)
class Rates:
    """How fast this machine reads and multiplies, from samples of some milliseconds.

    Attributes:
        read: Bytes a second.
        multiply: Bytes of checkpoints a second that are subtracted and multiplied.
    """

    read: float
    multiply: float


def rates(path: Trajectory, plan: GramPlan, device: torch.device, exact: bool) -> Rates:
    """Read a sample from the last checkpoint as the plan would, and multiply one that is in memory.

    What the system already holds in memory reads faster than the rest, so the prediction may be too low.

    Args:
        path: The checkpoints.
        plan: How they will be read.
        device: Where to multiply.
        exact: In float64.
    """
    done, began = 0, time.perf_counter()
    for tensor in path.tensors:
        stop = min(tensor.numel, max(1, plan.read_bytes // tensor.dtype.itemsize))
        done += path.read(len(path) - 1, tensor.name, 0, stop).numel() * tensor.dtype.itemsize
        if done >= SAMPLE or time.perf_counter() - began > PATIENCE:
            break
    read = done / max(time.perf_counter() - began, 1e-9)
    one = TensorInfo("sample", (SAMPLED,), path.tensors[0].dtype)
    rows = torch.linspace(0, 1, len(path) * SAMPLED).reshape(len(path), SAMPLED).to(one.dtype)
    took = []
    for _ in range(2):  # the first one loads the library of the products
        began = time.perf_counter()
        products = Products(path.steps, layout(one), exact=exact, device=device)
        products.add(rows, 0, SAMPLED)
        products.finish()
        took.append(time.perf_counter() - began)
    return Rates(read, rows.numel() * rows.itemsize / max(min(took), 1e-9))


def predicted(plan: GramPlan, found: Rates) -> tuple[float, str]:
    """Return the seconds that a plan takes where reading and multiplying overlap, and which of them is the limit."""
    reading, multiplying = plan.total_bytes / found.read, plan.total_bytes / found.multiply
    return (reading, "reading") if reading > multiplying else (multiplying, "multiplying")


def size(count: float) -> str:
    """Say a number of bytes.

    Example:
        >>> size(0), size(52_520), size(3.65e12)
        ('0 B', '52.5 kB', '3.65 TB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def pause(seconds: float) -> str:
    """Say a time span; short ones to a digit.

    Example:
        >>> pause(0.004), pause(2.31), pause(75)
        ('0.1 s', '2.3 s', '1 min 15 s')
    """
    seconds = max(seconds, 0.1)
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def device_of(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        InvalidInput: There is none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(
            explain(f"--device is {name!r}", "torch knows no such device", "Write cpu, cuda or cuda:1")
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(explain(f"--device is {name!r}", "products run on cpu or cuda", "Choose one of these"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            explain(
                f"--device is {name!r}",
                f"torch sees {torch.cuda.device_count()} CUDA devices here",
                "Use --device cpu",
            )
        )
    return device


def peak() -> int:
    """Return the most memory that this process has held so far, in bytes; 0 where it is not told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def held() -> int:
    """Return the memory that this process holds now, in bytes; 0 where it is not told."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (ImportError, OSError):
        return 0


class MapMeter(RunMeter):
    """What the two meters share: tiles done, bytes and rate."""

    noun, unit = "tile", "tiles"
    reached = 0

    def __init__(self, console: Console, total: int = 0, noun: str = "tile") -> None:
        super().__init__(console)
        self.noun, self.unit, self._total = noun, f"{noun}s", total

    def init(self, steps: int, start: int = 0) -> None:
        """So many are to come."""
        super().init(max(steps, 1), start)
        self._began = self._clock()

    def _text(self, values: Mapping[str, float]) -> str:
        self.reached = int(values["step"])
        done, passed = float(values.get("bytes", 0.0)), self._clock() - self._began
        rate = f", {size(done / passed)}/s" if passed > 0.5 else ""
        of = f" of {size(self._total)}" if self._total else ""
        return f"{size(done)}{of}{rate}"


class MapBar(MapMeter, BarMeter):
    """A bar that is redrawn in place."""


class MapLines(MapMeter, LineMeter):
    """A line at every tenth."""


def map_meter(console: Console, total: int, noun: str) -> MapMeter:
    """Return a bar for a terminal, lines for a file or a pipe.

    Args:
        console: Where to draw.
        total: Bytes that will be read; 0 if not known.
        noun: What is counted.
    """
    return (MapBar if console.is_terminal else MapLines)(console, total, noun)
