"""What two processes find out together, launched by torchrun: ``distributed_worker.py GROUP RESULTS.json``.

Every check returns numbers or texts; process 0 writes those of all processes. The tests judge them.
"""

import copy
import json
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

sys.path.insert(0, str(Path(__file__).parent.parent))
import cases
from leaving import leave
from reference import dense
from thalweg.operators import from_dense, hessian
from thalweg.operators.data_parallel import data_parallel
from thalweg.operators.gathering import Book
from thalweg.operators.processes import digest
from thalweg.operators.sharded import ShardedProblem
from thalweg.operators.sharded_hessian import gathered
from thalweg.problem import Problem
from thalweg.spectra import top_eigenpairs
from thalweg.spectra.block import BlockSpace, solve_block

CHECKS: dict[str, dict[str, object]] = {}


def check(group):
    def register(function):
        CHECKS.setdefault(group, {})[function.__name__] = function
        return function

    return register


def first():
    return dist.get_rank() == 0


def pairs_of(case):
    """All samples of a case as something that can be indexed."""
    data = case.data
    if isinstance(data, list):
        data = tuple(torch.cat(parts) for parts in zip(*data))
    elif isinstance(data, cases.Samples):
        data = (data.x, data.y)
    return data


def own(case, first_share=3):
    """A third of the samples for process 0, the rest for process 1."""
    data = pairs_of(case)
    size = len(next(iter(data.values())) if isinstance(data, dict) else data[0])
    mine = slice(0, size // first_share) if first() else slice(size // first_share, None)
    return {k: t[mine] for k, t in data.items()} if isinstance(data, dict) else tuple(t[mine] for t in data)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def collectives():
    """Count every collective call that goes through torch.distributed's Python interface."""
    names = [n for n in dir(dist) if n.startswith(("all_", "reduce", "broadcast", "gather", "scatter", "barrier"))]
    kept, calls = {n: getattr(dist, n) for n in names if callable(getattr(dist, n))}, []

    def counted(name, function):
        def call(*arguments, **options):
            calls.append(name)
            return function(*arguments, **options)

        return call

    for name, function in kept.items():
        setattr(dist, name, counted(name, function))
    try:
        yield calls
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def raised(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def replicated(name, **options):
    case = cases.make(name)
    return case, data_parallel(Problem(case.model, case.loss, own(case), batch_size=2, **options))


def wrapped(model, each=True):
    model = copy.deepcopy(model)
    if each:
        for module in model.children():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fully_shard(module)
    return fully_shard(model)


def compare_replicated(name):
    case, problem = replicated(name)
    matrix = dense.hessian(case.model, case.whole)
    w, block = problem.initial, random(problem.dimension, 3)
    operator = problem.hessian(w)
    product, products = operator.matvec(block[:, 0].contiguous()), operator.matmat(block)
    value, gradient = problem.value_and_gradient(w)
    return {
        "product": relative(product, matrix @ block[:, 0]),
        "block": relative(products, matrix @ block),
        "value": abs(float(value - dense.value(case.model, case.whole))) / abs(float(value)),
        "value alone": abs(float(problem.value(w) - value)) / abs(float(value)),
        "gradient": relative(gradient, dense.gradient(case.model, case.whole)),
        "bits": digest([("all", torch.cat([product, products.reshape(-1), value.reshape(1), gradient]))]),
        "samples": problem.samples,
        "counted": operator.products,
        "share": problem.share,
    }


def compare_sharded(name, layouts=("double_backward", "linearised", "difference")):
    case = cases.make(name)
    matrix = dense.hessian(case.model, case.whole)
    model = wrapped(case.model, each=name not in ("tied",))
    before = digest([*((n, p.to_local()) for n, p in model.named_parameters()), *model.named_buffers()])
    problem = ShardedProblem(model, case.loss, own(case), batch_size=2)
    w, block = problem.initial, random(problem.dimension, 2)
    value, gradient = problem.value_and_gradient(w)
    found = {
        "value": abs(float(value - dense.value(case.model, case.whole))) / abs(float(value)),
        "value alone": abs(float(problem.value(w) - value)) / abs(float(value)),
        "gradient": relative(problem.whole(gradient), dense.gradient(case.model, case.whole)),
        "initial": relative(problem.whole(w), case.problem().initial),
        "samples": problem.samples,
        "length": problem.space.length,
        "dimension": problem.dimension,
    }
    for layout in layouts:
        operator = gathered(problem.hessian(layout=layout))
        found[layout] = relative(operator.matmat(block), matrix @ block)
        found[f"{layout} once"] = relative(operator.matvec(block[:, 1].contiguous()), matrix @ block[:, 1])
    after = digest([*((n, p.to_local()) for n, p in model.named_parameters()), *model.named_buffers()])
    grads = [p.grad for p in model.parameters()]
    return {**found, "untouched": before == after and all(g is None for g in grads)}


@check("core")
def data_parallel_product():
    return compare_replicated("mlp_ce")


@check("core")
def one_all_reduce_each():
    _, problem = replicated("mlp_mse")
    w, block = problem.initial, random(problem.dimension, 3)
    operator, found = problem.hessian(w), {}
    calls = {
        "product": lambda: operator.matvec(block[:, 0].contiguous()),
        "block": lambda: operator.matmat(block),
        "value": lambda: problem.value(w),
        "value and gradient": lambda: problem.value_and_gradient(w),
    }
    for name, call in calls.items():
        with collectives() as seen:
            call()
        found[name] = seen
    return found


@check("core")
def data_parallel_solver():
    case, problem = replicated("mlp_ce")
    pairs = top_eigenpairs(problem.hessian(), k=3)
    expected = torch.linalg.eigvalsh(dense.hessian(case.model, case.whole)).flip(0)[:3]
    return {
        "error": float((pairs.values - expected).abs().max()),
        "residual": float(pairs.residuals.max()),
        "bits": digest([("values", pairs.values), ("vectors", pairs.vectors), ("residuals", pairs.residuals)]),
        "products": pairs.products,
    }


@check("core")
def a_failing_process_tells_the_others():
    _, problem = replicated("mlp_ce")
    operator = problem.hessian()

    def fails(v):
        if not first():
            raise ZeroDivisionError("on purpose")
        return v

    operator.inner._matvec = fails
    v = random(problem.dimension)
    texts = [raised(lambda: operator.matvec(v))]
    if not first():
        problem.local.value = fails
    texts.append(raised(lambda: problem.value(v)))
    return {"product": texts[0], "value": texts[1], "afterwards": compare_replicated("mlp_mse")["product"]}


@check("core")
def different_vectors_are_noticed():
    _, problem = replicated("mlp_ce")
    operator, rank = problem.hessian(), dist.get_rank()
    v = random(problem.dimension)
    nearly = v.clone()
    nearly[4] = torch.nextafter(nearly[4], nearly[4] + rank)
    return {
        "product": raised(lambda: operator.matvec(nearly)),
        "value": raised(lambda: problem.value(problem.initial + rank)),
        "hessian": raised(lambda: problem.hessian(problem.initial + rank)),
        "permuted": raised(lambda: operator.matvec(v if first() else v.flip(0))),
    }


@check("core")
def sharded_product():
    return compare_sharded("mlp_ce")


@check("core")
def sharded_solvers():
    case = cases.make("mlp_ce")
    problem = ShardedProblem(wrapped(case.model), case.loss, own(case), batch_size=2)
    with problem.hessian(layout="linearised") as operator:
        pairs = top_eigenpairs(operator, k=3)
        space = BlockSpace(operator, 20)
        space.add(torch.stack([operator.space.random(torch.Generator().manual_seed(i)) for i in range(2)]))
        block = solve_block(space, 2, 1e-8)
    expected = torch.linalg.eigvalsh(dense.hessian(case.model, case.whole)).flip(0)
    gram = problem.space.all_sum(pairs.vectors.T @ pairs.vectors)
    whole = torch.stack([problem.whole(v.contiguous()) for v in pairs.vectors.T], dim=1)
    true = (dense.hessian(case.model, case.whole) @ whole - whole * pairs.values).norm(dim=0)
    return {
        "error": float((pairs.values - expected[:3]).abs().max()),
        "block error": float((block.values - expected[:2]).abs().max()),
        "orthonormal": float((gram - torch.eye(3)).abs().max()),
        "residual": float(true.max()),
        "bits": digest([("values", pairs.values), ("block", block.values)]),
        "length": len(pairs.vectors),
    }


@check("all")
def every_case_replicated():
    return {name: compare_replicated(name) for name in cases.NAMES if name != "batch_norm_train"}


@check("all")
def every_case_sharded():
    return {name: compare_sharded(name) for name in cases.NAMES if name != "batch_norm_train"}


@check("all")
def ddp_and_operators():
    """A module wrapped in DDP, used unwrapped; and an operator with its own count."""
    case = cases.make("mlp_ce")
    wrapped_model = nn.parallel.DistributedDataParallel(copy.deepcopy(case.model))
    problem = data_parallel(Problem(wrapped_model.module, case.loss, own(case)))
    automatic = data_parallel(Problem(wrapped_model, case.loss, own(case), batch_size=2))
    v = random(problem.dimension)
    matrix = dense.hessian(case.model, case.whole)
    lifted = problem.lift(hessian(problem.local))
    counted = data_parallel(hessian(problem.local), samples=problem.local.samples)
    return {
        "unwrapped by hand": relative(problem.hessian().matvec(v), matrix @ v),
        "unwrapped": relative(automatic.hessian().matvec(v), matrix @ v),
        "names": automatic.layout.names == problem.layout.names,
        "lifted": relative(lifted.matvec(v), matrix @ v),
        "counted": relative(counted.matvec(v), matrix @ v),
        "difference": relative(problem.hessian(layout="difference").matvec(v), matrix @ v),
        "uncounted": raised(lambda: data_parallel(hessian(problem.local))),
        "sizes": raised(lambda: data_parallel(from_dense(torch.eye(2 + dist.get_rank())), samples=1)),
    }


@check("all")
def different_models_are_noticed():
    case, rank = cases.make("batch_norm_eval"), dist.get_rank()
    changed = copy.deepcopy(case.model)
    with torch.no_grad():
        changed[0].weight[0, 0] += 1e-15 * rank
    statistics = copy.deepcopy(case.model)
    statistics[1].running_mean += rank
    shapes = nn.Sequential(nn.Linear(3, 4 + rank), nn.Linear(4 + rank, 3)).double()

    def build(model):
        return lambda: data_parallel(Problem(model, case.loss, own(case)))

    def fails():
        return data_parallel(Problem(case.model, case.loss, own(case))).hessian(torch.zeros(99 if first() else 47))

    return {
        "weights": raised(build(changed)),
        "buffers": raised(build(statistics)),
        "shapes": raised(build(shapes)),
        "one cannot build": raised(fails),
        "sharded shapes": raised(lambda: ShardedProblem(shapes, case.loss, own(case))),
        "sharded buffers": raised(lambda: ShardedProblem(statistics, case.loss, own(case))),
    }


@check("all")
def other_placements():
    """DTensors along another dimension, replicated and plain ones; scalars that stay constant; a part in w."""
    case = cases.make("mlp_ce")
    mesh = init_device_mesh("cpu", (2,))
    placements = {"0.weight": [Shard(1)], "0.bias": [Shard(0)], "2.weight": [Replicate()]}
    model = copy.deepcopy(case.model)
    for name, placement in placements.items():
        module, attribute = model.get_submodule(name[0]), name[2:]
        p = getattr(module, attribute)
        setattr(module, attribute, nn.Parameter(distribute_tensor(p.data, mesh, placement)))
    problem = ShardedProblem(model, case.loss, own(case))
    matrix, v = dense.hessian(case.model, case.whole), random(problem.dimension)
    part = ShardedProblem(wrapped(case.model), case.loss, own(case), parameters="2.*")
    rows = case.problem().layout.indices("2.*")
    u = random(part.dimension)
    return {
        "mixed": relative(gathered(problem.hessian()).matvec(v), matrix @ v),
        "difference": relative(gathered(problem.hessian(layout="difference")).matvec(v), matrix @ v),
        "part": relative(gathered(part.hessian()).matvec(u), matrix[rows][:, rows] @ u),
        "part by differences": relative(
            gathered(part.hessian(layout="difference")).matvec(u), matrix[rows][:, rows] @ u
        ),
    }


@check("all")
def graphs_hold_pieces():
    """The largest tensors that a kept graph holds, with notes for gathered parameters and without."""
    wide = nn.Sequential(nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 2)).double()
    problem = ShardedProblem(fully_shard(wide), nn.MSELoss(), (random(2, 3), random(2, 2)), check=False)
    sizes, pack = [], Book._pack

    def noting(book, tensor):
        kept = pack(book, tensor)
        if isinstance(kept, torch.Tensor):
            sizes.append(kept.untyped_storage().nbytes() // 8)
        return kept

    Book._pack = noting
    try:
        operator = problem.hessian(layout="linearised")
        held = max(sizes)
        operator.matvec(problem.initial)
    finally:
        Book._pack = pack
    return {"largest": held, "parameter": 200 * 200, "whole graph": sum(sizes), "P": problem.dimension}


@check("all")
def a_root_that_was_left_gathered():
    case = cases.make("mlp_ce")
    model = wrapped(case.model, each=False)
    with torch.no_grad():
        model(own(case)[0])
    problem = ShardedProblem(model, case.loss, own(case))
    v = random(problem.dimension)
    matrix = dense.hessian(case.model, case.whole)
    return {"error": relative(gathered(problem.hessian()).matvec(v), matrix @ v)}


@check("all")
def gradients_and_hooks_stay():
    case = cases.make("mlp_ce")
    model = wrapped(case.model)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    x, y = own(case)
    case.loss(model(x), y).backward()
    before = [p.grad.to_local().clone() for p in model.parameters()]
    calls.clear()
    problem = ShardedProblem(model, case.loss, (x, y))
    problem.hessian(layout="difference").matvec(problem.initial)
    after = [p.grad.to_local() for p in model.parameters()]
    return {
        "same": all(torch.equal(a, b) for a, b in zip(before, after)),
        "user's hook called": len(calls) > 0,
        "trains on": raised(lambda: case.loss(model(x), y).backward()),
    }


@check("all")
def what_cannot_be_right_is_refused():
    case = cases.make("mlp_ce")
    x, y = own(case)

    def precise(**policy):
        return fully_shard(copy.deepcopy(case.model), mp_policy=MixedPrecisionPolicy(**policy))

    def scaled():
        model = wrapped(case.model, each=False)
        model.set_gradient_divide_factor(8.0)
        return ShardedProblem(model, case.loss, (x, y)).hessian()

    def penalty(model, batch):
        squares = sum((p * p).sum() for p in model.parameters())
        return case.loss(model(batch[0]), batch[1]) + squares, len(batch[0])

    dropout = fully_shard(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 4)).double())
    problem = ShardedProblem(wrapped(case.model), case.loss, (x, y))
    return {
        "half precision": raised(lambda: ShardedProblem(precise(param_dtype=torch.bfloat16), case.loss, (x, y))),
        "scaled gradients": raised(scaled),
        "penalty": raised(lambda: ShardedProblem(wrapped(case.model), penalty, [(x, y)])),
        "dropout": raised(lambda: ShardedProblem(dropout, case.loss, (x, y))),
        "whole vector": raised(lambda: problem.hessian().matvec(random(problem.dimension))),
        "whole point": raised(lambda: problem.value(random(problem.dimension))),
        "layout": raised(lambda: problem.hessian(layout="auto")),
        "plain problem": raised(lambda: Problem(wrapped(case.model), case.loss, (x, y))),
        "lift": raised(lambda: data_parallel(problem.hessian(), samples=3)),
        "dense": raised(lambda: problem.hessian().dense()),
    }


@check("all")
def no_second_derivative():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * (1 - x.tanh() ** 2)

    class Layer(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    case = cases.make("mlp_mse")
    model = nn.Sequential(copy.deepcopy(case.model[0]), Layer(), copy.deepcopy(case.model[2]))
    problem = ShardedProblem(fully_shard(model), case.loss, own(case))
    matrix, v = dense.hessian(case.model, case.whole), random(problem.dimension)
    return {
        "exact": raised(lambda: problem.hessian().matvec(problem.piece(v))),
        "difference": relative(gathered(problem.hessian(layout="difference")).matvec(v), matrix @ v),
    }


def main():
    group, path = sys.argv[1:]
    dist.init_process_group("gloo", timeout=timedelta(seconds=500))
    found = {}
    for name, function in CHECKS[group].items():
        own_results = [None] * dist.get_world_size()
        dist.all_gather_object(own_results, function())
        found[name] = own_results
    if first():
        Path(path).write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
