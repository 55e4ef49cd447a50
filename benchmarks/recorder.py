"""What a `Recorder` costs a small transformer: steps with it against the same steps without, in alternating blocks.

Ratios are times with a recorder over times without. Each block has as many steps as lie between two checkpoints, and so
writes one. Two clocks: the time of the process on the processor, which counts the writing thread's work in full, also
where a second core does it; and the clock on the wall until the loop goes on, which counts all waiting and, on a
machine that others use, their share.

    python benchmarks/recorder.py            two minutes
    python benchmarks/recorder.py --quick    a few seconds
    python benchmarks/recorder.py --save     also writes results/recorder.json and .md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from _common import Spread, arguments, header, machine, save, table

from thalweg.runs.recorder import Recorder

EVERY = 100
BOUND = 1.02
SETTINGS: dict[str, dict[str, Any]] = {
    "every=100": {"every": EVERY},
    "every=100, bursts=(64, 1000)": {"every": EVERY, "bursts": (64, 1000)},
}


class Model(torch.nn.Module):
    """A language model of bytes: 2 layers of width 128."""

    def __init__(self, width: int = 128, length: int = 64) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.embed, self.place = torch.nn.Embedding(256, width), torch.nn.Parameter(torch.zeros(length, width))
        self.body = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 256)
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))


def make_step() -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    """Return a model, its optimizer and one step of training."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(256, (4, 65))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).reshape(-1, 256), tokens[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step


def block(step: Callable[[], torch.Tensor], recorder: Recorder | None) -> tuple[float, float]:
    """Do EVERY steps; return seconds of processor, until all is written, and on the wall, until the loop goes on."""
    processor, wall = time.process_time(), time.perf_counter()
    for _ in range(EVERY):
        loss = step()
        if recorder is not None:
            recorder.step(loss=loss)
    wall = time.perf_counter() - wall
    if recorder is not None:
        recorder.flush()
    return time.process_time() - processor, wall


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Alternate blocks with and without, each round in the other order."""
    model, optimizer, step = make_step()
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        with Recorder(f"{folder}/run", model, optimizer, **SETTINGS[name]) as recorder:
            block(step, None)
            for number in range(rounds):
                for recorded in (False, True) if number % 2 else (True, False):
                    times[recorded].append(block(step, recorder if recorded else None))
        written = sum(path.stat().st_size for path in recorder.folder.root.rglob("*") if path.is_file())
    ratios = [[a / b for a, b in zip(mine, theirs)] for mine, theirs in zip(times[True], times[False])]
    return {
        "settings": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * Spread.of([processor / EVERY for processor, _ in times[False]]).median,
        "total": sum(p for p, _ in times[True]) / sum(p for p, _ in times[False]),
        "processor": asdict(Spread.of([processor for processor, _ in ratios])),
        "wall": asdict(Spread.of([wall for _, wall in ratios])),
        "bytes": written,
        "times": {"with": times[True], "without": times[False]},
    }


def main() -> int:
    options = arguments(__doc__ or "", "recorder")
    about = machine()
    rounds = 2 if options.quick else 20  # two bursts
    found = [measure(name, rounds) for name in SETTINGS]
    rows = [
        [
            one["settings"],
            f"{one['parameters']:,}",
            f"{one['step_ms']:.1f}",
            f"{one['total']:.3f}",
            Spread(**one["processor"]).show(3),
            Spread(**one["wall"]).show(3),
        ]
        for one in found
    ]
    titles = [
        "recorded",
        "parameters",
        "ms a step without",
        "processor, all blocks",
        "processor, a block",
        "wall, a block",
    ]
    ratio = found[0]["total"]
    verdict = f"every=100 costs {100 * (ratio - 1):.1f} % of the processor time of a step; the bound is 2 %."
    text = f"{header(about)}\n\n{table(titles, rows)}\n\n{verdict}"
    print("## Training with a Recorder against without\n\n" + text)
    if options.save:
        save(options.out, "recorder", {"machine": about, "quick": options.quick, "found": found}, text)
    return 0 if ratio < BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
