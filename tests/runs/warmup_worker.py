"""Two processes that measure the critical learning rate of one first update together, each on its half of the data."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
from leaving import leave
from thalweg.runs.callbacks_warmup import Warming, first_problem


def data():
    source = torch.Generator().manual_seed(0)
    return torch.randn(12, 6, generator=source), torch.randn(12, 2, generator=source)


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


def evaluate(model, batch):
    return (model(batch[0].double()) - batch[1].double()).square().mean()


def measure(model, call, batches):
    """Accumulate the gradient of the batches, and measure with it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0, momentum=0.9)
    for batch in batches:
        (evaluate(call, batch) / len(batches)).backward()
    warming = Warming(10, {"tol": 1e-6})
    warming.attach(optimizer, [])
    found = warming.measure(first_problem(model, evaluate, batches))
    return found.learning_rate, found.evaluations, optimizer.param_groups[0]["lr"], found.loss


def main(path):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = build()
    inputs, targets = data()
    mine = list(zip(inputs[rank::2].split(3), targets[rank::2].split(3)))
    found = measure(model, torch.nn.parallel.DistributedDataParallel(model), mine)
    gathered = [None, None]
    dist.all_gather_object(gathered, found)
    if rank == 0:
        Path(path).write_text(json.dumps(gathered))
    dist.barrier()
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
