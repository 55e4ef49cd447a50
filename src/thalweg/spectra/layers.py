"""Curvature layer by layer: the leading eigenvalues and the trace of every principal block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from thalweg import _rng
from thalweg._vectors import Layout, Pattern
from thalweg.errors import InvalidInput, NotConverged, explain
from thalweg.operators.base import Operator
from thalweg.operators.hessian import hessian
from thalweg.problem import memory
from thalweg.problem.problem import Problem
from thalweg.spectra.choice import choose
from thalweg.spectra.lanczos import top_eigenpairs
from thalweg.spectra.layer_table import Layer, LayerTable
from thalweg.spectra.trace import trace

ENOUGH = 1000
"""Products of one trace at most where a target is given, but no budget."""
UNTARGETED = 100
"""Products of one trace where neither is."""
_FEWEST = 20
"""Products below which a trace has no standard error."""
_SHARE = 0.25
"""Share of free memory that the vectors of a trace may take."""


def layer_groups(names: Sequence[str], most: int | None = None) -> dict[str, list[str]]:
    """Put the parameters of one module together; where that gives too many layers, modules by the start of their names.

    Args:
        names: Names of parameters.
        most: More layers than this are put together by ever fewer first parts of their names.

    Returns:
        The names in each layer, in the order of their first.

    Example:
        >>> layer_groups(["0.weight", "0.bias", "2.weight"])
        {'0': ['0.weight', '0.bias'], '2': ['2.weight']}
        >>> layer_groups(["a.0.weight", "a.1.weight", "b.weight"], most=2)
        {'a': ['a.0.weight', 'a.1.weight'], 'b': ['b.weight']}
    """
    depth = max((name.count(".") for name in names), default=0)
    found: dict[str, list[str]] = {}
    for parts in range(max(depth, 1), 0, -1):
        found = {}
        for name in names:
            module = name.split(".")[:-1] or [name]
            found.setdefault(".".join(module[:parts]), []).append(name)
        if most is None or len(found) <= most:
            break
    return found


@dataclass(frozen=True)
class LayerPlan:
    """What to measure of every layer; the arguments of `layerwise`."""

    k: int = 1
    tol: float | None = None
    target: float | None = 0.05
    max_products: int | None = None
    seed: int = 0


def layerwise(
    problem: Problem,
    w: Tensor | None = None,
    *,
    layers: Mapping[str, Pattern] | None = None,
    operator: Operator | None = None,
    k: int = 1,
    tol: float | None = None,
    target: float | None = 0.05,
    max_products: int | None = None,
    seed: int = 0,
    strict: bool = True,
    progress: Callable[[Layer], None] | None = None,
) -> LayerTable:
    r"""Measure every principal block ``H_ll`` of the Hessian: ``\lambda_1 .. \lambda_k`` and ``tr H_ll``.

    A block is the curvature while all other layers stand still. Its largest eigenvalue is at most that of the whole,
    the traces of layers that do not overlap add up to that of the whole, and their errors add in squares. A product
    with a block costs one with the whole operator, so that the table costs about as many products as there are layers
    times those of one block.

    Args:
        problem: Model, loss and data.
        w: The point, shape ``(P,)``; default ``problem.initial``. Ignored where an operator is given.
        layers: For each layer a name pattern: a glob, several, a compiled regular expression or a predicate. They may
            overlap, and need not cover everything. Default: the parameters of one module together.
        operator: Another curvature on the same parameters, such as a Gauss-Newton operator; default the Hessian.
        k: Leading eigenvalues of each block, at most as many as it has parameters.
        tol: Relative residual of an eigenpair; default the solver's.
        target: Relative standard error of each trace; None spends 100 products on each.
        max_products: Budget for the table, shared among the layers; what one leaves over goes to those after it.
        seed: Seed of all random vectors; every layer has streams of its own.
        strict: Raise where a tolerance or target is not met; False returns what there is.
        progress: Called with each `Layer` as soon as it is done.

    Returns:
        `LayerTable`.

    Raises:
        InvalidInput: A pattern takes no parameter, ``k`` is not positive, or the budget is too small.
        NotConverged: A layer has not met its tolerance or target (``strict=True``); ``error.result`` holds the table.
        NonFinite: A product is NaN or infinite.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        >>> x = torch.randn(20, 3, dtype=torch.float64)
        >>> found = layerwise(Problem(model, torch.nn.MSELoss(), (x, x[:, :1])))
        >>> [(layer.name, layer.parameters) for layer in found]
        [('0', 32), ('2', 9)]
        >>> bool(found["2"].trace.value > found["2"].eigenvalues[0] > 0)
        True
    """
    plan = LayerPlan(k, tol, target, max_products, seed)
    rows = []
    with hessian(problem, w) if operator is None else nullcontext(operator) as curvature:
        start = curvature.products
        for row in layer_blocks(curvature, problem.layout, layers=layers, plan=plan):
            rows.append(row)
            if progress is not None:
                progress(row)
        found = LayerTable(tuple(rows), curvature.products - start)
    if strict and not found.converged:
        bad = next(row for row in rows if not row.converged)
        raise NotConverged(
            explain(
                f"{sum(not row.converged for row in rows)} of {len(rows)} layers are not done; {bad.name!r} first",
                " ".join(bad.unmet),
                "strict=False returns the table as it is",
            ),
            found,
        )
    return found


def layer_blocks(
    operator: Operator,
    layout: Layout,
    *,
    layers: Mapping[str, Pattern] | None = None,
    plan: LayerPlan | None = None,
) -> Iterator[Layer]:
    """Measure one layer after the other and yield each when it is done, so that an interruption loses only one.

    Nothing is multiplied before the first is asked for, but arguments are checked at once.

    Args:
        operator: Symmetric, shape ``(P, P)``, on the parameters of ``layout``.
        layout: ``problem.layout``.
        layers: As in `layerwise`.
        plan: What to measure; default ``LayerPlan()``.

    Raises:
        InvalidInput: As in `layerwise`.

    Example:
        >>> import torch
        >>> from thalweg.operators import from_dense
        >>> layout = Layout(("a.weight", "b.weight"), (torch.Size([3]), torch.Size([2])))
        >>> A = from_dense(torch.diag(torch.arange(5.0)))
        >>> for layer in layer_blocks(A, layout):
        ...     print(layer.name, layer.parameters, round(float(layer.trace.value), 4))
        a 3 3.0
        b 2 7.0
    """
    plan = plan or LayerPlan()
    chosen = layers if layers is not None else _modules(layout)
    if plan.k < 1 or not chosen:
        raise InvalidInput(
            explain(f"layerwise got k={plan.k} and {len(chosen)} layers", "there is nothing to measure", "Pass k >= 1")
        )
    blocks = {name: operator.restrict(layout, pattern) for name, pattern in chosen.items()}
    least = [2 * min(_FEWEST, block.size) for block in blocks.values()]
    if plan.max_products is not None and plan.max_products < sum(least):
        raise InvalidInput(
            explain(
                f"max_products is {plan.max_products} for {len(blocks)} layers",
                f"eigenvalues and traces with errors need at least {sum(least)}",
                "Grant more, or name fewer layers",
            )
        )
    members = {name: tuple(n for n, _ in layout.slices(pattern)) for name, pattern in chosen.items()}
    return _measure(operator, blocks, members, least, plan)


def _modules(layout: Layout) -> dict[str, Pattern]:
    """One predicate a module; names are taken as they are, not as globs."""
    return {name: frozenset(members).__contains__ for name, members in layer_groups(layout.names).items()}


def _measure(
    operator: Operator,
    blocks: Mapping[str, Operator],
    members: Mapping[str, tuple[str, ...]],
    least: list[int],
    plan: LayerPlan,
) -> Iterator[Layer]:
    start = operator.products
    for number, (name, block) in enumerate(blocks.items()):
        share = None
        if plan.max_products is not None:
            spare = plan.max_products - (operator.products - start) - sum(least[number:])
            share = least[number] + max(spare, 0) // (len(blocks) - number)
        yield _one(name, members[name], block, share, plan)


def _one(name: str, members: tuple[str, ...], block: Operator, share: int | None, plan: LayerPlan) -> Layer:
    """Find eigenvalues with half of the share, the trace with what is left of it."""
    seed = _rng.derive_seed(plan.seed, "layers", name)
    solver = choose(block, plan.k, tol=plan.tol, max_products=None if share is None else max(share // 2, 1))
    pairs = top_eigenpairs(block, plan.k, method=solver.method, seed=seed, strict=False)
    granted = (ENOUGH if plan.target is not None else UNTARGETED) if share is None else share - block.products
    budget = max(granted, min(_FEWEST, block.size))
    vectors = 1.5 * budget * block.size * block.dtype.itemsize  # three a probe of two products
    fits = vectors < _SHARE * memory.available(block.device)  # "hutchinson" keeps none
    total = trace(
        block,
        method="xtrace" if fits else "hutchinson",
        target=plan.target,
        max_products=budget,
        seed=seed,
        strict=False,
    )
    return Layer(
        name=name,
        members=members,
        parameters=block.size,
        eigenvalues=pairs.values.cpu(),
        residuals=pairs.residuals.cpu(),
        trace=total,
        products=block.products,
        stop=pairs.stop,
    )
