"""Problem: exact values and gradients whatever the split, nothing of the user's changed, bad input refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import cases
from reference import dense
from thalweg.errors import EmptyData, InvalidInput, NotDeterministic, NotDifferentiable
from thalweg.problem import Problem, batch_loss


def regression(n=8):
    return torch.randn(n, 3), torch.randn(n, 2)


@pytest.mark.parametrize("name", cases.CASES)
def test_value_and_gradient_against_the_plain_module(untouched, name):
    case = cases.make(name)
    with untouched(case.model):
        problem = case.problem()
        w = problem.initial
        value, gradient = problem.value_and_gradient(w)
        alone, also = problem.value(w), problem.gradient(w)
    assert value.shape == ()
    assert gradient.shape == (problem.dimension,)
    assert not value.requires_grad
    assert not gradient.requires_grad
    expected = dense.value(case.model, case.whole)
    assert abs(float(value - expected)) <= 1e-13 * abs(float(expected))
    assert float((value - alone).abs()) <= 1e-14
    assert torch.equal(gradient, also)
    reference = dense.gradient(case.model, case.whole)
    assert float((gradient - reference).norm()) <= 1e-13 * float(reference.norm())


@pytest.mark.parametrize("name", ["mlp_ce", "attention", "tied", "dict_batches", "ignored", "class_weights", "frozen"])
@given(sizes=st.integers(1, 9))
@settings(deadline=None, max_examples=6)
def test_batch_size_changes_nothing(name, sizes):
    case = cases.make(name)
    whole, split = case.problem(batch_size=None), case.problem(batch_size=sizes)
    w = whole.initial
    (a, g), (b, h) = whole.value_and_gradient(w), split.value_and_gradient(w)
    assert abs(float(a - b)) <= 1e-12 * abs(float(a))
    assert float((g - h).norm()) <= 1e-12 * float(g.norm())
    assert whole.samples == split.samples


@given(cut=st.lists(st.integers(1, 8), max_size=5, unique=True).map(sorted), order=st.permutations(range(9)))
@settings(deadline=None, max_examples=25)
def test_any_cut_and_any_order_give_the_same(cut, order):
    case = cases.make("ragged")
    x = torch.cat([b[0] for b in case.data])[list(order)]
    y = torch.cat([b[1] for b in case.data])[list(order)]
    batches = [(x[a:b], y[a:b]) for a, b in zip([0, *cut], [*cut, 9])]
    w = case.problem().initial
    value, gradient = Problem(case.model, case.loss, batches).value_and_gradient(w)
    expected, reference = case.problem().value_and_gradient(w)
    assert abs(float(value - expected)) <= 1e-12 * float(expected)
    assert float((gradient - reference).norm()) <= 1e-12 * float(reference.norm())


def test_other_points_than_the_models_own():
    case = cases.make("mlp_ce")
    problem = case.problem()
    w = torch.randn(problem.dimension, dtype=torch.float64)
    value, gradient = problem.value_and_gradient(w)
    problem.load(w)
    assert torch.equal(problem.initial, w)
    assert abs(float(value - dense.value(case.model, case.whole))) < 1e-13
    assert torch.allclose(gradient, dense.gradient(case.model, case.whole), atol=1e-14)


class Raises(nn.Module):
    """Fails in the middle of its forward, from the second batch of the third pass on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.armed = False

    def forward(self, x):
        hidden = self.net(x)
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        if self.armed:
            raise RuntimeError("in the middle")
        return hidden


class TestNothingIsChanged:
    def test_where_the_model_raises_midway(self, untouched):
        model = Raises()
        problem = Problem(model, nn.MSELoss(), regression())
        w = problem.initial
        model.armed = True
        for call in (problem.value, problem.gradient, problem.value_and_gradient):
            with untouched(model), pytest.raises(RuntimeError, match="in the middle"):
                call(w)
        with untouched(model), pytest.raises(InvalidInput, match="in the middle"):
            Problem(model, nn.MSELoss(), regression_once := (torch.ones(4, 3), torch.ones(4, 2)))
        assert regression_once[0].sum() == 12
        from thalweg.operators import hessian

        for layout in ("linearised", "double_backward", "forward_reverse", "difference"):
            with untouched(model), pytest.raises(Exception, match="in the middle"):
                hessian(problem, layout=layout).matvec(w)

    def test_existing_gradients_and_hooks_are_left_alone(self, untouched):
        case = cases.make("mlp_mse")
        case.whole(case.model).backward()
        called = []
        for parameter in case.model.parameters():
            parameter.register_hook(called.append)
        with untouched(case.model):
            problem = case.problem()
            problem.gradient(problem.initial)
        assert not called

    def test_running_statistics_in_training_mode(self, untouched):
        case = cases.make("batch_norm_train")
        with untouched(case.model):
            problem = case.problem()
            first = problem.value(problem.initial)
            assert torch.equal(problem.value(problem.initial), first)

    def test_w_and_data_are_only_read(self):
        x, y = regression()
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), (x, y))
        w = problem.initial
        before = [t.clone() for t in (x, y, w)]
        problem.value_and_gradient(w)
        assert all(torch.equal(a, b) for a, b in zip(before, (x, y, w)))
        assert not w.requires_grad

    def test_initial_is_fresh(self):
        model = nn.Linear(3, 2)
        problem = Problem(model, nn.MSELoss(), regression())
        kept = model.weight.detach().clone()
        problem.initial.zero_()
        assert torch.equal(model.weight, kept)

    def test_the_random_state_survives_a_model_that_draws(self, untouched):
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        problem = Problem(model, nn.MSELoss(), regression(), check=False)
        with untouched(model):
            problem.gradient(problem.initial)

    def test_surrounding_autocast_and_no_grad_do_not_matter(self):
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), regression())
        w = problem.initial
        expected = problem.value_and_gradient(w)
        with torch.autocast("cpu", torch.bfloat16):
            found = problem.value_and_gradient(w)
        with torch.no_grad():
            also = problem.value_and_gradient(w)
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(expected, found, also))

    def test_inference_mode_is_named_where_it_stops_the_gradient(self):
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), regression())
        with torch.inference_mode(), pytest.raises(NotDifferentiable, match="inference_mode"):
            problem.gradient(problem.initial)


class TestParameters:
    def test_patterns(self):
        case = cases.make("mlp_mse")
        full = dense.gradient(case.model, case.whole)
        for pattern in ("0.*", ["0.weight", "0.bias"], lambda name: name.startswith("0")):
            problem = case.problem(parameters=pattern)
            assert problem.layout.names == ("0.weight", "0.bias")
            assert torch.allclose(problem.gradient(problem.initial), full[:20], atol=1e-15)

    def test_a_tied_parameter_counts_once_under_any_of_its_names(self):
        case = cases.make("tied")
        by_first, by_second = case.problem(parameters="embed.*"), case.problem(parameters="head.*")
        assert by_first.dimension == by_second.dimension == 18
        gradients = [p.gradient(p.initial) for p in (by_first, by_second)]
        assert torch.equal(*gradients)
        assert torch.allclose(gradients[0], dense.gradient(case.model, case.whole)[:18], atol=1e-15)

    def test_tied_modules_and_tied_frozen_parameters(self):
        shared = nn.Linear(3, 3)
        model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(3, 2)).double()
        x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
        problem = Problem(model, nn.MSELoss(), (x, y))
        assert problem.dimension == 12 + 8
        reference = dense.gradient(model, lambda m: F.mse_loss(m(x), y))
        assert torch.allclose(problem.gradient(problem.initial), reference, atol=1e-15)
        assert isinstance(shared.weight, nn.Parameter), "torch's functional_call would have replaced it"
        for parameter in shared.parameters():
            parameter.requires_grad_(False)
        part = Problem(model, nn.MSELoss(), (x, y))
        assert torch.allclose(part.gradient(part.initial), reference[12:], atol=1e-15)

    def test_none_left(self):
        model = nn.Linear(3, 2)
        with pytest.raises(InvalidInput, match=r"No parameter matches.*weight, bias"):
            Problem(model, nn.MSELoss(), regression(), parameters="layer.*")
        with pytest.raises(InvalidInput, match="frozen"):
            Problem(model.requires_grad_(False), nn.MSELoss(), regression())
        with pytest.raises(InvalidInput, match="none at all"):
            Problem(nn.Identity(), nn.MSELoss(), regression())

    def test_lazy_modules_are_refused_until_they_have_seen_data(self):
        model = nn.LazyLinear(2)
        x, y = regression()
        with pytest.raises(InvalidInput, match="Call the model on one batch"):
            Problem(model, nn.MSELoss(), (x, y))
        model(x)
        assert Problem(model, nn.MSELoss(), (x, y)).dimension == 8

    def test_complex_parameters_are_refused_not_skipped(self):
        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.phase = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
                self.scale = nn.Parameter(torch.ones(2))

            def forward(self, x):
                return self.scale * (x.to(torch.complex64) @ self.phase).abs()

        with pytest.raises(InvalidInput, match="complex"):
            Problem(Complex(), nn.MSELoss(), regression())
        assert Problem(Complex(), nn.MSELoss(), regression(), parameters="scale").dimension == 2

    def test_recurrent_modules(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.body(x)[0][:, -1])

        model = Recurrent().double()
        x, y = torch.randn(5, 6, 3).double(), torch.randn(5, 2).double()
        problem = Problem(model, nn.MSELoss(), (x, y))
        reference = dense.gradient(model, lambda m: F.mse_loss(m(x), y))
        assert torch.allclose(problem.gradient(problem.initial), reference, atol=1e-15)

    def test_penalties_read_the_weights_at_w_or_are_refused(self):
        model, (x, y) = nn.Linear(3, 2), regression()
        taken = list(model.parameters())

        def penalised(parameters):
            return lambda out, y: F.mse_loss(out, y) + sum(p.pow(2).sum() for p in parameters())

        problem = Problem(model, penalised(model.parameters), (x, y))
        w = problem.initial
        step = torch.zeros_like(w)
        step[0] = 1.0
        assert float(problem.value(w + step) - Problem(model, nn.MSELoss(), (x, y)).value(w + step)) == pytest.approx(
            float((w + step).pow(2).sum()), rel=1e-4
        )
        with pytest.raises(InvalidInput, match="taken from it beforehand"):
            Problem(model, penalised(lambda: taken), (x, y))

    def test_parametrised_modules(self):
        model = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
        ).double()
        x, y = (t.double() for t in regression())
        model.eval()
        problem = Problem(model, nn.MSELoss(), (x, y))
        reference = dense.gradient(model, lambda m: F.mse_loss(m(x), y))
        assert torch.allclose(problem.gradient(problem.initial), reference, atol=1e-14)


class TestDtypes:
    def test_double_evaluation_of_a_single_model(self, untouched):
        case = cases.make("batch_norm_eval")
        expected = dense.gradient(case.model, case.whole)
        single = case.model.float()
        x, y = case.data
        with untouched(single):
            problem = Problem(single, case.loss, (x.float(), y), dtype=torch.float64)
            gradient = problem.gradient(problem.initial)
        assert problem.dtype == gradient.dtype == torch.float64
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6)
        back = single.double()
        again = dense.gradient(back, lambda m: case.loss(m(x.float().double()), y))
        assert torch.allclose(gradient, again, rtol=1e-13, atol=1e-14), "float64 all the way, not float32 cast up"

    def test_class_weights_are_cast_too(self):
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
        problem = Problem(nn.Linear(3, 3), loss, (torch.randn(6, 3), torch.arange(6) % 3), dtype=torch.float64)
        assert problem.gradient(problem.initial).dtype == torch.float64

    def test_mixed_parameters_meet_in_the_wider_type(self):
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.low, self.high = nn.Linear(3, 4).bfloat16(), nn.Linear(4, 2)

            def forward(self, x):
                return self.high(torch.tanh(self.low(x.bfloat16())).float())

        model, (x, y) = Mixed(), regression()
        problem = Problem(model, nn.MSELoss(), (x, y))
        assert problem.dtype == torch.float32
        reference = dense.flat(torch.autograd.grad(F.mse_loss(model(x), y), dense.chosen(model)), dense.chosen(model))
        assert torch.equal(problem.gradient(problem.initial), reference.float())
        assert model.low.weight.dtype == torch.bfloat16

    def test_a_whole_number_type_is_refused(self):
        with pytest.raises(InvalidInput, match="floating"):
            Problem(nn.Linear(3, 2), nn.MSELoss(), regression(), dtype=torch.int32)

    def test_a_mismatch_is_named(self):
        with pytest.raises(InvalidInput, match="do not fit together"):
            Problem(nn.Linear(3, 2).double(), nn.MSELoss(), regression())


class TestLosses:
    def test_model_losses_are_recognised_or_marked(self):
        x, y = regression()
        model = nn.Linear(3, 2)

        def by_name(model, batch):
            return F.mse_loss(model(batch[0]), batch[1]), len(batch[0])

        @batch_loss
        def marked(net, batch):
            return by_name(net, batch)

        plain = Problem(model, nn.MSELoss(), (x, y), batch_size=3)
        for loss in (by_name, marked, lambda model, batch: by_name(model, batch)):
            problem = Problem(model, loss, (x, y), batch_size=3)
            assert torch.allclose(problem.value(plain.initial), plain.value(plain.initial))

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), "returned a Tensor"),
            (lambda model, batch: (F.mse_loss(model(batch[0]), batch[1]), -1), "sample count -1"),
            (lambda model, batch: (F.mse_loss(model(batch[0]), batch[1]), float("nan")), "sample count nan"),
            (lambda model, batch: (F.mse_loss(model(batch[0]), batch[1]), float("inf")), "sample count inf"),
            (nn.MSELoss(reduction="none"), "reduction"),
            (nn.MSELoss(reduction="sum"), "reduction"),
            (lambda out, y: (out - y).pow(2), "shape"),
            (lambda out, y: (out - y).pow(2).mean().item(), "float"),
        ],
    )
    def test_losses_that_are_no_mean(self, loss, message):
        with pytest.raises(InvalidInput, match=message):
            Problem(nn.Linear(3, 2), loss, regression())

    @pytest.mark.parametrize("cut", [lambda out, y: (out - y).pow(2).mean().detach(), lambda out, y: y.mean()])
    def test_losses_without_history(self, cut):
        with pytest.raises(NotDifferentiable, match="does not depend"):
            Problem(nn.Linear(3, 2), cut, regression())

    def test_all_weight_gone(self):
        target = torch.full((8,), -100)
        with pytest.raises(EmptyData, match="no sample"):
            Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(8, 3), target))


class TestSubset:
    @pytest.mark.parametrize(
        "indices", [slice(2, 6), [2, 3, 4, 5], torch.tensor([2, 3, 4, 5]), range(2, 6), [-6, -5, 4, 5]]
    )
    @pytest.mark.parametrize("form", ["tensors", "dataset", "tensor_dataset"])
    def test_is_the_problem_on_these_samples(self, indices, form):
        x, y = regression(8)
        data = {"tensors": (x, y), "dataset": cases.Samples(x, y), "tensor_dataset": TensorDataset(x, y)}[form]
        model = nn.Linear(3, 2)
        problem = Problem(model, nn.MSELoss(), data, batch_size=3)
        part = problem.subset(indices)
        assert part.samples == 4
        assert part.model is model
        expected = F.mse_loss(model(x[2:6]), y[2:6])
        assert torch.allclose(part.value(part.initial), expected)
        assert problem.samples == 8
        assert torch.allclose(problem.value(problem.initial), F.mse_loss(model(x), y))

    def test_a_mask_is_a_mask(self):
        x, y = regression(8)
        mask = torch.tensor([False, False, True, True, True, False, False, True])
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), (x, y))
        part = problem.subset(mask)
        assert part.samples == 4
        assert torch.allclose(part.value(part.initial), F.mse_loss(problem.model(x[mask]), y[mask]))
        with pytest.raises(InvalidInput, match="mask"):
            problem.subset(mask[:5])

    @pytest.mark.parametrize(
        ("indices", "error"), [([], EmptyData), ([8], InvalidInput), ([-9], InvalidInput), ([0.5], InvalidInput)]
    )
    def test_indices_that_are_none(self, indices, error):
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), regression(8))
        with pytest.raises(error):
            problem.subset(indices)

    @pytest.mark.parametrize("indices", [[0], slice(0, 2)])
    def test_a_loader_cannot_be_indexed(self, indices):
        x, y = regression()
        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), [(x, y)])
        with pytest.raises(InvalidInput, match="loader"):
            problem.subset(indices)

    def test_of_tokens_with_padding(self):
        case = cases.make("ignored")
        part = case.problem().subset([0, 1, 4])
        x, y = (t[[0, 1, 4]] for t in case.data)
        assert torch.allclose(part.value(part.initial), dense.value(case.model, lambda m: case.loss(m(x), y)))


class TestBatches:
    def test_weights_sum_to_one(self):
        for name in cases.CASES:
            problem = cases.make(name).problem()
            assert abs(sum(weight for _, weight in problem.batches()) - 1) < 1e-12

    def test_loss_is_differentiable_in_the_leaves(self):
        problem = cases.make("mlp_ce").problem()
        leaves = [leaf.detach().clone().requires_grad_() for leaf in problem.layout.split(problem.initial)]
        total = sum(weight * problem.loss(leaves, batch) for batch, weight in problem.batches())
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, leaves)])
        assert torch.allclose(gradient, problem.gradient(problem.initial), atol=1e-15)

    def test_a_list_of_two_tensors_is_a_pair(self):
        x, y = regression()
        assert Problem(nn.Linear(3, 2), nn.MSELoss(), [x, y]).samples == 8

    def test_nested_inputs_and_targets(self):
        class TwoInputs(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 2)

            def forward(self, inputs):
                return {"a": self.linear(inputs["left"]) + inputs["right"]}

        x, y = regression()
        problem = Problem(
            TwoInputs(), lambda out, y: F.mse_loss(out["a"], y["y"]), ({"left": x, "right": y}, {"y": y}), batch_size=3
        )
        expected = F.mse_loss(problem.model({"left": x, "right": y})["a"], y)
        assert torch.allclose(problem.value(problem.initial), expected)

    def test_output_losses_need_pairs(self):
        x, y = regression()
        with pytest.raises(InvalidInput, match="not a pair"):
            Problem(nn.Linear(3, 2), nn.MSELoss(), (x, y, y))

    def test_a_loader_that_shrinks_later_is_noticed(self):
        class Shrinking:
            def __init__(self):
                self.passes = 0

            def __iter__(self):
                self.passes += 1
                x, y = torch.ones(2, 3), torch.ones(2, 2)
                yield from [(x, y)] * (3 if self.passes <= 2 else 2)

        import thalweg.problem.batches as batches

        problem = Problem(nn.Linear(3, 2), nn.MSELoss(), Shrinking(), check=False)
        problem.value(problem.initial)  # kept in memory: cannot shrink
        problem._batches = batches.LoaderBatches(Shrinking())
        problem._batches.loader.passes = 5
        with pytest.raises(NotDeterministic, match="2 batches where it gave 3"):
            problem.value(problem.initial)


class TestFingerprint:
    def test_same_thing_same_digest(self):
        a, b = cases.make("cnn").problem().fingerprint(), cases.make("cnn").problem().fingerprint()
        assert a == b
        assert set(a) == {"model", "data"}

    def test_one_changed_entry_changes_one_digest(self):
        case = cases.make("cnn")
        before = case.problem().fingerprint()
        case.model[0].bias.data[0] += 1e-12
        after = case.problem().fingerprint()
        assert after["model"] != before["model"]
        assert after["data"] == before["data"]
        case.data[0][0, 0, 0, 0] += 1e-12
        assert case.problem().fingerprint()["data"] != before["data"]


def test_load_writes_through_patterns_ties_and_types():
    model = nn.Linear(3, 2).bfloat16().requires_grad_(True)
    problem = Problem(
        model, nn.MSELoss(), tuple(t.bfloat16() for t in regression()), parameters="bias", dtype=torch.float32
    )
    weight = model.weight.detach().clone()
    problem.load(torch.tensor([1.0, 2.0]))
    assert model.bias.tolist() == [1.0, 2.0]
    assert torch.equal(model.weight, weight)
    tied = cases.make("tied")
    whole = tied.problem()
    whole.load(torch.arange(whole.dimension, dtype=torch.float64))
    assert tied.model.head.weight is tied.model.embed.weight


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(8, 1), torch.zeros(())])
def test_points_of_another_shape(wrong):
    problem = Problem(nn.Linear(3, 2), nn.MSELoss(), regression())
    for call in (problem.value, problem.gradient, problem.load):
        with pytest.raises(InvalidInput, match="shape"):
            call(wrong)


def test_loaders_and_datasets_agree(untouched):
    x, y = regression(10)
    model = nn.Linear(3, 2)
    expected = F.mse_loss(model(x), y).detach()
    dataset = TensorDataset(x, y)
    batches = list(DataLoader(dataset, batch_size=7))
    with untouched(model):
        problems = [
            Problem(model, nn.MSELoss(), DataLoader(dataset, batch_size=4)),
            Problem(model, nn.MSELoss(), DataLoader(dataset, batch_size=4, generator=torch.Generator())),
            Problem(model, nn.MSELoss(), Subset(dataset, range(10)), batch_size=3),
            Problem(model, nn.MSELoss(), dataset),
            Problem(model, nn.MSELoss(), batches),
        ]
        values = [problem.value(problem.initial) for problem in problems]
    assert all(torch.allclose(value, expected) for value in values)
    assert [problem.samples for problem in problems] == [10] * 5
