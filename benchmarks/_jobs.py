"""Models and spectral jobs whose memory is predicted and measured, each of them alone in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from thalweg.problem import Problem
from thalweg.problem.heads import language_model_loss
from thalweg.problem.plan import Plan


def mlp(samples: int = 4000, width: int = 1000) -> Problem:
    """784 inputs, two hidden layers, ten classes, on noise: memory does not depend on what the numbers are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    data = torch.randn(samples, 784), torch.randint(10, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), data, batch_size=1, check=False)


def cnn(samples: int = 512, width: int = 32) -> Problem:
    """Three stages of convolutions on images of 32 x 32, with GroupNorm."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for stage in range(3):
        wide = width * 2**stage
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.GroupNorm(8, wide), nn.GELU()]
        layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)]
        channels = wide
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, 10))
    data = torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,))
    return Problem(model, nn.CrossEntropyLoss(), data, batch_size=1, check=False)


def gpt2(
    samples: int = 16, tokens: int = 128, layers: int = 2, width: int = 128, chunk: int | None = None, own: bool = False
) -> Problem:
    """A GPT-2 of transformers with random weights and the full vocabulary; ``own``: with the loss that it brings."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=max(width // 64, 1), n_positions=tokens, attn_implementation="eager"
    )
    ids = torch.randint(config.vocab_size, (samples, tokens))

    def own_loss(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        ids = batch["input_ids"]
        return model(input_ids=ids, labels=ids, use_cache=False).loss, ids.shape[0] * (ids.shape[1] - 1)

    loss = own_loss if own else language_model_loss(chunk)
    return Problem(GPT2LMHeadModel(config).eval(), loss, {"input_ids": ids}, batch_size=1, check=False)


PRODUCTS = 10
"""Of an eigenvalue: with a basis of 6 the solver restarts, and more products hold no more."""


def run(plan: Plan, problem: Problem, k: int = 1) -> Any:
    """Do the job as planned, by what a user would call."""
    from thalweg.operators import hessian
    from thalweg.spectra.critical import critical_sharpness
    from thalweg.spectra.lanczos import Lanczos, top_eigenpairs

    w = problem.initial
    if plan.job == "value":
        return problem.value(w)
    if plan.job == "gradient":
        return problem.gradient(w)
    if plan.job == "critical_sharpness":
        return critical_sharpness(problem, w, strict=False)
    operator = hessian(problem, w, layout=plan.layout)
    del w
    if plan.job == "product":
        v = torch.ones(problem.dimension, dtype=problem.dtype)
        return operator.matvec(v)
    if plan.job == "eigenpairs":
        method = Lanczos(basis=plan.basis, tol=1e-3, max_products=PRODUCTS)
        return top_eigenpairs(operator, k, method=method, strict=False)
    from thalweg.spectra.density import spectral_density

    return spectral_density(operator, probes=2, steps=plan.basis)


MODELS: dict[str, Callable[..., Problem]] = {"MLP": mlp, "CNN": cnn, "GPT-2 shape": gpt2}
