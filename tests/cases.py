"""Small problems in float64 that between them have every feature a Problem promises to take."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from thalweg.problem import Problem


@dataclass(frozen=True)
class Case:
    """A model, what a user would hand over, and the same mean loss written out by hand.

    ``whole(model)`` is the mean over all data in one go; references differentiate it without any code of ours.
    """

    name: str
    model: nn.Module
    loss: Callable[..., Any]
    data: Any
    whole: Callable[[nn.Module], Tensor]
    options: dict[str, Any]

    def problem(self, **options: Any) -> Problem:
        return Problem(self.model, self.loss, self.data, **{**self.options, **options})


def simple(name, model, loss, x, y, **options) -> Case:
    """A case whose whole mean is ``loss(model(x), y)``."""
    return Case(name, model, loss, (x, y), lambda m: loss(m(x), y), options)


class Attention(nn.Module):
    """One causal block over tokens with torch's fused attention call."""

    def __init__(self, width=4, heads=2, tokens=5):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, tokens)
        self.heads = heads

    def forward(self, tokens):
        h = self.embed(tokens)
        batch, time, width = h.shape
        q, k, v = self.qkv(h).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(batch, time, width)
        return self.out(h).transpose(1, 2)


class TiedLanguageModel(nn.Module):
    """Input and output embedding are one tensor."""

    def __init__(self, tokens=6, width=3):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens)))).transpose(1, 2)


class WithUnused(nn.Module):
    """One layer is never called."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(3, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.used(x))


class DictModel(nn.Module):
    """Takes keywords, and gives an object with attributes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, *, features, mask):
        @dataclass
        class Output:
            logits: Tensor

        return Output(self.head(torch.sigmoid(self.body(features)) * mask))


class Samples(Dataset):
    """A map-style dataset of pairs."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def mlp_mse():
    return simple("mlp_mse", mlp(3, 5, 2), nn.MSELoss(), torch.randn(11, 3), torch.randn(11, 2), batch_size=4)


def mlp_ce():
    model = mlp(3, 5, 4, activation=nn.GELU)
    return simple("mlp_ce", model, nn.CrossEntropyLoss(), torch.randn(9, 3), torch.arange(9) % 4, batch_size=5)


def cnn():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    return simple("cnn", model, F.cross_entropy, torch.randn(7, 1, 4, 4), torch.arange(7) % 3, batch_size=3)


def attention():
    tokens = torch.randint(5, (4, 6))
    return simple("attention", Attention(), nn.CrossEntropyLoss(), tokens, tokens.roll(-1, 1), batch_size=3)


def encoder_layer():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True), nn.Flatten())
    model.eval()  # takes the inference fast path where nothing stops it
    return simple("encoder_layer", model, nn.MSELoss(), torch.randn(5, 3, 4), torch.randn(5, 12), batch_size=2)


def layer_norm():
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2))
    return simple("layer_norm", model, nn.MSELoss(), torch.randn(8, 3), torch.randn(8, 2), batch_size=3)


def batch_norm_eval():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    model.eval()
    return simple("batch_norm_eval", model, nn.CrossEntropyLoss(), torch.randn(8, 3), torch.arange(8) % 3, batch_size=3)


def batch_norm_train():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    return simple("batch_norm_train", model, nn.MSELoss(), torch.randn(8, 3), torch.randn(8, 2))


def tied():
    tokens = torch.randint(6, (5, 4))
    return simple("tied", TiedLanguageModel(), nn.CrossEntropyLoss(), tokens, tokens.roll(-1, 1), batch_size=2)


def ragged():
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    model, loss = mlp(3, 4, 2, activation=nn.Softplus), nn.SmoothL1Loss(beta=0.3)
    batches = list(zip(x.split([5, 1, 3]), y.split([5, 1, 3])))
    return Case("ragged", model, loss, batches, lambda m: loss(m(x), y), {})


def frozen():
    model = mlp(3, 5, 2)
    model[0].weight.requires_grad_(False)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    return Case("frozen", model, nn.MSELoss(), Samples(x, y), lambda m: F.mse_loss(m(x), y), {"batch_size": 4})


def unused():
    return simple("unused", WithUnused(), nn.MSELoss(), torch.randn(5, 3), torch.randn(5, 2), batch_size=3)


def dict_batches():
    x, mask, y = torch.randn(7, 3), (torch.rand(7, 4) > 0.3) * 1.0, torch.randn(7, 2)

    def loss(model, batch):
        logits = model(features=batch["x"], mask=batch["mask"]).logits
        return (logits - batch["y"]).pow(2).sum() / len(batch["x"]), len(batch["x"])

    def whole(model):
        terms = [(model(features=x[i : i + 1], mask=mask[i : i + 1]).logits - y[i]).pow(2).sum() for i in range(len(x))]
        return sum(terms) / len(x)

    return Case("dict_batches", DictModel(), loss, {"x": x, "mask": mask, "y": y}, whole, {"batch_size": 3})


def ignored():
    """Padded targets, different numbers in each batch, and one batch in which all are padding."""
    tokens = torch.randint(5, (6, 4))
    target = tokens.roll(-1, 1).clone()
    target[0, 1:] = -1
    target[3, :2] = -1
    target[4:] = -1
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    return simple("ignored", Attention(heads=1), loss, tokens, target, batch_size=2)


def class_weights():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 3.0, 1.0]))
    return simple("class_weights", mlp(3, 4, 3), loss, torch.randn(8, 3), torch.arange(8) % 3, batch_size=3)


BUILDERS = (
    mlp_mse,
    mlp_ce,
    cnn,
    attention,
    encoder_layer,
    layer_norm,
    batch_norm_eval,
    batch_norm_train,
    tied,
    ragged,
    frozen,
    unused,
    dict_batches,
    ignored,
    class_weights,
)
NAMES = tuple(build.__name__ for build in BUILDERS)


def make(name: str) -> Case:
    """Build a case, the same each time, without touching the random state of the caller."""
    build = BUILDERS[NAMES.index(name)]
    with torch.random.fork_rng():
        torch.manual_seed(NAMES.index(name))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            case = build()
            for parameter in case.model.parameters():
                if parameter.requires_grad and parameter.ndim == 1:
                    parameter.data.add_(0.1 * torch.randn_like(parameter))  # biases and gains off their zeros and ones
        finally:
            torch.set_default_dtype(default)
    return case


CASES = NAMES
