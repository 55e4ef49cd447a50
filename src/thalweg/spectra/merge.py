"""Pairs of a run, and pairs of a later one in its complement, as pairs of one space."""

from __future__ import annotations

import numpy as np
import torch

from thalweg.spectra.task import Found, Task


def merge(task: Task, old: Found, new: Found, norm: float, note: str) -> Found:
    r"""Return the Ritz pairs of the span of both; no product is needed.

    ``old`` has residuals, ``A V = V \Theta + R``, and so its complement is only nearly invariant: the pairs that
    ``new`` found there have a part ``V R'v`` in their residuals that the run in the complement could not see. It is
    known, and rotating the pairs of both among themselves removes it.

    Args:
        task: The operator, for inner products.
        old: Pairs.
        new: Pairs whose vectors, and defects, are orthogonal to those of ``old``.
        norm: Largest magnitude of an eigenvalue seen.
        note: What to say.
    """
    rows = torch.cat([old.rows, new.rows])
    shares = np.zeros((len(rows), old.shares.shape[1] + new.shares.shape[1]))
    shares[: len(old.rows), : old.shares.shape[1]] = old.shares
    shares[len(old.rows) :, old.shares.shape[1] :] = new.shares
    defects = torch.cat([old.defects, new.defects])
    overlap = task.operator.space.inner(defects, rows)
    leak = shares @ overlap.to("cpu", torch.float64).numpy()
    small = np.diag(np.concatenate([old.values, new.values]))
    small[: len(old.rows), len(old.rows) :] = leak[: len(old.rows), len(old.rows) :]
    small[len(old.rows) :, : len(old.rows)] = leak[: len(old.rows), len(old.rows) :].T
    values, turn = np.linalg.eigh(small)
    defects = defects - overlap @ rows
    rows = torch.from_numpy(turn.T.copy()).to(rows) @ rows
    stop = old.stop if new.stop.converged else new.stop
    return Found.of(task, values, rows, stop, norm, defects, turn.T @ shares, (*old.notes, note))
