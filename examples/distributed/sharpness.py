"""Leading Hessian eigenvalues of a model whose data, or parameters too, lie on several processes.

torchrun --nproc-per-node=2 examples/distributed/sharpness.py             # every process has the model, its own samples
torchrun --nproc-per-node=2 examples/distributed/sharpness.py --shard     # and only a piece of the parameters

Put your own model, loss and this process's share of your samples in the place of `make`.
"""

import argparse
import os
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from thalweg.operators.data_parallel import data_parallel
from thalweg.operators.processes import leave_group
from thalweg.operators.sharded import ShardedProblem
from thalweg.problem import Problem
from thalweg.spectra import top_eigenpairs


def make(seed: int, samples: int) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """Build the model, the loss and all samples: the same on every process."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 5))
    x = torch.randn(samples, 12, dtype=torch.float64)
    return model.double(), nn.CrossEntropyLoss(), x, (x @ torch.randn(12, 5, dtype=torch.float64)).argmax(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shard", action="store_true", help="share out the parameters, too")
    parser.add_argument("--layout", default="double_backward", help="how sharded products are computed")
    parser.add_argument("-k", type=int, default=3, help="eigenvalues")
    parser.add_argument("--samples", type=int, default=101, help="samples on all processes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60, help="seconds that a process waits for the others")
    options = parser.parse_args()

    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "nccl" if torch.cuda.device_count() >= here else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=options.timeout))
    measure(options, local, backend)
    leave_group()  # when all that was built on the group is gone: only then do its threads end


def measure(options: argparse.Namespace, local: int, backend: str) -> None:
    model, loss, x, y = make(options.seed, options.samples)
    mine = slice(dist.get_rank(), None, dist.get_world_size())  # every process takes other samples
    x, y = x[mine], y[mine]
    if backend == "nccl":
        torch.cuda.set_device(local)
        model, x, y = model.cuda(), x.cuda(), y.cuda()

    if options.shard:
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
        problem = ShardedProblem(model, loss, (x, y), batch_size=32)
        operator = problem.hessian(layout=options.layout)
    else:
        problem = data_parallel(Problem(model, loss, (x, y), batch_size=32))
        operator = problem.hessian()

    value, pairs = problem.value(problem.initial), top_eigenpairs(operator, k=options.k)
    if dist.get_rank() == 0:
        print(f"{problem}")
        print(f"loss {float(value):.17g} on {problem.samples} samples")
        print(f"{pairs}")
        print("eigenvalues", *(f"{v:.17g}" for v in pairs.values.tolist()))


if __name__ == "__main__":
    main()
