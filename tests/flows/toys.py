"""Losses of a few numbers whose central flow is known in closed form, and small networks."""

import torch

from thalweg import Problem, batch_loss


class Point(torch.nn.Module):
    """Weights without a network."""

    def __init__(self, *values):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def of_weights(loss, *start):
    """The problem whose loss is ``loss(w)``."""

    @batch_loss
    def evaluate(model, batch):
        return loss(model.w) + 0.0 * batch[0].sum(), 1

    return Problem(Point(*start), evaluate, [(torch.zeros(1, dtype=torch.float64),)])


def valley(e=0.01, z=1.0, start=(0.05, 5.0)):
    """``1/2 (y + z x) x^2 - e (x + y)``: sharpness y, pushed up at the rate e."""
    return of_weights(lambda w: 0.5 * (w[1] + z * w[0]) * w[0] ** 2 - e * (w[0] + w[1]), *start)


def two_valleys(slope, start):
    """``1/2 x' Y x + h(Y)`` with linear h, Y symmetric 2 x 2 in svec packing: weights (x1, x2, y11, y12, y22)."""
    root = 2.0**0.5

    def loss(w):
        x, y = w[:2], w[2:]
        return 0.5 * (y[0] * x[0] ** 2 + root * y[1] * x[0] * x[1] + y[2] * x[1] ** 2) + (slope * y).sum()

    return of_weights(loss, *start)


def digits(dtype=torch.float32, samples=300, noise=0.3, seed=0, activation=torch.nn.GELU):
    """MLP 64-32-32-10 on digits, a share of the labels random: much progressive sharpening."""
    from sklearn.datasets import load_digits

    data = load_digits()
    stream = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data.target), generator=stream)[:samples]
    x, y = torch.tensor(data.data)[picked], torch.tensor(data.target)[picked]
    x = (x - x.mean()) / x.std()
    wrong = torch.rand(samples, generator=stream) < noise
    y[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=stream)
    target = torch.nn.functional.one_hot(y, 10).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(64, 32), activation(), torch.nn.Linear(32, 32), activation(), torch.nn.Linear(32, 10)]
    model = torch.nn.Sequential(*layers).to(dtype)
    return Problem(model, lambda out, t: 0.5 * (out - t).square().sum(1).mean(), (x.to(dtype), target))
