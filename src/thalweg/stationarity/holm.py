"""Holm's correction: many tests in one report, one error rate for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InvalidInput, explain


def holm(p: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return adjusted p-values: ``max over j <= i of (m - j + 1) p_(j)``, at most 1, in the order given.

    Rejecting where the result is below 5 % makes any false rejection at all less than 5 % likely, however the tests
    depend on each other (Holm 1979).

    Args:
        p: P-values, shape ``(m,)``. NaN stands for a test that was refused: it stays NaN and does not count in m.

    Returns:
        Shape ``(m,)``.

    Raises:
        InvalidInput: A value outside 0 to 1.

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")]).round(3).tolist()
        [0.03, 0.06, 0.06, nan]
    """
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if values.ndim != 1 or not ((values[known] >= 0) & (values[known] <= 1)).all():
        raise InvalidInput(
            explain(
                f"P-values {values.tolist()!r}",
                "a p-value lies between 0 and 1",
                "Give a list of such numbers, NaN for tests that were refused",
            )
        )
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted
