"""Runs in processes of their own, that can be killed: the same small training, built anew each time."""

import multiprocessing
import os
import signal
import time

import torch

import thalweg as tw
from thalweg.runs import FullLoss, Measure, Spectrum, train

STEPS = 40

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["thalweg.runs", "xarray", "torch", "thalweg.rules"])


def start(folder, **options):
    """Start `work` in a process of its own."""
    process = CONTEXT.Process(target=work, args=(folder,), kwargs=options)
    process.start()
    return process


def make_problem(dtype=torch.float64, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=stream, dtype=torch.float64)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64) * 0.7)
    return tw.Problem(model.to(dtype), torch.nn.MSELoss(), (x.to(dtype), y.to(dtype)))


RULES = {
    "gd": lambda: tw.rules.GradientDescent(lr=0.3),
    "heavy": lambda: tw.rules.HeavyBall(lr=0.1, momentum=0.8),
    "adam": lambda: tw.rules.Adam(lr=tw.rules.Cosine(peak=0.02, steps=STEPS)),
}


class Slowly:
    """A meter that makes each step last a while, kills itself at ``last``, or waits at ``fence`` to be killed."""

    def __init__(self, seconds, last=None, fence=None):
        self.seconds, self.last, self.fence = seconds, last, fence

    def init(self, steps, start=0):
        pass

    def step(self, values):
        time.sleep(self.seconds)
        if values["step"] == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        while values["step"] == self.fence:
            time.sleep(1)

    def close(self):
        pass


def work(
    folder,
    dtype="float64",
    rule="gd",
    batch_size=None,
    resume=False,
    slowly=0.0,
    die_at=None,
    die_after=None,
    fence=None,
    steps=STEPS,
):
    """Train; with ``die_at``, die by SIGKILL at that many events that matter to what is on disk.

    With ``die_after``, die after that step; with ``fence``, go no further than that step.
    """
    torch.set_num_threads(1)
    if die_at is not None:
        _die_at(die_at)
    measures = [
        Spectrum(k=2, every=1 if batch_size is None else 3),
        FullLoss(every=4),
        Measure.from_function("drawn", lambda c: torch.rand((), generator=c.generator("drawn")).item(), every=2),
    ]
    return train(
        make_problem(getattr(torch, dtype)),
        RULES[rule](),
        steps,
        folder=folder,
        batch_size=batch_size,
        seed=3,
        measures=measures,
        checkpoint_every=3,
        save_every=7,
        meter=Slowly(slowly, die_after, fence),
        resume=resume,
    )


def _die_at(count):
    """Replace what changes the disk by the same, preceded by a step towards the end."""
    left = [count]

    def mortal(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    from thalweg.runs import metrics

    os.replace, os.fsync, os.mkdir = mortal(os.replace), mortal(os.fsync), mortal(os.mkdir)
    transaction = metrics._Transaction
    transaction.__enter__ = mortal(transaction.__enter__)
    transaction.__exit__ = mortal(transaction.__exit__)
