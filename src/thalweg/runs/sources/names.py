"""Which tensors of a checkpoint are trained parameters, under which names, and which are one tensor under two."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from thalweg.runs.sources.stored import Stored, TensorInfo

T = TypeVar("T")

WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever they wrap a module."""

BUFFERS = (
    (re.compile(r"(^|\.)running_(mean|var)$"), "a running statistic"),
    (re.compile(r"(^|\.)num_batches_tracked$"), "a count of batches"),
    (re.compile(r"(^|\.)(attention|attn)\.masked_bias$"), "a constant of an attention mask"),
    (re.compile(r"(^|\.)rotary_emb\.|(^|\.)(original_)?inv_freq$|(^|\.)freqs_cis$"), "a table of rotary positions"),
    (re.compile(r"(^|\.)position_ids$|(^|\.)relative_position_index$"), "a table of positions"),
)
"""Names of tensors that are saved with the weights and are not trained, and what they are."""

_MASK = re.compile(r"(^|\.)(attention|attn)\.bias$")
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|head)\.weight$")
_EMBEDDINGS = re.compile(r"(^|\.)(wte|embed_in|embed_tokens|embed|word_embeddings|tok_embeddings|embedding)\.weight$")


def clean(tensors: Mapping[str, T]) -> dict[str, T]:
    """Drop the prefixes of wrappers: ``module.`` where all names have it, the others wherever they stand.

    Example:
        >>> list(clean({"module._orig_mod.0.weight": 1, "module._orig_mod.0.bias": 2}))
        ['0.weight', '0.bias']
    """
    named = {WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    while named and all(name.startswith("module.") for name in named):
        named = {WRAPPED.sub("", name.removeprefix("module.")): tensor for name, tensor in named.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def not_trained(info: TensorInfo) -> str | None:
    """Say why a tensor is no trained parameter, or return None where it is one.

    Example:
        >>> import torch
        >>> not_trained(TensorInfo("bn.running_mean", (8,), torch.float32))
        'a running statistic'
    """
    if not info.dtype.is_floating_point:
        return f"its dtype is {str(info.dtype).removeprefix('torch.')}"
    if not info.numel:
        return "it is empty"
    if _MASK.search(info.name) and len(info.shape) == 4:
        return "an attention mask"
    return next((words for pattern, words in BUFFERS if pattern.search(info.name)), None)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts layer 2 before layer 10.

    Example:
        >>> sorted(["h.10.w", "h.2.w"], key=natural)
        ['h.2.w', 'h.10.w']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def tied(
    tensors: Mapping[str, Stored], names: Iterable[str], told: bool | None, equal: Callable[[str, str], bool]
) -> dict[str, str]:
    """Find names of tensors that are there under another name already.

    Two names of one stored tensor are tied. Formats that do not tell store a copy: of an output matrix and an
    embedding by their names, of one shape, the configuration tells, and where it does not, the values at the first
    checkpoint.

    Args:
        tensors: The tensors of the first checkpoint.
        names: Those in question, in their order.
        told: What the configuration says of tied embeddings; None for nothing.
        equal: Whether two tensors are equal bit by bit.

    Returns:
        For each name to be left out, the name under which the tensor is kept.
    """
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        same = tensors[name].same
        groups.setdefault(name if same is None else same, []).append(name)
    found: dict[str, str] = {}
    kept = []
    for group in groups.values():
        main = next((name for name in group if _EMBEDDINGS.search(name)), group[0])
        kept.append(main)
        found |= {name: main for name in group if name != main}
    for head in (name for name in kept if _HEADS.search(name)):
        for embedding in (name for name in kept if _EMBEDDINGS.search(name)):
            a, b = tensors[head], tensors[embedding]
            if a.same is not None and b.same is not None:
                continue  # this format tells
            if (a.info.shape, a.info.dtype) != (b.info.shape, b.info.dtype) or told is False:
                continue
            if told or equal(head, embedding):
                found[head] = embedding
                break
    return found
