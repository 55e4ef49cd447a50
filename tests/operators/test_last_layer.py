"""Gauss-Newton and Fisher of language models in chunks of tokens, against whole Jacobians of all logits."""

import pytest
import torch
from torch.nn import functional as F

from reference import gauss_newton as textbook
from thalweg.operators.fisher import empirical_fisher
from thalweg.operators.gauss_newton import gauss_newton
from thalweg.problem import Problem
from thalweg.problem.heads import language_model_loss

transformers = pytest.importorskip("transformers")
LAYOUTS = ("linearised", "forward", "rebuilt")


def gpt2(tied):
    config = transformers.GPT2Config(
        n_layer=1,
        n_embd=4,
        n_head=2,
        vocab_size=7,
        n_positions=6,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


def tokens():
    ids = torch.randint(7, (4, 6))
    labels = ids.clone()
    labels[0, :4] = -100
    labels[2:] = -100  # with a batch size of two: a batch without a token that counts
    labels[3, 5] = 1
    return {"input_ids": ids, "labels": labels}


def logits(batch):
    kept = batch["labels"][:, 1:] != -100
    return lambda m: m(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1][kept]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gauss_newton(untouched, layout, tied, chunk):
    model, batch = gpt2(tied), tokens()
    target = batch["labels"][:, 1:]
    target = target[target != -100]
    right = textbook.gauss_newton(model, logits(batch), lambda z: F.cross_entropy(z, target))
    problem = Problem(model, language_model_loss(chunk=3), batch, batch_size=2)
    block = torch.randn(problem.dimension, 3, dtype=torch.float64)
    with untouched(model):
        found = gauss_newton(problem, layout=layout, chunk=chunk).matmat(block)
    assert relative(found, right @ block) < 1e-12


@pytest.mark.parametrize("parameters", ["*h.0.*", "*wte*", "*ln_f*"])
def test_gauss_newton_of_some_parameters(parameters):
    model, batch = gpt2(tied=True), tokens()
    whole = Problem(model, language_model_loss(chunk=3), batch, batch_size=2)
    part = Problem(model, language_model_loss(chunk=3), batch, batch_size=2, parameters=parameters)
    rows = whole.layout.indices(parameters)
    v = torch.randn(len(rows), dtype=torch.float64)
    full = torch.zeros(whole.dimension, dtype=torch.float64)
    full[rows] = v
    assert relative(gauss_newton(part).matvec(v), gauss_newton(whole).matvec(full)[rows]) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per", ["term", "sample"])
@pytest.mark.parametrize("tied", [True, False])
def test_empirical_fisher(layout, per, tied):
    model, batch = gpt2(tied), tokens()
    target = batch["labels"][:, 1:]
    kept = target != -100

    def losses(m):
        each = F.cross_entropy(logits(batch)(m), target[kept], reduction="none")
        if per == "term":
            return each
        return torch.stack([part.mean() for part in each.split(counts)])

    counts = [int(n) for n in kept.sum(1) if n]
    weights = torch.tensor(counts, dtype=torch.float64) if per == "sample" else None
    right = textbook.empirical_fisher(model, losses, weights)
    problem = Problem(model, language_model_loss(chunk=2), batch, batch_size=2)
    block = torch.randn(problem.dimension, 3, dtype=torch.float64)
    found = empirical_fisher(problem, per=per, layout=layout).matmat(block)
    assert relative(found, right @ block) < 1e-12
