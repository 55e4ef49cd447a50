"""A plan's bytes are those that the job then holds, its cuts fit the budget, and what cannot fit says so."""

import re

import pytest
import torch
from torch import nn

from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.operators import hessian
from thalweg.problem import Problem, holdings
from thalweg.problem.heads import LanguageModelLoss, language_model_loss
from thalweg.problem.live import LiveBytes
from thalweg.problem.units import duration, size
from thalweg.spectra import krylov
from thalweg.spectra.critical import critical_sharpness
from thalweg.spectra.density import spectral_density
from thalweg.spectra.lanczos import Lanczos, top_eigenpairs

ROOM = 10**9
JOBS = ("value", "gradient", "product", "eigenpairs", "density", "critical_sharpness")
CURVED = ("product", "eigenpairs", "density")
LAYOUTS = ("linearised", "double_backward")


def mlp(samples=400, width=40, dtype=torch.float32, **options):
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 5))
    data = torch.randn(samples, 20, dtype=dtype), torch.randint(5, (samples,))
    return Problem(model.to(dtype), nn.CrossEntropyLoss(), data, **options)


def cnn(samples=24, width=8):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(128 * width, 10)]
    data = torch.randn(samples, 3, 16, 16), torch.randint(10, (samples,))
    return Problem(nn.Sequential(*layers), nn.CrossEntropyLoss(), data)


def gpt2(samples=4, tokens=32, width=16, vocabulary=2003, chunk=None):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=width, n_head=2, n_positions=tokens, attn_implementation="eager",
        vocab_size=vocabulary, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    ids = torch.randint(vocabulary, (samples, tokens))
    model = transformers.GPT2LMHeadModel(config).eval()
    return Problem(model, language_model_loss(chunk), {"input_ids": ids}, batch_size=samples)


def large_gpt2():
    return gpt2(4, 64, 32, 50_257)


def do(plan, k=1):
    """The job as planned, by what a user would call."""
    problem = plan.apply()
    if plan.job == "critical_sharpness":
        return critical_sharpness(problem, strict=False)
    if plan.job in ("value", "gradient"):
        return getattr(problem, plan.job)(problem.initial)
    operator = hessian(problem, layout=plan.layout)
    if plan.job == "product":
        return operator.matvec(torch.ones(problem.dimension, dtype=problem.dtype))
    if plan.job == "density":
        return spectral_density(operator, probes=2, steps=plan.basis)
    enough = 90 if problem.dimension < 10**5 else 12  # a restart or two; more of them hold no more
    return top_eigenpairs(operator, k, method=Lanczos(tol=1e-3, basis=plan.basis, max_products=enough), strict=False)


def held(plan, k=1):
    with LiveBytes() as live:
        do(plan, k)
    return live.peak / plan.peak_bytes


class TestPrediction:
    """The project's promise is 20 per cent; what is counted leaves no reason for more than 1."""

    @pytest.mark.parametrize("job", JOBS)
    def test_every_job_holds_what_was_predicted(self, job):
        plan = mlp().plan(job, budget=ROOM)
        assert held(plan) == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_eigenpairs_in_small_batches_and_a_short_basis(self, layout, dtype):
        """The basis restarts, which holds a piece of the new one beside the old."""
        plan = mlp(dtype=dtype).plan("eigenpairs", budget=ROOM, layout=layout, basis=7)
        assert held(plan) == pytest.approx(1.0, abs=0.01)

    def test_several_eigenpairs_with_a_look_for_copies(self):
        plan = mlp().plan("eigenpairs", k=3, budget=ROOM)
        assert held(plan, 3) == pytest.approx(1.0, abs=0.01)

    def test_language_model(self):
        plan = gpt2().plan("product", budget=ROOM)
        assert held(plan) == pytest.approx(1.0, abs=0.01)

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("job", CURVED)
    @pytest.mark.parametrize("build", [cnn, gpt2, large_gpt2])
    def test_curvature_of_every_model(self, build, job, layout):
        basis = None if job == "product" else 6
        plan = build().plan(job, budget=ROOM, layout=layout, basis=basis)
        assert held(plan) == pytest.approx(1.0, abs=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("job", [job for job in JOBS if job not in CURVED])
    @pytest.mark.parametrize("build", [cnn, gpt2, large_gpt2])
    def test_value_and_gradient_of_every_model(self, build, job):
        assert held(build().plan(job, budget=ROOM)) == pytest.approx(1.0, abs=0.02)

    def test_restarts_combine_as_many_columns_as_the_plan_says(self):
        assert holdings.COLUMNS == krylov.COLUMNS


class TestCutting:
    @pytest.mark.parametrize("job", JOBS)
    def test_a_tight_budget_is_kept(self, job):
        problem = mlp(40)
        needed = least(problem, job)
        plan = problem.plan(job, budget=needed)
        assert plan.peak_bytes <= needed
        assert plan.batch_size < 10
        assert 0.97 < held(plan) <= 1.01  # the values of all batches count from the beginning

    def test_more_room_means_larger_batches_then_a_kept_graph(self):
        problem = mlp(2000)
        needed = least(problem, "eigenpairs")
        plans = [problem.plan("eigenpairs", budget=budget) for budget in (needed, 2 * needed, 100 * needed)]
        sizes = [plan.batch_size for plan in plans]
        assert sizes[0] < sizes[1]
        assert (plans[0].layout, plans[-1].layout) == ("double_backward", "linearised")
        assert plans[0].basis < plans[-1].basis == 33

    def test_batches_are_about_equally_long(self):
        plan = mlp(1001).plan("gradient", budget=3 * least(mlp(1001), "gradient"))
        sizes = [len(x) for (x, _), _ in plan.apply().batches()]
        assert len(sizes) > 1
        assert max(sizes) - min(sizes) < len(sizes)
        assert max(sizes) == plan.batch_size

    def test_a_basis_is_never_longer_than_a_vector(self):
        model = nn.Linear(3, 1, bias=False)
        problem = Problem(model, nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 1)))
        plan = problem.plan("eigenpairs", budget=ROOM)
        assert plan.basis == 3
        assert do(plan).stop.converged

    def test_a_language_model_gets_a_chunk_within_the_budget(self):
        problem = gpt2(chunk=None)
        row = 2003 * 4
        plan = problem.plan("product", budget=max(least(problem, "product"), 30 * 16 * row))
        assert plan.chunk == plan.budget // (16 * row)
        applied = plan.apply()._function.loss
        assert applied.chunk == plan.chunk
        assert isinstance(applied, LanguageModelLoss)
        assert problem.model in applied._compared  # the comparison with the model's own loss is not made again

    def test_a_chunk_that_was_asked_for_stays(self):
        assert gpt2(chunk=17).plan("value", budget=ROOM).chunk == 17

    def test_a_loader_is_not_cut(self):
        x, y = torch.randn(40, 20), torch.randint(5, (40,))
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
        problem = Problem(model, nn.CrossEntropyLoss(), [(x[:10], y[:10]), (x[10:], y[10:])])
        plan = problem.plan("product", budget=ROOM)
        assert plan.batch_size is None
        assert plan.apply() is problem
        assert 0.8 < held(plan) <= 1.01  # both kept graphs are counted as large as the larger one

    def test_batches_that_hold_more_than_rows_are_taken_whole(self):
        def loss(model, batch):
            return (model(batch["x"]) * batch["scale"]).square().mean(), len(batch["x"])

        batches = [{"x": torch.randn(n, 20), "scale": torch.tensor(2.0)} for n in (7, 30)]
        plan = Problem(nn.Linear(20, 9), loss, batches).plan("gradient", budget=ROOM)
        assert plan.batch_size is None
        assert held(plan) == pytest.approx(1.0, abs=0.01)

    def test_batch_norm_in_train_mode_is_not_cut(self):
        model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))
        problem = Problem(model, nn.CrossEntropyLoss(), (torch.randn(60, 20), torch.randint(5, (60,))))
        plan = problem.plan("gradient", budget=ROOM)
        assert plan.batch_size is None
        assert plan.apply().batch_count == 1
        assert held(plan) == pytest.approx(1.0, abs=0.01)


class TestApply:
    @pytest.mark.parametrize("job", ["gradient", "product"])
    def test_the_answer_is_the_same(self, job):
        problem = mlp(300, dtype=torch.float64)
        plan = problem.plan(job, budget=least(problem, job))
        assert plan.apply().batch_count == 300
        whole = do(problem.plan(job, budget=ROOM))
        assert torch.allclose(do(plan), whole, rtol=1e-10, atol=1e-14)

    def test_planning_changes_nothing(self):
        problem = mlp()
        before, state, batches = problem.initial, torch.get_rng_state(), problem.batch_count
        problem.plan("eigenpairs", budget=ROOM).apply()
        assert torch.equal(problem.initial, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert problem.batch_count == batches
        assert all(p.grad is None for p in problem.model.parameters())


class TestWords:
    def test_parts_add_up_and_are_shown(self):
        plan = mlp().plan("eigenpairs", k=2, budget=ROOM)
        assert sum(part.bytes for part in plan.parts) == plan.peak_bytes
        text = repr(plan)
        assert text.startswith(f"Plan(eigenpairs: {size(plan.peak_bytes)} of 1 GB allowed, about ")
        for part in plan.parts:
            assert re.search(rf"^  {part.name} +{re.escape(size(part.bytes))}  ", text, flags=re.MULTILINE)
        for setting in (f"batch_size={plan.batch_size}", f"layout='{plan.layout}'", f"basis={plan.basis}"):
            assert setting in text
        assert plan.present_bytes == 4 * mlp().dimension + 400 * (20 * 4 + 8)
        assert f"there before  {size(plan.present_bytes):>9}" in re.sub(" +there", "there", text).replace("  +", " ")

    def test_it_says_where_probes_could_not_confirm(self):
        assert "Too few samples for a third probe" in repr(mlp(2).plan("value", budget=ROOM))
        assert "Too few" not in repr(mlp(400).plan("value", budget=ROOM))

    def test_the_figure_stacks_the_parts_under_the_budget(self):
        plan = mlp().plan("product", budget=ROOM)
        figure = plan.plot()
        assert sum(bar.y[0] for bar in figure.data) == pytest.approx(plan.peak_bytes / 1e6)
        assert figure.layout.shapes[0].y0 == plan.budget / 1e6

    def test_the_default_budget_is_half_of_what_is_free(self, monkeypatch):
        monkeypatch.setattr("thalweg.problem.memory.available", lambda device: 2 * 10**8)
        assert mlp().plan("value").budget == 10**8

    def test_seconds_grow_with_products(self):
        problem = mlp()
        few, many = (problem.plan("product", budget=ROOM, products=n) for n in (1, 1000))
        assert (few.products, many.products) == (1, 1000)
        assert many.seconds > 10 * few.seconds

    @pytest.mark.parametrize(
        ("number", "text"),
        [(999, "999 B"), (1500, "1.5 kB"), (2_340_000, "2.34 MB"), (3 * 10**9, "3 GB"), (5 * 10**12, "5,000 GB")],
    )
    def test_sizes(self, number, text):
        assert size(number) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.25, "250 ms"), (9.5, "9.5 s"), (60, "60 s"), (600, "10 min"), (9000, "2.5 h")]
    )
    def test_durations(self, seconds, text):
        assert duration(seconds) == text


class TestRefusals:
    def test_too_small_a_budget_says_by_how_much_and_what_to_do(self):
        problem = mlp()
        needed = least(problem, "eigenpairs")
        with pytest.raises(InvalidInput, match="too small for eigenpairs with one sample at a time") as caught:
            problem.plan("eigenpairs", budget=needed - 5000)
        text = str(caught.value)
        assert f"needs {size(needed)}, 5 kB more: point " in text
        assert f"Allow budget={needed} or more, or choose fewer parameters" in text
        problem.plan("eigenpairs", budget=needed)

    @pytest.mark.parametrize(
        ("options", "way"),
        [
            ({"layout": "linearised"}, 'take layout="auto"'),
            ({"basis": 60}, "leave basis=None"),
        ],
    )
    def test_what_was_asked_for_can_be_given_up(self, options, way):
        problem = mlp(64)
        with pytest.raises(InvalidInput, match=way):
            problem.plan("eigenpairs", budget=least(problem, "eigenpairs"), **options)

    def test_batches_of_a_loader_and_float64_can_be_given_up(self):
        data = [(torch.randn(40, 20).double(), torch.randint(5, (40,)))]
        problem = Problem(nn.Linear(20, 5).double(), nn.CrossEntropyLoss(), data)
        with pytest.raises(InvalidInput, match="give the data in smaller batches, or work in float32") as caught:
            problem.plan("gradient", budget=1)
        assert "with batches of 40" in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"job": "eigenvalues"}, "job='eigenvalues'"),
            ({"layout": "difference"}, "layout='difference'"),
            ({"k": 0}, "k=0"),
            ({"budget": 0}, "budget=0"),
            ({"basis": -1, "products": 0}, "basis=-1, products=0"),
        ],
    )
    def test_bad_input(self, options, found):
        with pytest.raises(InvalidInput, match=re.escape(found)):
            mlp(4).plan(**options)

    def test_a_loss_without_second_derivative(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                return x * 2

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(context, slope):
                return slope * 2

        def loss(z, y):
            return (Once.apply(z) - y).square().mean()

        problem = Problem(nn.Linear(3, 1), loss, (torch.randn(5, 3), torch.randn(5, 1)))
        with pytest.raises(NotDifferentiable):
            problem.plan("product", budget=ROOM)
        assert problem.plan("gradient", budget=ROOM).layout is None


def least(problem, job):
    """The smallest budget, as the refusal of a smaller one says."""
    with pytest.raises(InvalidInput) as caught:
        problem.plan(job, budget=1)
    return int(re.search(r"budget=(\d+) or more", str(caught.value))[1])
