"""The loss of a causal language model whose logits never exist all at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, explain
from thalweg.problem.guards import preserved_rng
from thalweg.problem.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy

IGNORED = -100
"""The label of a token that is not predicted, as transformers has it."""
PROBE = 16
"""Tokens on which the loss is compared with the model's own."""


@dataclass(frozen=True)
class LastLayer:
    """Where a language model's loss is cut: what the head gets, the head, and what it is to predict.

    Attributes:
        hidden: States before the head that predict a token that counts, shape ``(n, d)``.
        weight: The head, shape ``(V, d)``.
        bias: Shape ``(V,)``, or None.
        target: The tokens to predict, shape ``(n,)``.
        row: To which sequence of the batch each belongs, shape ``(n,)``.
        chunk: Tokens at a time.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    row: Tensor
    chunk: int | None

    @property
    def needs(self) -> tuple[bool, bool, bool]:
        """Whether hidden states, weight and bias depend on what is differentiated by."""
        bias = self.bias is not None and self.bias.requires_grad
        return self.hidden.requires_grad, self.weight.requires_grad, bias

    def dependent(self) -> list[Tensor]:
        """List those of the three that do."""
        return [z for z in (self.hidden, self.weight, self.bias) if z is not None and z.requires_grad]

    def loss(self) -> Tensor:
        """Return the mean over the tokens; zero, with a zero gradient, where there is none."""
        total = linear_cross_entropy(
            self.hidden, self.weight, self.target, bias=self.bias, chunk=self.chunk, reduction="sum"
        )
        return total / max(len(self.target), 1)


class LanguageModelLoss:
    """``loss(model, batch) -> (mean, predicted tokens)``; see `language_model_loss`."""

    __thalweg_batch_loss__ = True

    def __init__(self, chunk: int | None) -> None:
        self.chunk = chunk
        self._compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def with_chunk(self, chunk: int) -> LanguageModelLoss:
        """Return the same loss with another chunk. It knows which models have been compared with their own loss."""
        other = LanguageModelLoss(chunk)
        other._compared = self._compared
        return other

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        """Return the mean loss, 0-dim, and the number of tokens it is a mean over."""
        last = self.last_layer(model, batch)
        return last.loss(), len(last.target)

    def last_layer(self, model: nn.Module, batch: Any) -> LastLayer:
        """Evaluate the body of the model, and say what is left to do."""
        inputs, labels = _read(batch)
        if model not in self._compared:
            _parts(model)
            self._compare(model, inputs)
            self._compared.add(model)
        return self._cut(model, inputs, labels)

    def _cut(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> LastLayer:
        body, head = _parts(model)
        hidden = body(**inputs, use_cache=False).last_hidden_state[:, :-1]
        target = labels[:, 1:]  # the state at t predicts token t + 1
        counts = target != IGNORED
        row = torch.arange(len(target), device=target.device)[:, None].expand_as(target)[counts]
        return LastLayer(hidden[counts], head.weight, head.bias, target[counts], row, self.chunk)

    def _compare(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Compare with the model's own loss on a few tokens: a scaled or capped head, or a term beside it, shows."""
        ids = inputs["input_ids"]
        shape = ids.shape[:2]
        few = {
            key: value[:1, :PROBE] if isinstance(value, Tensor) and value.shape[:2] == shape else value
            for key, value in inputs.items()
        }
        labels = few["input_ids"]
        if labels.shape[1] < 2:
            return
        with torch.no_grad():
            with preserved_rng(ids.device):
                own = model(**few, labels=labels, use_cache=False)
            with preserved_rng(ids.device):  # from the same random state: live dropout is another guard's matter
                last = self._cut(model, few, labels)
            logits, loss = nn.functional.linear(last.hidden, last.weight, last.bias), float(last.loss())
        theirs, value = own.logits[0, :-1].to(logits), float(own.loss)
        tolerance = 5e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-3
        heads = float((logits - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny))
        losses = abs(value - loss) / max(abs(value), 1e-30)
        if heads > tolerance or losses > tolerance:
            raise InvalidInput(
                explain(
                    f"On {labels.shape[1]} tokens the logits of {type(model).__name__} differ from those of its plain "
                    f"linear head by {heads:.1e}, and its loss by {losses:.1e}",
                    "the model scales or caps its logits, or adds a term to its loss",
                    "Use a loss(model, batch) that returns (model(**batch).loss, number of predicted tokens)",
                )
            )


def language_model_loss(chunk: int | None = None) -> LanguageModelLoss:
    r"""Return the mean next-token loss of a Hugging Face causal model, without its logits.

    The loss is ``mean_{(s,t)} -log softmax(W h_{s,t} + b)[x_{s,t+1}]`` over every token ``t + 1`` whose label is not
    -100, the value of ``model(**batch).loss``, computed from the last hidden states by `linear_cross_entropy`. (In
    float64, transformers rounds the logits to float32 before its loss; this one does not.) The first time a model is
    seen, both are compared on 16 tokens.

    Args:
        chunk: Tokens whose logits exist at a time; default as many as make a block of 2^23 numbers.

    Returns:
        A ``loss(model, batch) -> (mean, number of predicted tokens)`` for `Problem`. A batch is a mapping with
        ``input_ids``, optionally ``labels`` (default: the same tokens, where ``attention_mask`` does not hide them)
        and whatever else the model takes; or the token ids alone, shape ``(sequences, tokens)``.

    Raises:
        InvalidInput: (At the first evaluation) the model has no decoder with a linear head, or computes something
            else from its hidden states.

    Example:
        >>> loss = language_model_loss(chunk=256)  # Problem(model, loss, {"input_ids": tokens}, batch_size=4)
        >>> loss.chunk
        256
    """
    if chunk is not None and chunk < 1:
        raise InvalidInput(explain(f"chunk is {chunk}", "a chunk holds at least one token", "Pass None for a default"))
    return LanguageModelLoss(chunk)


def _read(batch: Any) -> tuple[dict[str, Any], Tensor]:
    """What the model takes, and the labels."""
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise InvalidInput(
            explain(
                f"A batch is a {type(batch).__name__} without input_ids of shape (sequences, tokens)",
                "a language model reads rows of tokens",
                'Yield {"input_ids": ..., "labels": ...} or the token ids alone',
            )
        )
    labels = given.pop("labels", None)
    if labels is None:
        mask = given.get("attention_mask")
        labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return given, labels


def _parts(model: nn.Module) -> tuple[Callable[..., Any], nn.Linear]:
    """The body and the head of a causal model; parameters that were swapped in are found in their places."""
    find_body, find_head = getattr(model, "get_decoder", None), getattr(model, "get_output_embeddings", None)
    body, head = find_body and find_body(), find_head and find_head()
    if body is None or body is model or not isinstance(head, nn.Linear):
        raise InvalidInput(
            explain(
                f"{type(model).__name__} has no decoder with a linear head",
                "its loss is computed from the last hidden states and the head's weight",
                "Pass a causal model of transformers, or a loss(model, batch) of your own on linear_cross_entropy",
            )
        )
    return body, head


__all__ = ["LanguageModelLoss", "LastLayer", "language_model_loss", "linear_cross_entropy"]
