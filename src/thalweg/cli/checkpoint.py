"""Weights from a file: a checkpoint of a run, or a state dict that somebody else saved."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInput, RunFolderError, explain
from thalweg.runs.files import read_tensors
from thalweg.runs.sources.archives import WRAPPERS

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallelism, torch.compile and Lightning put before every name."""
_STEP = re.compile(r"(\d+)/(.+)")
SHOWN = 4


def read_weights(path: Path, step: int | None = None) -> dict[str, Tensor]:
    """Read the named tensors of a state dict. Nothing in the file is executed.

    Args:
        path: A safetensors file, or a file of ``torch.save`` that holds tensors only.
        step: Which step, in a file with several (the checkpoint files of a run); default the last.

    Raises:
        InvalidInput: The file is damaged, holds other things than tensors, or not this step.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInput(
            explain(f"{path} is no checkpoint by its name", f"those end in {', '.join(SUFFIXES)}", "Pass such a file")
        )
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _torch_save(path)
    steps = sorted({int(match[1]) for name in tensors if (match := _STEP.fullmatch(name))})
    if not steps:
        return tensors
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        known = ", ".join(map(str, steps))
        raise InvalidInput(
            explain(f"{path} holds nothing of step {step}", f"its steps are {known}", "Pass --step with one of them")
        )
    return {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{chosen}/")}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)[0]
    except RunFolderError as error:
        raise InvalidInput(
            explain(
                f"{path} cannot be read as safetensors: {error.__cause__}",
                "it is truncated or damaged, or holds something else",
                "Save or copy it again",
            )
        ) from error


def _torch_save(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            explain(
                f"{path} holds more than tensors, or is damaged: {str(error).splitlines()[0]}",
                "thalweg never executes what a file says",
                "Save the weights alone: torch.save(model.state_dict(), path), or safetensors.torch.save_file",
            )
        ) from error
    except Exception as error:  # a damaged archive can break the reader anywhere
        raise InvalidInput(
            explain(
                f"{path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                "it is truncated or damaged, or was not written by torch.save",
                "Save or copy it again",
            )
        ) from error
    return _unwrap(loaded, path)


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(2):
        if not isinstance(loaded, Mapping):
            break
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return {str(name): tensor for name, tensor in loaded.items()}
        loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    raise InvalidInput(
        explain(
            f"{path} holds no state dict",
            f"tensors by name are looked for at its top, and under {', '.join(WRAPPERS)}",
            "Save the weights alone: torch.save(model.state_dict(), path)",
        )
    )


def fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put ``tensors`` into ``model``, all of them and by name.

    A common prefix of wrappers is dropped, and one name of tied parameters suffices. Buffers may be missing, as
    many formats leave them out.

    Args:
        model: Is changed.
        tensors: Weights by name, in any floating dtype.
        source: What to call them in an error.

    Raises:
        InvalidInput: Parameters are missing, names are unknown, or shapes differ; the message lists them.
    """
    known = model.state_dict(keep_vars=True)
    named = _without_prefix(tensors, known)
    same: dict[int, list[str]] = {}
    for name, tensor in known.items():
        same.setdefault(id(tensor), []).append(name)
    missing = [
        names[0]
        for names in same.values()
        if isinstance(known[names[0]], nn.Parameter) and not any(name in named for name in names)
    ]
    strange = [name for name in named if name not in known]
    other = [
        f"{name} is {tuple(tensor.shape)} and not {tuple(known[name].shape)}"
        for name, tensor in named.items()
        if name in known and tensor.shape != known[name].shape
    ]
    told = [
        f"{words} {_some(names)}"
        for words, names in (("it lacks", missing), ("the model has no", strange), ("in it", other))
        if names
    ]
    if told:
        raise InvalidInput(
            explain(
                f"{source} does not fit the model: {'; '.join(told)}",
                f"every tensor of the {type(model).__name__} must be there in its own shape",
                "Describe the model that was saved (--model.depth, --model.width, ..., or --model-file)",
            )
        )
    with torch.no_grad():
        for name, tensor in named.items():
            known[name].copy_(tensor)


def _without_prefix(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
    """Drop prefixes that all names share, as long as the model does not know the names as they are."""
    named = dict(tensors)
    for _ in PREFIXES:
        if any(name in known for name in named):
            return named
        prefix = next((p for p in PREFIXES if named and all(name.startswith(p) for name in named)), None)
        if prefix is None:
            return named
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    return named


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
