"""How many vectors a forecast holds while times wait for the look that accepts them."""

import pytest
import torch
from toys import digits, valley

from thalweg.flows.central import CentralMap
from thalweg.flows.forecast import central_flow
from thalweg.flows.registry import law_of
from thalweg.flows.settings import Settings
from thalweg.rules import GradientDescent, RMSProp


def storages(root, least, seen=None):
    """Sizes of the storages of at least so many numbers that a flow, its frames and its blocks refer to."""
    seen = {} if seen is None else seen
    if id(root) in seen:
        return {}
    seen[id(root)] = root
    if isinstance(root, torch.Tensor):
        storage = root.untyped_storage()
        count = storage.nbytes() // root.element_size()
        return {storage.data_ptr(): count} if count >= least else {}
    if isinstance(root, dict):
        parts = list(root.values())
    elif isinstance(root, list | tuple):
        parts = root
    elif type(root).__module__.startswith("thalweg.flows"):
        parts = list(vars(root).values())
    else:  # problem, eigensolver and the like
        return {}
    return {key: size for part in parts for key, size in storages(part, least, seen).items()}


def vectors(flow):
    return sum(storages(flow, flow.w.numel()).values()) / flow.w.numel()


def new(problem, rule, replay, warm=0):
    w, state = problem.initial, rule.init(problem.initial)
    for _ in range(warm):
        w, state = rule.advance(w, state, problem.gradient(w))
    return CentralMap(problem, law_of(rule), w, state, Settings(replay=replay))


@pytest.mark.parametrize(
    ("rule", "warm", "time"),
    [
        (GradientDescent(lr=0.2), 0, 100),
        (RMSProp(lr=5e-4, bias_correction=True), 10, 110),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_replayed_flow_has_the_same_bits_and_nothing_waits(rule, warm, time):
    problem = digits(samples=60)
    kept, again = new(problem, rule, False, warm), new(problem, rule, True, warm)
    most, counts = {}, set()
    for _ in range(time):
        one, other = kept.step(), again.step()
        assert torch.equal(one.w, other.w)
        assert torch.equal(one.metric, other.metric)
        assert one.values == other.values
        assert torch.equal(kept.point, again.point)
        k = int(one.values["critical"])
        counts.add(k)
        pairs = k * (k + 1) // 2
        fresh = 0 if again.block is None else again.block.count
        # Two segments with directions and third derivatives; three points: weights, gradient, force, averages, squares.
        allowed = k + pairs + fresh + fresh * (fresh + 1) // 2 + 3 * 5
        assert vectors(again) <= allowed
        most[k] = max(most.get(k, 0.0), vectors(kept) - vectors(again))
    assert max(counts) >= 2
    assert max(most.values()) > 15, "the other keeps those that wait"
    assert again.ledger.products == kept.ledger.products
    assert kept.ledger.gradients < again.ledger.gradients <= kept.ledger.gradients + 1.7 * time


def test_a_replayed_flow_is_resumed(tmp_path):
    problem, rule, path = valley(z=0.0, start=(0.0, 6.5)), GradientDescent(lr=0.3), tmp_path / "flow.safetensors"
    settings = Settings(replay=True)
    whole = central_flow(problem, rule, 60, settings=settings)
    central_flow(problem, rule, 37, settings=settings, state_path=path)
    rest = central_flow(problem, rule, 60, settings=settings, state_path=path, resume=True)
    assert torch.equal(rest.points["central"], whole.points["central"])
    assert rest.data.equals(whole.data)
