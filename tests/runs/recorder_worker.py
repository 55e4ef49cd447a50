"""Two processes that train one model together, wrapped by DDP and by fully_shard, and record it."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
from leaving import leave
from thalweg.runs.recorder import Recorder


def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(7, 5), torch.nn.Linear(5, 3), torch.nn.Linear(3, 7))
    model[1].bias.requires_grad_(False)
    return model


def wrap(model, how):
    if how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if how == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        return fully_shard(model)
    return model


def train(model, steps, recorder=None, shards=1, rank=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for number in range(steps):
        tokens = (torch.arange(8) * (number + 1)) % 7
        mine = tokens.chunk(shards)[rank]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(mine), (mine + 1) % 7)
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.step(loss=loss)


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for how in ("ddp", "fsdp"):
        model = wrap(build(), how)
        with Recorder(f"{folder}/{how}", model, every=2, bursts=(1, 4)) as recorder:
            train(model, 5, recorder, 2, rank)
            assert (recorder._writer is None) == (rank != 0)
        dist.barrier()
        del model
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
