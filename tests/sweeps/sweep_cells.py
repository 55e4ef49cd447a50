"""Functions of cells that the tests of sweeps send to workers."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch

import thalweg as tw

LOG = "THALWEG_TEST_LOG"
"""Where each computed cell leaves a line."""


def log(cell):
    with open(os.environ[LOG], "a") as handle:
        handle.write(f"{cell.key}\n")


def counted():
    path = Path(os.environ[LOG])
    return path.read_text().split() if path.exists() else []


def draws(cell):
    """Numbers from all streams that a careless function may use, and from the cell's own."""
    log(cell)
    return {
        "own": torch.randn(3, generator=cell.generator("w")),
        "torch": torch.randn(2),
        "numpy": np.random.randn(),  # noqa: NPY002
        "python": random.random(),
        "twice": cell["width"] * 2,
    }


def safe(cell):
    """The same without global streams, which threads share."""
    log(cell)
    return {"own": torch.randn(3, generator=cell.generator("w")), "twice": cell["width"] * 2}


def slow(cell):
    time.sleep(0.15)
    return draws(cell)


def network(cell):
    """A width of 0 raises in the middle of it."""
    torch.manual_seed(cell.seed)
    if cell["width"] == 0:
        raise ValueError("a layer has no units")
    model = torch.nn.Sequential(torch.nn.Linear(4, cell["width"]), torch.nn.Linear(cell["width"], 1))
    problem = tw.Problem(model, torch.nn.MSELoss(), (torch.randn(8, 4), torch.randn(8, 1)))
    return {"loss": float(problem.value(problem.initial))}


def blocks(cell):
    """A width of 3 takes for ever until it is allowed to go on."""
    folder = Path(os.environ[LOG]).parent
    if cell["width"] == 3 and not (folder / "go").exists():
        (folder / f"begun-{cell['seed']}").write_text(str(os.getpid()))
        time.sleep(900)
    return draws(cell)


def dies_once(cell):
    mark = Path(os.environ[LOG]).with_name("mark")
    if cell["width"] == 3 and not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return draws(cell)


def dies(cell):
    if cell["width"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return draws(cell)


def exits(cell):
    if cell["width"] == 3:
        raise SystemExit(7)
    return draws(cell)


def hangs(cell):
    """A width of 3 waits for what never comes, unless it is allowed to go on; it says that it has begun."""
    folder = Path(os.environ[LOG]).parent
    if cell["width"] == 3 and not (folder / "go").exists():
        (folder / f"begun-{os.getpid()}").touch()
        threading.Event().wait()
    return safe(cell)
