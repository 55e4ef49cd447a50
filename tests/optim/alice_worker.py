"""What processes find out together, launched by torchrun: ``alice_worker.py RESULTS.json``."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))
from leaving import leave
from thalweg.optim.alice import Alice

STEPS = 16


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 3)).double()


def batch(number):
    stream = torch.Generator().manual_seed(number)
    return torch.randn(24, 6, generator=stream, dtype=torch.float64), torch.randint(0, 3, (24,), generator=stream)


def closure_of(net, optimizer, number, share=slice(None)):
    x, y = batch(number)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[share]), y[share])
        loss.backward()
        return loss

    return closure


def train(net, optimizer, numbers, share=slice(None)):
    for number in numbers:
        optimizer.step(closure_of(net, optimizer, number, share))


def own():
    rank, size = dist.get_rank(), dist.get_world_size()
    return slice(rank * 24 // size, (rank + 1) * 24 // size)


def whole(net):
    parts = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in parts])


def alone():
    net = model()
    train(net, Alice(net.parameters(), lr=5e-3), range(STEPS))
    return whole(net)


def data_parallel(expected):
    net = DistributedDataParallel(model())
    train(net, Alice(net.parameters(), lr=5e-3), range(STEPS), own())
    found = whole(net)
    both = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(both, found)
    return {"error": float((found - expected).abs().max()), "equal": all(torch.equal(b, found) for b in both)}


def sharded(expected):
    net = model()
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = Alice(net.parameters(), lr=5e-3)
    train(net, optimizer, range(11), own())
    # A checkpoint in the middle, through torch's distributed one, into a fresh optimizer.
    with tempfile.TemporaryDirectory() as folder:
        folders = [folder]
        dist.broadcast_object_list(folders)
        checkpoint.save(get_optimizer_state_dict(net, optimizer), checkpoint_id=folders[0])
        optimizer.zero_grad()  # where there are gradients, torch takes the state for created
        fresh = Alice(net.parameters(), lr=1.0)
        state = get_optimizer_state_dict(net, fresh)  # creates state by a bare step at lr = 0
        checkpoint.load(state, checkpoint_id=folders[0])
        set_optimizer_state_dict(net, fresh, state)
        dist.barrier()
    train(net, fresh, range(11, STEPS), own())
    weight = net[0].weight
    return {
        "error": float((whole(net) - expected).abs().max()),
        "sharded": isinstance(fresh.state[weight]["mean"], DTensor),
        "local": fresh.state[weight]["mean"].to_local().shape[0],
        "rates": fresh.param_groups[0]["lr"],
    }


def other_cuts():
    """A cut along the second dimension: other signs than the whole tensor's, different ones by piece, and it trains."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = nn.Parameter(distribute_tensor(torch.ones(4, 6, dtype=torch.float64), mesh, [Shard(1)]))
    optimizer = Alice([weight], lr=1e-2)
    signs = None

    def closure():
        nonlocal signs
        optimizer.zero_grad()
        local = weight.to_local()
        signs = (local.detach() - 1).sign() if signs is None else signs
        loss = (weight**2).sum()
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
    return {"signs": signs.reshape(-1).tolist(), "less": bool((weight.to_local() < 1).all())}


def main():
    dist.init_process_group("gloo")
    expected = alone()
    found = {"ddp": data_parallel(expected), "fsdp": sharded(expected), "cut": other_cuts()}
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(everything, file)
    leave()


if __name__ == "__main__":
    main()
