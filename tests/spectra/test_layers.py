"""The table of layers against dense blocks: values, errors, products, patterns, budgets, and what it refuses."""

import re

import pytest
import torch

import cases
from reference import dense
from thalweg._vectors import Layout
from thalweg.errors import InvalidInput, NonFinite, NotConverged
from thalweg.operators import from_dense, from_function, hessian
from thalweg.spectra.estimate import EstimateStop
from thalweg.spectra.layer_table import LayerTable
from thalweg.spectra.layers import LayerPlan, layer_blocks, layer_groups, layerwise
from thalweg.spectra.results import Stop

NAMES = ("mlp_mse", "cnn", "attention", "tied", "frozen", "unused")


def block_of(matrix, layout, members):
    index = torch.cat([torch.arange(s.start, s.stop) for name, s in layout.slices() if name in members])
    return matrix[index][:, index]


def wide(size=120, seed=0):
    """Two layers of ``size`` weights, too many for the trace to be had column by column."""
    layout = Layout(("a.weight", "a.bias", "b.weight"), (torch.Size([size - 10]), torch.Size([10]), torch.Size([size])))
    stream = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(2 * size, 2 * size, dtype=torch.float64, generator=stream))
    matrix = turn @ (0.95 ** torch.arange(2 * size, dtype=torch.float64)[:, None] * turn.T)
    return layout, (matrix + matrix.T) / 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_dense_blocks(name):
    case = cases.make(name)
    problem, matrix = case.problem(), dense.hessian(case.model, case.whole)
    found = layerwise(problem, k=2, tol=1e-8, strict=False)
    assert [row.name for row in found] == list(layer_groups(problem.layout.names))
    assert sum(row.parameters for row in found) == problem.dimension
    for row in found:
        block = block_of(matrix, problem.layout, row.members)
        assert row.parameters == len(block)
        truth = torch.linalg.eigvalsh(block).flip(0)[:2]
        size = float(matrix.abs().max())
        assert bool(((row.eigenvalues - truth).abs() <= row.residuals + 1e-11 * size).all())
        assert row.stop.converged
        low, high = row.trace.interval(0.9999)
        assert low - 1e-12 * size <= block.trace() <= high + 1e-12 * size


def test_the_sum_of_traces_is_the_trace():
    case = cases.make("mlp_ce")
    found = layerwise(case.problem())
    whole = dense.hessian(case.model, case.whole).trace()
    total = sum(row.trace.value for row in found)
    error = sum(row.trace.standard_error**2 for row in found) ** 0.5
    assert abs(float(total - whole)) <= 4 * float(error)
    assert found["0"].trace.stop is EstimateStop.EXACT, "20 parameters are had column by column"


def test_at_another_point():
    case = cases.make("mlp_mse")
    problem = case.problem()
    w = problem.initial + 0.3
    found = layerwise(problem, w, layers={"first": "0.*"})
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(w, case.model.parameters())
    block = block_of(dense.hessian(case.model, case.whole), problem.layout, {"0.weight", "0.bias"})
    truth = torch.linalg.eigvalsh(block)[-1]
    assert float((found["first"].eigenvalues[0] - truth).abs()) <= 1e-6 * float(truth.abs())


@pytest.mark.parametrize(
    ("pattern", "members"),
    [
        ("*.bias", ("0.bias", "2.bias")),
        (("0.weight", "2.*"), ("0.weight", "2.weight", "2.bias")),
        (re.compile(r"^2\."), ("2.weight", "2.bias")),
        (lambda name: name == "0.bias", ("0.bias",)),
    ],
)
def test_patterns(pattern, members):
    case = cases.make("mlp_mse")
    problem = case.problem()
    found = layerwise(problem, layers={"mine": pattern, "all": "*"})
    assert [row.name for row in found] == ["mine", "all"]
    assert found["mine"].members == members
    block = block_of(dense.hessian(case.model, case.whole), problem.layout, members)
    low, high = found["mine"].trace.interval(0.9999)
    assert low * (1 - 1e-12) <= block.trace() <= high * (1 + 1e-12)
    assert found["all"].parameters == problem.dimension


def test_another_operator_and_products():
    layout, matrix = wide()
    operator = from_dense(matrix)
    rows = list(layer_blocks(operator, layout, plan=LayerPlan(target=0.02)))
    assert [(row.name, row.members) for row in rows] == [("a", ("a.weight", "a.bias")), ("b", ("b.weight",))]
    assert sum(row.products for row in rows) == operator.products
    for row in rows:
        block = block_of(matrix, layout, row.members)
        assert row.trace.relative_error <= 0.02
        assert row.trace.method == "XTrace"
        low, high = row.trace.interval(0.9999)
        assert low <= block.trace() <= high
        assert float(row.eigenvalues[0]) == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-9)


def test_layerwise_takes_an_operator_and_its_products():
    case = cases.make("mlp_mse")
    problem = case.problem()
    seen = []
    with hessian(problem) as inner:
        operator = inner * 2.0
        twice = layerwise(problem, operator=operator, progress=seen.append)
        assert twice.products == operator.products == sum(row.products for row in twice)
    once = layerwise(problem)
    assert seen == list(twice)
    for a, b in zip(once, twice):
        assert float(b.trace.value) == pytest.approx(2 * float(a.trace.value), rel=1e-9)


def test_an_interrupted_survey_keeps_the_rows_done():
    layout, matrix = wide()
    rows = layer_blocks(from_dense(matrix), layout)
    first = next(rows)
    rows.close()
    assert first.name == "a"
    assert first.converged


@pytest.mark.parametrize("extra", [0, 60, 400])
def test_budget(extra):
    layout, matrix = wide()
    operator = from_dense(matrix)
    plan = LayerPlan(target=1e-4, max_products=80 + extra)
    table = LayerTable(tuple(layer_blocks(operator, layout, plan=plan)), operator.products)
    assert operator.products <= 80 + extra
    assert table.converged == (extra == 400)
    assert all(row.converged or row.unmet for row in table)


def test_what_a_layer_leaves_over_goes_to_those_after_it():
    layout = Layout(("tiny", "large.weight"), (torch.Size([2]), torch.Size([200])))
    operator = from_dense(torch.diag(torch.linspace(1, 2, 202, dtype=torch.float64)))
    rows = list(layer_blocks(operator, layout, plan=LayerPlan(target=1e-9, max_products=120)))
    assert rows[0].products < 10
    assert 100 < operator.products <= 120


def test_not_converged_carries_the_table():
    case = cases.make("attention")
    with pytest.raises(NotConverged, match="layers are not done") as caught:
        layerwise(case.problem(), target=1e-9, max_products=120)
    table = caught.value.result
    assert isinstance(table, LayerTable)
    assert len(table) == 3
    assert not table.converged
    again = layerwise(case.problem(), target=1e-9, max_products=120, strict=False)
    assert again.columns() == table.columns()


def test_seeds():
    layout, matrix = wide()

    def values(seed):
        rows = layer_blocks(from_dense(matrix), layout, plan=LayerPlan(target=None, seed=seed))
        return [float(row.trace.value) for row in rows]

    assert values(0) == values(0) != values(1)


def test_layers_have_streams_of_their_own():
    layout = Layout(("a.weight", "b.weight"), (torch.Size([200]), torch.Size([200])))
    _, matrix = wide(200)
    block = matrix[:200, :200]
    twice = torch.block_diag(block, block)
    a, b = layer_blocks(from_dense(twice), layout, plan=LayerPlan(target=None))
    assert float(a.trace.value) != float(b.trace.value)


def test_too_little_memory_takes_the_method_that_keeps_nothing(monkeypatch):
    layout, matrix = wide()
    monkeypatch.setattr("thalweg.spectra.layers.memory.available", lambda device: 1000)
    rows = list(layer_blocks(from_dense(matrix), layout, plan=LayerPlan(target=None)))
    assert {row.trace.method for row in rows} == {"Hutchinson"}


def test_nothing_of_the_model_is_changed(untouched):
    case = cases.make("cnn")
    problem = case.problem()
    with untouched(case.model):
        layerwise(problem, strict=False)


def test_bad_input():
    problem = cases.make("mlp_mse").problem()
    with pytest.raises(InvalidInput, match="matches no parameter"):
        layerwise(problem, layers={"none": "encoder.*"})
    with pytest.raises(InvalidInput, match="nothing to measure"):
        layerwise(problem, k=0)
    with pytest.raises(InvalidInput, match="nothing to measure"):
        layerwise(problem, layers={})
    with pytest.raises(InvalidInput, match="at least"):
        layerwise(problem, max_products=10)
    layout, matrix = wide()
    with pytest.raises(InvalidInput, match="at least 80"):  # before the first row is asked for
        layer_blocks(from_dense(matrix), layout, plan=LayerPlan(max_products=79))
    found = layerwise(problem)
    with pytest.raises(InvalidInput, match="no layer '7'"):
        found["7"]


def test_nan_products():
    layout, _ = wide()
    operator = from_function(lambda v: v * torch.nan, layout.size)
    with pytest.raises(NonFinite, match="not finite"):
        next(layer_blocks(operator, layout))


def test_table_is_readable():
    case = cases.make("mlp_mse")
    found = layerwise(case.problem(), k=3)
    text = repr(found)
    assert len(text.splitlines()) == len(found) + 2
    assert "largest eigenvalue" in text
    assert f"{float(found['0'].eigenvalues[0]):.5g}" in text
    assert f"{found.products:,} products" in text
    columns = found.columns()
    assert columns["parameters"] == [20, 12]
    assert [len(values) for values in columns["eigenvalues"]] == [3, 3]
    assert columns["unmet"] == ["", ""]
    figure = found.plot()
    assert len(figure.data) == 4, "three eigenvalues and the trace"
    assert list(figure.data[0].x) == ["0", "2"]
    assert figure.data[3].y[0] == float(found["0"].trace.value)


def test_fewer_parameters_than_eigenvalues():
    layout = Layout(("a", "b.weight"), (torch.Size([1]), torch.Size([3])))
    rows = list(layer_blocks(from_dense(torch.diag(torch.arange(1.0, 5.0))), layout, plan=LayerPlan(k=2)))
    assert [row.eigenvalues.tolist() for row in rows] == [[1.0], pytest.approx([4.0, 3.0], rel=1e-4)]
    assert rows[0].stop in (Stop.INVARIANT, Stop.CONVERGED)
    table = LayerTable(tuple(rows), 0)
    assert len(table.plot().data) == 3


def test_groups():
    names = ["h.0.attn.weight", "h.0.attn.bias", "h.0.mlp.weight", "h.1.attn.weight", "wte", "ln.weight"]
    assert list(layer_groups(names)) == ["h.0.attn", "h.0.mlp", "h.1.attn", "wte", "ln"]
    assert list(layer_groups(names, most=4)) == ["h.0", "h.1", "wte", "ln"]
    assert list(layer_groups(names, most=2)) == ["h", "wte", "ln"], "modules at the top are the coarsest"
    assert layer_groups([]) == {}
    assert sorted(name for group in layer_groups(names).values() for name in group) == sorted(names)


def test_names_are_not_taken_for_globs():
    layout = Layout(("a[0].weight", "a0.weight"), (torch.Size([2]), torch.Size([3])))
    rows = list(layer_blocks(from_dense(torch.eye(5)), layout))
    assert [(row.name, row.parameters) for row in rows] == [("a[0]", 2), ("a0", 3)]
