"""The problems that are measured: models at points where training has pulled eigenvalues out of the bulk."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from _common import math_attention
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg import Problem


@dataclass
class Case:
    """A trained model in one dtype, its loss, and one full batch."""

    name: str
    model: nn.Module
    loss: nn.Module
    x: Tensor
    y: Tensor
    dtype: torch.dtype
    dense: bool = False
    """Whether P is small enough to diagonalise the whole Hessian."""
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        self.problem = Problem(self.model, self.loss, (self.x, self.y))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of the flat vector."""
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.problem.dimension

    @property
    def title(self) -> str:
        """What it is, for headings."""
        return f"{self.name}, {self.size:,} parameters, {len(self.x)} samples, {str(self.dtype).split('.')[1]}"

    def mean_loss(self, model: nn.Module | None = None) -> Tensor:
        """The loss by plain torch."""
        with math_attention():
            return self.loss((model or self.model)(self.x), self.y)

    def copy_of_model(self) -> nn.Module:
        """For peers that leave something behind in it."""
        return copy.deepcopy(self.model)

    def to(self, dtype: torch.dtype) -> Case:
        """The same point and data in another dtype."""
        model = self.copy_of_model().to(dtype)
        x, y = (t.to(dtype) if t.is_floating_point() else t for t in (self.x, self.y))
        return Case(self.name, model, self.loss, x, y, dtype, self.dense)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norm2(x))


class _LanguageModel(nn.Module):
    def __init__(self, tokens: int, width: int, time: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(time, width))
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.position))).transpose(1, 2)


def digits(samples: int) -> tuple[Tensor, Tensor]:
    """Centred 8 x 8 images as rows, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data[:samples]).double() / 16
    return x - x.mean(), torch.from_numpy(data.target[:samples]).long()


def text(rows: int, time: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Characters of Python's own help pages; the rarest share the last token."""
    from pydoc_data.topics import topics

    letters = "".join(topics[name] for name in sorted(topics))[: 20 * rows * time]
    known = {c: i for i, c in enumerate(sorted(set(letters), key=lambda c: (-letters.count(c), c))[: tokens - 1])}
    ids = torch.tensor([known.get(c, tokens - 1) for c in letters])
    rows_of = ids.unfold(0, time + 1, 20 * time - 1)[:rows]
    return rows_of[:, :-1].clone(), rows_of[:, 1:].clone()


def _train(model: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> nn.Module:
    """Full-batch Adam for a few steps: enough for a spectrum as one meets it in training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model


def _build(
    name: str, make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], steps: int = 60, dense: bool = False
) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    return trained(name, model, *data, steps=steps, dense=dense)


def trained(name: str, model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 60, dense: bool = True) -> Case:
    """A float64 model after a few steps of Adam on all its data."""
    with math_attention():
        _train(model, x, y, steps=steps, lr=3e-3)
    return Case(name, model, nn.CrossEntropyLoss(), x, y, torch.float64, dense)


Norm = Callable[[int], nn.Module] | None


def _mlp(*widths: int, act: Callable[[], nn.Module] = nn.Tanh, norm: Norm = None) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), *([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def small_mlp(name: str = "MLP 64-24-10", act: Callable[[], nn.Module] = nn.Tanh, norm: Norm = None) -> Case:
    """Small enough for all its eigenvalues."""
    return _build(name, lambda: _mlp(64, 24, 10, act=act, norm=norm), digits(600), dense=True)


def regression() -> Case:
    """Linear regression with ten outputs: every eigenvalue of its Hessian has ten copies."""
    x, y = digits(600)
    target = F.one_hot(y, 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(64, 10).double()
    return Case("linear regression 64-10", model, nn.MSELoss(), x, target, torch.float64, dense=True)


def mlp(samples: int = 1797) -> Case:
    """Digits, two hidden layers of 100."""
    return _build("MLP 64-100-100-10", lambda: _mlp(64, 100, 100, 10), digits(samples))


def cnn() -> Case:
    """Digits as images, three convolutions."""

    def make() -> nn.Module:
        def stage(a: int, b: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)]

        return nn.Sequential(*stage(1, 16), *stage(16, 32), *stage(32, 32), nn.Flatten(), nn.Linear(32, 10))

    x, y = digits(128)
    return _build("CNN 16-32-32", make, (x.view(-1, 1, 8, 8), y))


def transformer() -> Case:
    """Two causal layers of width 32 with LayerNorm, next character of English text."""
    data = text(rows=8, time=32, tokens=40)
    return _build("transformer 2x32", lambda: _LanguageModel(40, 32, 32, 2, 4), data)


def cases(quick: bool) -> list[Case]:
    """All cases that are timed; float32 ones are the float64 ones rounded, and have their own reference."""
    if quick:
        return [small_mlp(), regression(), mlp(600).to(torch.float32)]
    both = [build() for build in (mlp, cnn, transformer)]
    return [small_mlp(), regression(), *[case.to(d) for case in both for d in (torch.float64, torch.float32)]]
