"""What `train_stack` refuses, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInput, explain
from thalweg.sweeps.stack import Stack


def check_runs(
    stack: Stack,
    starts: Tensor,
    rates: Tensor,
    place: Tensor,
    steps: int,
    wanted: set[int],
    cutoff: float,
    measure: Any,
) -> None:
    """Refuse arguments that do not fit each other."""
    if starts.ndim != 2 or starts.shape[1] != stack.dimension or not len(starts):
        found, why = f"W0 has shape {tuple(starts.shape)}", f"a start holds {stack.dimension} parameters"
        raise InvalidInput(explain(found, why, f"Pass shape (S, {stack.dimension}) or ({stack.dimension},)"))
    if rates.ndim != 1 or not len(rates) or not bool(torch.isfinite(rates).all()):
        found = f"lr has shape {tuple(rates.shape)}" + (
            "" if rates.isfinite().all() else " with NaN or infinite entries"
        )
        raise InvalidInput(explain(found, "each row has one learning rate", "Pass R finite numbers"))
    known = place.dtype == torch.int64 and place.shape == rates.shape
    if not known or int(place.min()) < 0 or int(place.max()) >= len(starts):
        raise InvalidInput(
            explain(
                f"There are {len(starts)} starts, {len(rates)} rates and an index of shape {tuple(place.shape)}",
                "each row needs to know which start is its own",
                "Pass as many starts as rates, one start, or index= with a start's number for each rate",
            )
        )
    if steps < 0 or not cutoff > 0 or (isinstance(measure, str) and measure != "all"):
        found = f"steps is {steps}, cutoff {cutoff}, measure {measure!r}"
        raise InvalidInput(
            explain(found, "a run has 0 steps or more", 'Pass numbers that are positive, and "all" or steps')
        )
    if wanted and not (min(wanted) >= 0 and max(wanted) <= steps):
        found = f"measure has steps {min(wanted)} to {max(wanted)}"
        raise InvalidInput(explain(found, f"the run has steps 0 to {steps}", "Leave the others out"))


def check_known(
    given: dict[str, Tensor | None], starts: Tensor, batches: Sequence[Tensor] | Tensor | None, steps: int, rows: int,
    ceiling: Tensor | None = None,
) -> None:  # fmt: skip
    """Refuse what is said to be known of the starts and has another shape, and batches that are not one a step."""
    for name, known in given.items():
        shape = starts.shape if name in ("gradient0", "guess0") else starts.shape[:1]
        if known is not None and known.shape != shape:
            found = f"{name} has shape {tuple(known.shape)}"
            raise InvalidInput(explain(found, f"there are {len(starts)} starts", f"Pass shape {tuple(shape)}"))
    if ceiling is not None and ceiling.shape != (rows,):
        found = f"ceiling has shape {tuple(ceiling.shape)}"
        raise InvalidInput(explain(found, f"there are {rows} rows, each with its own", f"Pass shape ({rows},)"))
    if batches is not None and len(batches) != steps:
        raise InvalidInput(
            explain(
                f"There are {len(batches)} batches", f"each of {steps} steps takes one", "Pass one index tensor a step"
            )
        )
