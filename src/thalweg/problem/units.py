"""Bytes and seconds as people read them."""

from __future__ import annotations


def size(number: int) -> str:
    """Format bytes with a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < 1e3 * factor else f"{number / factor:,.0f} {unit}"
    return f"{number} B"


def duration(seconds: float) -> str:
    """Format seconds in the unit that suits them."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
