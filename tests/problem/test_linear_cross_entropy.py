"""The chunked head against plain cross-entropy: value, both derivatives in both modes, and what it allocates."""

import json
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from thalweg.errors import InvalidInput, NotDifferentiable
from thalweg.problem.linear_cross_entropy import linear_cross_entropy

TARGET = torch.tensor([0, 6, -100, 2, 2])


def tensors(dtype=torch.float64, tokens=5, width=3, vocabulary=7):
    shapes = (tokens, width), (vocabulary, width), (vocabulary,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 99, None])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_are_those_of_torch(chunk, reduction):
    hidden, weight, bias = tensors()
    for b in (bias, None):
        ours = linear_cross_entropy(hidden, weight, TARGET, bias=b, chunk=chunk, reduction=reduction)
        theirs = F.cross_entropy(F.linear(hidden, weight, b), TARGET, reduction=reduction)
        assert torch.allclose(ours, theirs, atol=1e-14)
        inputs = [t for t in (hidden, weight, b) if t is not None]
        weights = torch.randn_like(ours)
        for mine, other in zip(
            torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights)
        ):
            assert torch.allclose(mine, other, atol=1e-14)


@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("which", ["all", "no bias", "weight only", "hidden only", "bias only"])
def test_two_derivatives_in_both_modes(chunk, reduction, which):
    hidden, weight, bias = tensors()
    fixed = [t.detach() for t in (hidden, weight, bias)]
    functions = {
        "all": (lambda h, w, b: (h, w, b), (hidden, weight, bias)),
        "no bias": (lambda h, w: (h, w, None), (hidden, weight)),
        "weight only": (lambda w: (fixed[0], w, fixed[2]), (weight,)),
        "hidden only": (lambda h: (h, fixed[1], None), (hidden,)),
        "bias only": (lambda b: (fixed[0], fixed[1], b), (bias,)),
    }
    place, inputs = functions[which]

    def loss(*free):
        h, w, b = place(*free)
        return linear_cross_entropy(h, w, TARGET, bias=b, chunk=chunk, reduction=reduction)

    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs, check_fwd_over_rev=True)


def test_a_weight_that_the_body_uses_too():
    _, weight, _ = tensors()
    tokens = torch.tensor([3, 1, 0, 5, 5])

    def loss(weight, head):
        return head(torch.tanh(F.embedding(tokens, weight)), weight)

    def ours(w):
        return loss(w, lambda h, w: linear_cross_entropy(h, w, TARGET, chunk=2))

    def plain(w):
        return loss(w, lambda h, w: F.cross_entropy(h @ w.T, TARGET))

    w = weight.detach()
    mine, theirs = (torch.autograd.functional.hessian(f, w) for f in (ours, plain))
    assert torch.allclose(mine, theirs, atol=1e-14)
    assert torch.allclose(torch.func.hessian(ours)(w), theirs, atol=1e-14)


def test_batched_backward_gives_the_same_rows():
    hidden, weight, bias = tensors()
    loss = linear_cross_entropy(hidden, weight, TARGET, bias=bias, chunk=2)
    grads = torch.autograd.grad(loss, (hidden, weight, bias), create_graph=True)
    rows = [torch.randn(4, *g.shape, dtype=g.dtype) for g in grads]
    together = torch.autograd.grad(grads, (hidden, weight, bias), rows, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        one = torch.autograd.grad(grads, (hidden, weight, bias), [r[i] for r in rows], retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(together, one))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_other_precisions(dtype, tolerance):
    hidden, weight, bias = tensors(dtype)
    ours = linear_cross_entropy(hidden, weight, TARGET, bias=bias, chunk=2)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    right = F.cross_entropy(F.linear(*exact), TARGET)
    assert abs(float(ours - right)) < tolerance
    grads = torch.autograd.grad(ours, (hidden, weight, bias))
    for g, r in zip(grads, torch.autograd.grad(right, exact)):
        assert g.dtype == dtype
        assert float((g.double() - r).norm()) < tolerance * float(r.norm())


def test_large_logits_do_not_overflow():
    hidden, weight, _ = tensors(torch.float32)
    hidden, weight = 1e3 * hidden.detach(), 10 * weight.detach()
    ours = linear_cross_entropy(hidden, weight, TARGET, chunk=2)
    assert torch.isfinite(ours)
    assert torch.allclose(ours, F.cross_entropy(hidden @ weight.T, TARGET), rtol=1e-5)


def test_nothing_that_counts():
    hidden, weight, _ = tensors()
    nothing = torch.full_like(TARGET, -100)
    assert torch.isnan(linear_cross_entropy(hidden, weight, nothing))
    total = linear_cross_entropy(hidden, weight, nothing, reduction="sum")
    assert float(total) == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(total, (hidden, weight)))


def test_what_is_ignored_may_be_anything():
    hidden, weight, _ = tensors()
    spoiled = hidden.detach().clone()
    spoiled[2] = float("nan")
    assert torch.isfinite(linear_cross_entropy(spoiled, weight, TARGET))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": torch.tensor([0, 7, 1, 1, 1])}, "7 classes"),
        ({"target": torch.tensor([0, -1, 1, 1, 1])}, "7 classes"),
        ({"target": TARGET[:3]}, "Flatten"),
        ({"hidden": torch.zeros(5, 4)}, "Flatten"),
        ({"bias": torch.zeros(3)}, "Flatten"),
        ({"chunk": 0}, "at least one"),
        ({"reduction": "median"}, "Choose"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    given = {"hidden": torch.zeros(5, 3), "weight": torch.zeros(7, 3), "target": TARGET} | change
    with pytest.raises(InvalidInput, match=words):
        linear_cross_entropy(**given)


def test_a_third_derivative_is_refused_in_both_modes():
    hidden, weight, _ = tensors()

    def loss(w):
        return linear_cross_entropy(hidden.detach(), w, TARGET)

    (first,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
    with pytest.raises(NotDifferentiable, match="third derivative"):
        torch.autograd.grad(second.sum(), weight)
    w = weight.detach()
    with pytest.raises(NotDifferentiable, match="third derivative"):
        torch.func.jvp(torch.func.grad(lambda w: torch.func.grad(loss)(w).square().sum()), (w,), (w,))


def allocated(folder, job):
    """Bytes that ``job`` holds at its peak beyond what it began with, and the largest single allocation.

    Read from the allocator itself: a profiler's memory events show what kernels take for themselves, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            job()
        profiler.export_chrome_trace(str(folder / "trace.json"))
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda e: e["ts"])
    sizes = [e["args"]["Bytes"] for e in events]
    assert sizes, "the profiler saw no allocation"
    live = torch.tensor(sizes).cumsum(0)
    return int(live.max()), max(sizes)


def test_the_count_of_allocations_counts(tmp_path):
    peak, largest = allocated(tmp_path, lambda: torch.zeros(1000, 100) + torch.zeros(1000, 100))
    assert largest == 400_000
    assert peak == 1_200_000


@pytest.mark.parametrize("stage", ["value", "gradient", "product"])
def test_never_more_than_two_blocks(tmp_path, stage):
    tokens, width, vocabulary, chunk = 64, 2, 20_000, 8
    hidden, weight, bias = tensors(torch.float32, tokens, width, vocabulary)
    target = torch.randint(vocabulary, (tokens,))
    inputs = (hidden, weight, bias)
    block, outputs = 4 * chunk * vocabulary, 4 * sum(t.numel() for t in inputs)

    def loss():
        return linear_cross_entropy(hidden, weight, target, bias=bias, chunk=chunk)

    value = loss()
    grads = torch.autograd.grad(value, inputs, create_graph=True)
    directions = [torch.randn_like(t) for t in inputs]
    jobs = {
        "value": lambda: loss().detach(),
        "gradient": lambda: torch.autograd.grad(value, inputs, retain_graph=True),
        "product": lambda: torch.autograd.grad(grads, inputs, directions, retain_graph=True),
    }
    limit = {"value": block, "gradient": block + outputs, "product": 2 * block + outputs}
    jobs[stage]()
    peak, largest = allocated(tmp_path, jobs[stage])
    assert largest == block
    assert limit[stage] - outputs <= peak <= limit[stage] + block // 4, (peak / block, outputs / block)
