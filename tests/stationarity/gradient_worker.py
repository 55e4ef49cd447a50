"""What two processes make of one gradient level: ``torchrun gradient_worker.py RESULTS.json``."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
import thalweg as tw
from leaving import leave
from thalweg.errors import ThalwegError
from thalweg.runs.gradient_probe import GradientProbe
from thalweg.stationarity.gradient import gradient_level


def problem(broken: bool = False) -> tw.Problem:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 400), torch.nn.BatchNorm1d(400), torch.nn.ReLU(), torch.nn.Linear(400, 3)
    )
    stream = torch.Generator().manual_seed(1)
    x, y = torch.randn(100, 6, generator=stream), torch.randint(0, 3, (100,), generator=stream)
    loss = (lambda out, y: (out.sum() - 1e9).log()) if broken else torch.nn.CrossEntropyLoss()
    return tw.Problem(model, loss, (x, y), check=False)


def text(function):
    try:
        function()
    except ThalwegError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def counted(function):
    """Names of the collectives that ``function`` calls."""
    calls, kept = [], {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}
    for name, original in kept.items():
        setattr(dist, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    try:
        function()
    finally:
        for name, original in kept.items():
            setattr(dist, name, original)
    return calls


def main(path: Path) -> None:
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    options = {"batches": 7, "batch_size": 20, "seed": 3, "decay": 0.1}
    for keep in ("gradients", "sketch"):
        together = gradient_level(problem(), shared=True, keep=keep, **options)
        alone = gradient_level(problem(), keep=keep, **options)
        found[keep] = [
            [getattr(one.whole, name) for name in ("unbiased", "biased", "noise", "standard_error", "noise_square")]
            + [one.plain.unbiased, one.scale_free.unbiased, one.loss, one.tensors["3.bias"].unbiased]
            for one in (together, alone)
        ]
    found["calls"] = counted(lambda: gradient_level(problem(), shared=True, scale_invariant_groups=None, **options))
    probe = GradientProbe(batch_size=20, batches=7)
    found["probe"] = [probe.probe(problem(), seed=5, shared=True), probe.probe(problem(), seed=5)]
    found["nan here"] = text(
        lambda: gradient_level(problem(broken=rank == 1), shared=True, scale_invariant_groups=None)
    )
    other = problem()
    at = other.initial + rank
    found["points"] = text(lambda: gradient_level(other, at, shared=True, scale_invariant_groups=None))
    found["twice"] = text(lambda: gradient_level(problem(), shared=True, keep="second pass"))
    rows = [None] * dist.get_world_size()
    dist.all_gather_object(rows, found)
    if rank == 0:
        path.write_text(json.dumps(rows))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
