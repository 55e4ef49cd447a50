"""Live bytes are those of the allocator, and end where tensors end."""

import pytest
import torch
from torch import nn
from torch.profiler import profile

from thalweg.problem.live import LiveBytes


def allocated(work):
    """Peak of what torch's own allocator gave, by its profiler."""
    with profile(profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def second_order(*layers):
    model = torch.nn.Sequential(*layers)
    x = torch.randn(64, 1, 8, 8)

    def work():
        loss = torch.nn.functional.cross_entropy(model(x), torch.zeros(64, dtype=torch.long))
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        torch.autograd.grad(grads, list(model.parameters()), [torch.ones_like(g) for g in grads])

    return work


@pytest.mark.parametrize(
    ("layers", "unseen"),
    [
        ((nn.Flatten(), nn.Linear(64, 50), nn.LayerNorm(50), nn.GELU(), nn.Linear(50, 5)), 0.002),
        ((nn.Conv2d(1, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 5)), 0.1),  # convolutions take work space
    ],
    ids=["linear", "convolution"],
)
def test_the_peak_is_that_of_the_allocator(layers, unseen):
    work = second_order(*layers)
    with LiveBytes() as live:
        work()
    assert live.live == 0
    true = allocated(work)
    assert (1 - unseen) * true <= live.peak <= true


def test_views_and_arguments_do_not_count():
    x = torch.ones(1000)
    with LiveBytes() as live:
        x.view(10, 100).T.add_(1)
        assert live.peak == 0
        y = x + 1
        z = y[:500]
        del y
        assert live.live == 4000
        del z
    assert (live.live, live.peak) == (0, 4000)


def test_every_event_has_what_is_alive_after_it():
    x = torch.ones(1000)
    with LiveBytes() as live:
        y = x.exp()
        live.mark("here")
        x.double()
    assert live.events == [("aten.exp.default", 4000), ("here", 4000), ("aten._to_copy.default", 12000)]
    assert y.shape == (1000,)


def test_what_dies_after_the_context_is_nobodys_business():
    with LiveBytes() as live:
        kept = torch.ones(10) + 1
    del kept
    assert live.peak == 80
