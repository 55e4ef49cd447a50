"""Language models without their logits: value, Hessian and refusals, against the model's own loss."""

import pytest
import torch
from torch.nn import functional as F

from thalweg.errors import InvalidInput
from thalweg.operators import doctor, hessian
from thalweg.problem import Problem
from thalweg.problem.heads import language_model_loss

transformers = pytest.importorskip("transformers")


class Models:
    @staticmethod
    def gpt2(**options):
        config = transformers.GPT2Config(
            n_layer=1, n_embd=4, n_head=2, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0, **options
        )
        return transformers.GPT2LMHeadModel(config).double().eval()

    @staticmethod
    def llama():
        config = transformers.LlamaConfig(
            num_hidden_layers=1,
            hidden_size=4,
            intermediate_size=6,
            num_attention_heads=2,
            vocab_size=11,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=0,
        )
        return transformers.LlamaForCausalLM(config).double().eval()


def batch(masked=True):
    ids = torch.randint(11, (5, 8))
    labels = ids.clone()
    if masked:
        labels[0, :4] = -100
        labels[2:4] = -100  # with a batch size of two: a batch without a token that counts
    return {"input_ids": ids, "labels": labels}


def own_loss(model, batch):
    """The model's own loss in the model's own precision."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    target = batch["labels"][:, 1:]
    count = int((target != -100).sum())
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / max(count, 1), count


@pytest.mark.parametrize("make", [Models.gpt2, Models.llama])
def test_the_value_is_the_models_own(make):
    model, data = make(), batch()
    mean, count = language_model_loss(chunk=3)(model, data)
    assert count == int((data["labels"][:, 1:] != -100).sum())
    assert abs(float(mean) - float(model(**data).loss)) < 1e-6  # transformers computes it in float32
    assert abs(float(mean) - float(own_loss(model, data)[0])) < 1e-14


@pytest.mark.parametrize("parameters", [None, "*h.0.*", "*.bias", "*wte*", "*ln_f*"])
@pytest.mark.parametrize("layout", ["linearised", "double_backward", "forward_reverse"])
def test_hessian_of_a_tied_model_is_that_of_its_own_loss(untouched, layout, parameters):
    model, data = Models.gpt2(), batch()
    assert model.lm_head.weight is model.transformer.wte.weight
    own = Problem(model, own_loss, data, batch_size=2, parameters=parameters)
    block = torch.randn(own.dimension, 3, dtype=torch.float64)
    w = own.initial + 0.1 * torch.randn_like(own.initial)
    with untouched(model):
        ours = Problem(model, language_model_loss(chunk=3), data, batch_size=2, parameters=parameters)
        assert ours.samples == own.samples == int((data["labels"][:, 1:] != -100).sum())
        expected = hessian(own, w).matmat(block)
        assert float((ours.gradient(w) - own.gradient(w)).norm()) <= 1e-13 * float(own.gradient(w).norm())
        found = hessian(ours, w, layout=layout).matmat(block)
    assert float((found - expected).norm()) <= 1e-12 * float(expected.norm())


def test_hessian_of_an_untied_model():
    model, data = Models.llama(), batch()
    ours, own = (Problem(model, loss, data, batch_size=2) for loss in (language_model_loss(chunk=3), own_loss))
    block = torch.randn(own.dimension, 3, dtype=torch.float64)
    expected = hessian(own).matmat(block)
    assert float((hessian(ours).matmat(block) - expected).norm()) <= 1e-12 * float(expected.norm())


def test_the_doctor_finds_it_healthy_but_for_the_third_derivative():
    problem = Problem(Models.gpt2(), language_model_loss(chunk=5), batch(), batch_size=2)
    diagnosis = doctor(problem)
    assert diagnosis.healthy
    assert diagnosis["third derivative"].status == "warn"
    assert {diagnosis[name].status for name in ("first derivative", "second derivative", "layouts")} == {"ok"}


def test_labels_default_to_the_tokens_that_are_not_padding():
    model, loss = Models.gpt2(), language_model_loss()
    data = batch(masked=False)
    mask = torch.ones_like(data["input_ids"])
    mask[1, 5:] = 0
    hidden = {"input_ids": data["input_ids"], "attention_mask": mask}
    labels = data["input_ids"].masked_fill(mask == 0, -100)
    assert loss(model, hidden)[1] == loss(model, {**hidden, "labels": labels})[1] == 5 * 7 - 3
    assert torch.equal(loss(model, hidden)[0], loss(model, {**hidden, "labels": labels})[0])
    assert torch.equal(loss(model, data["input_ids"])[0], loss(model, data)[0])


def test_a_head_that_is_not_plain_is_refused():
    config = transformers.CohereConfig(
        num_hidden_layers=1,
        hidden_size=4,
        intermediate_size=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=11,
        max_position_embeddings=8,
        logit_scale=0.5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with pytest.raises(InvalidInput, match="scales or caps"):
        language_model_loss()(transformers.CohereForCausalLM(config).eval(), batch())


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (torch.nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.int64), "no decoder with a linear head"),
        (None, torch.ones(3), "rows of tokens"),
        (None, {"x": torch.ones(2, 3)}, "rows of tokens"),
    ],
)
def test_what_is_no_language_model_is_refused(model, data, words):
    with pytest.raises(InvalidInput, match=words):
        language_model_loss()(model or Models.gpt2(), data)
    with pytest.raises(InvalidInput, match="at least one token"):
        language_model_loss(chunk=0)
