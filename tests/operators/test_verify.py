"""The doctor passes what is right, and each of its checks fails on a model made to fail it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import cases
from thalweg.errors import InvalidInput
from thalweg.operators import doctor, surroundings
from thalweg.operators.diagnosis import Check, Diagnosis, judged
from thalweg.problem import Problem

FUSED_NORMS = ("encoder_layer", "layer_norm", "batch_norm_train")


@pytest.mark.parametrize("name", cases.CASES)
def test_what_is_right_passes(untouched, name):
    case = cases.make(name)
    with untouched(case.model):
        problem = case.problem()
        diagnosis = doctor(problem)
    assert diagnosis.healthy
    wrong = {check.name: check.meaning for check in diagnosis if check.status in ("fail", "warn")}
    allowed = {"third derivative", "layouts"} if name in FUSED_NORMS else set()
    allowed |= {"batch split", "norms"} if name == "batch_norm_train" else set()
    assert set(wrong) <= allowed, wrong
    for order in ("first derivative", "second derivative"):
        assert diagnosis[order].value < 1e-7


@pytest.mark.parametrize("name", FUSED_NORMS)
def test_fused_norms_lose_third_derivatives_and_the_remedy_brings_them_back(name):
    check = doctor(cases.make(name).problem())["third derivative"]
    if check.status == "ok":
        pytest.skip("this torch has them right")
    assert check.status == "warn"
    assert check.value > 0.01
    assert "decomposed_norms(model): checked here" in check.remedy


class Wrapped(nn.Module):
    """A linear layer followed by a function."""

    def __init__(self, function, width=3):
        super().__init__()
        self.linear, self.function = nn.Linear(3, width), function

    def forward(self, x):
        return self.function(self.linear(x))


def examine(function, loss=None, **options):
    torch.manual_seed(1)
    model = Wrapped(function).double()
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    return doctor(Problem(model, loss or nn.MSELoss(), data, **options))


class WrongFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return 2.1 * ctx.saved_tensors[0] * grad


class WrongSecond(torch.autograd.Function):
    """Its first derivative is right; its second is hidden."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0].detach() * grad


class WrongThird(torch.autograd.Function):
    """A cube whose backward goes through a square that hides its second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(3)

    @staticmethod
    def backward(ctx, grad):
        return 3 * WrongSecond.apply(ctx.saved_tensors[0]) * grad


class Lopsided(torch.autograd.Function):
    """``a b`` whose mixed second derivative is there from one side only."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return b.detach() * grad, a * grad


class Bent(torch.autograd.Function):
    """The identity, whose backward takes a size."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.abs()


class BentSecond(torch.autograd.Function):
    """A square whose double backward is not linear."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return 2 * Bent.apply(ctx.saved_tensors[0]) * grad


class WrongForwardMode(torch.autograd.Function):
    """Right in reverse, wrong in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] * tangent


def product(x):
    return Lopsided.apply(x[:, :1], x[:, 1:2]) + 0 * x


class TestEachCheckCanFail:
    def test_determinism(self):
        diagnosis = examine(nn.Dropout(0.5), check=False)
        assert diagnosis["determinism"].status == "fail"
        assert "ropout" in diagnosis["determinism"].meaning

    def test_finite(self):
        diagnosis = examine(lambda x: x / 0)
        assert diagnosis["finite"].status == "fail"
        assert diagnosis["second derivative"].status == "skipped"
        assert not diagnosis.healthy

    def test_duplicates(self):
        diagnosis = examine(torch.tanh, loss=lambda out, y: (out - y).square().sum())
        assert diagnosis["duplicates"].status == "fail"
        assert diagnosis["duplicates"].value == pytest.approx(0.5)

    def test_batch_split(self):
        model = nn.Linear(3, 4).double()
        x, y = torch.randn(8, 3).double(), torch.tensor([0, 1, 2, -1, -1, -1, 3, -1])
        hidden = Problem(model, lambda out, t: F.cross_entropy(out, t, ignore_index=-1), (x, y))
        check = doctor(hidden)["batch split"]
        assert check.status == "fail"
        assert "count" in check.remedy
        known = Problem(model, nn.CrossEntropyLoss(ignore_index=-1), (x, y))
        assert doctor(known)["batch split"].status == "ok"

    def test_batch_split_warns_of_batch_statistics(self):
        check = doctor(cases.make("batch_norm_train").problem())["batch split"]
        assert check.status == "warn"
        assert "model.eval()" in check.remedy

    def test_first_derivative(self):
        diagnosis = examine(WrongFirst.apply)
        assert diagnosis["first derivative"].status == "fail"
        assert 0.01 < diagnosis["first derivative"].value < 0.1

    def test_second_derivative(self):
        diagnosis = examine(WrongSecond.apply)
        assert diagnosis["first derivative"].status == "ok"
        assert diagnosis["second derivative"].status == "fail"

    def test_missing_second_derivative(self):
        class Once(torch.autograd.Function):
            forward = WrongSecond.forward

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, grad):
                return 2 * ctx.saved_tensors[0] * grad

        diagnosis = examine(Once.apply)
        assert diagnosis["first derivative"].status == "ok"
        assert diagnosis["second derivative"].status == "fail"
        assert 'layout="difference"' in diagnosis["second derivative"].meaning

    def test_third_derivative(self):
        diagnosis = examine(WrongThird.apply)
        assert diagnosis["second derivative"].status == "ok"
        assert diagnosis["third derivative"].status == "fail"

    def test_symmetry(self):
        diagnosis = examine(product)
        assert diagnosis["first derivative"].status == "ok"
        assert diagnosis["symmetry"].status == "fail"
        assert diagnosis["linearity"].status == "ok"

    def test_linearity(self):
        diagnosis = examine(BentSecond.apply)
        assert diagnosis["linearity"].status == "fail"

    def test_layouts(self):
        diagnosis = examine(WrongForwardMode.apply, loss=lambda out, y: (out - y).square().sum(1).mean())
        assert diagnosis["second derivative"].status == "ok"
        assert diagnosis["layouts"].status == "fail"

    def test_layouts_that_one_cannot_take(self):
        class NoForwardMode(torch.autograd.Function):
            forward = WrongFirst.forward

            @staticmethod
            def backward(ctx, grad):
                return 2 * ctx.saved_tensors[0] * grad

        diagnosis = examine(NoForwardMode.apply)
        assert diagnosis["layouts"].status == "warn"
        assert "forward_reverse" in diagnosis["layouts"].meaning
        assert diagnosis.healthy

    def test_precision(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
        data = torch.randn(6, 3).bfloat16(), torch.randn(6, 2).bfloat16()
        diagnosis = doctor(Problem(model, nn.MSELoss(), data))
        assert diagnosis["precision"].status == "warn"
        assert diagnosis["second derivative"].status == "ok", "the formulas are right; only the numbers are coarse"
        single = doctor(Problem(model.float(), nn.MSELoss(), tuple(t.float() for t in data)))
        assert single["precision"].status == "ok"
        assert 1e-9 < single["precision"].value < 1e-5

    def test_attention(self):
        def forced(x):
            q = x.reshape(1, 1, len(x), -1)
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, q, q).reshape(x.shape)

        diagnosis = examine(forced)
        assert diagnosis["attention"].status == "fail"
        assert "eager" in diagnosis["attention"].remedy
        assert diagnosis["second derivative"].status == "fail"

    def test_attention_that_is_left_to_torch(self):
        def free(x):
            q = x.reshape(1, 1, len(x), -1)
            return F.scaled_dot_product_attention(q, q, q).reshape(x.shape)

        check = examine(free)["attention"]
        assert check.status == "ok"
        assert "math kernel" in check.meaning

    def test_norms(self):
        assert doctor(cases.make("batch_norm_train").problem())["norms"].status == "warn"
        check = doctor(cases.make("batch_norm_eval").problem())["norms"]
        assert (check.status, check.meaning) == ("ok", "1 BatchNorm1d")

    @pytest.mark.parametrize(
        ("torch_version", "vision_version", "status"),
        [
            ("2.13.0+cpu", "0.28.0+cpu", "ok"),
            ("2.13.0", "0.28.1", "ok"),
            ("2.13.0+cpu", "0.28.0", "ok"),
            ("2.6.0", "0.21.0", "ok"),
            ("2.13.0+cpu", "0.27.0+cpu", "fail"),
            ("2.13.0+cpu", "0.28.0+cu130", "fail"),
            ("2.6.0", "0.28.0", "fail"),
            ("3.0.0", "0.28.0", "skipped"),
            ("nightly", "0.28.0", "skipped"),
        ],
    )
    def test_torchvision(self, torch_version, vision_version, status):
        assert surroundings.torchvision(torch_version, vision_version).status == status


class TestKinks:
    def test_a_kink_within_the_long_step_is_a_warning(self):
        model = nn.Linear(1, 1, bias=False).double()
        model.weight.data.fill_(1.0)
        one = torch.ones(2, 1, dtype=torch.float64)

        def loss(out, y):
            return (out.square() + 10 * F.relu(out - 1 - 1e-6)).mean()

        check = doctor(Problem(model, loss, (one, one)))["second derivative"]
        assert check.status == "warn"
        assert "kinks" in check.meaning

    def test_a_relu_network_is_healthy(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2)).double()
        diagnosis = doctor(Problem(model, nn.MSELoss(), (torch.randn(50, 3).double(), torch.randn(50, 2).double())))
        assert diagnosis.healthy


def test_a_quadratic_loss_has_a_vanishing_third_derivative():
    diagnosis = examine(lambda x: x)
    assert diagnosis["third derivative"].status == "ok"
    assert diagnosis.healthy


def test_a_model_that_cannot_be_cast_is_examined_in_its_own_dtype():
    diagnosis = doctor(
        Problem(Wrapped(lambda x: torch.tanh(x @ torch.eye(3))), nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 3)))
    )
    assert "compared in float32" in diagnosis.summary
    assert diagnosis.healthy
    assert diagnosis["second derivative"].status == "ok"


def test_directions_come_from_the_seed():
    problem = cases.make("mlp_mse").problem()
    values = [doctor(problem, seed=seed)["second derivative"].value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_a_diagnosis_is_asked_by_name():
    diagnosis = Diagnosis(
        (judged("a", 1.0, 2.0, "good", "bad", "do"), judged("b", float("nan"), 1, "", "bad", "do")), ""
    )
    assert diagnosis["a"] == Check("a", "ok", 1.0, 2.0, "good")
    assert diagnosis["b"].status == "fail"
    assert not diagnosis.healthy
    assert [check.name for check in diagnosis] == ["a", "b"]
    with pytest.raises(InvalidInput, match="Choose among: a, b"):
        diagnosis["c"]
