"""Models of the transformers package, from a configuration class and a few sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from thalweg.errors import InvalidInput, MissingExtra, explain
from thalweg.problem.zoo.transformer import check_heads


class _Logits(nn.Module):
    """A Hugging Face language model as tokens -> ``(B, vocabulary, T)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.network(input_ids=tokens, use_cache=False).logits.transpose(1, 2)
        return out


def from_transformers(name: str, vocabulary: int, length: int, depth: int, width: int, heads: int) -> nn.Module:
    """Return a randomly initialised transformers model of the configuration class ``name``, at the given size.

    Args:
        name: A ``model_type`` of transformers with a causal head, such as ``"gpt2"``, ``"llama"``, ``"gpt_neox"``.
        vocabulary: Tokens.
        length: Longest sequence.
        depth: Layers.
        width: Hidden size; the MLP is four times as wide.
        heads: Attention heads.

    Raises:
        MissingExtra: transformers is not installed.
        InvalidInput: transformers knows no such causal model.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra(
            explain(
                "The package transformers is not installed",
                f"the model {name!r} comes from it",
                "pip install 'thalweg[hf]'",
            )
        ) from error
    check_heads(width, heads)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    dropout = dict.fromkeys(
        ("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "attention_dropout", "dropout"), 0.0
    )
    try:
        config = AutoConfig.for_model(name, **sizes, **dropout)
        build: Any = AutoModelForCausalLM.from_config
        network = build(config, attn_implementation="eager")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            explain(
                f"transformers has no causal model {name!r}: {error}",
                "the name is a model_type of transformers",
                "Try gpt2, llama or gpt_neox",
            )
        ) from error
    return _Logits(network)
