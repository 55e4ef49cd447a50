"""Numbers as one writes them in a sentence. None of them is ever NaN."""

from __future__ import annotations

import numpy as np

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    r"""Format a number for prose: about four digits, and powers of ten outside 0.001 to a million.

    Example:
        >>> number(12.34567), number(123456.7), number(0.00001234), number(-0.5)
        ('12.35', '123,457', '1.23\xa0×\xa010⁻⁵', '−0.5')
    """
    if not np.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        digits, power = f"{size:.2e}".split("e")
        text = f"{digits} × 10{str(int(power)).translate(_RAISED)}"
    else:
        text = f"{size:,.0f}" if size >= 1000 else f"{size:.4g}"
    return f"−{text}" if value < 0 else text


def share(value: float, *, up: bool = False) -> str:
    """Format a fraction as a percentage that never rounds something to nothing, or a part to the whole.

    Args:
        value: The fraction.
        up: Round up, for "within".

    Example:
        >>> share(0.357), share(0.0421, up=True), share(0.0004), share(0.9996), share(0.071)
        ('36%', '5%', '0.04%', '99.96%', '7.1%')
    """
    if not np.isfinite(value):
        return "not finite"
    percent = 100 * abs(value)
    sign = "−" if value < 0 else ""
    if up:
        return (
            f"{sign}{np.ceil(round(percent, 6)):.0f}%" if percent >= 1 else f"{sign}{np.ceil(10 * percent) / 10:.1f}%"
        )
    if percent == 0 or 9.95 <= percent < 99.5 or percent == 100 or percent >= 100.5:
        return f"{sign}{percent:,.0f}%"
    if 99.5 <= percent < 100.5:
        digits = next((n for n in range(1, 6) if float(f"{percent:.{n}f}") != 100), 0)
        return f"{sign}{percent:.{digits}f}%"
    return f"{sign}{percent:.2g}%" if percent >= 0.95 else f"{sign}{percent:.1g}%"


def with_error(value: float, error: float) -> str:
    r"""Format an estimate with its standard error, to the digits that the error leaves.

    Example:
        >>> with_error(143.27, 2.31), with_error(-0.01234, 0.00056), with_error(1.5, 0.0)
        ('143.3 ± 2.3', '−0.01234 ± 0.00056', '1.5')
        >>> with_error(3.21e8, 4e6), with_error(140.2, 35.0)
        ('3.21\xa0×\xa010⁸ ± 4.00\xa0×\xa010⁶', '140 ± 35')
    """
    if not np.isfinite([value, error]).all() or error <= 0:
        return number(value)
    if max(abs(value), error) >= 1e6 or error < 1e-6:
        return f"{number(value)} ± {number(error)}"
    decimals = max(1 - int(np.floor(np.log10(error))), 0)
    text = f"{abs(value):,.{decimals}f} ± {error:,.{decimals}f}"
    return f"−{text}" if value < 0 else text


def share_error(value: float, error: float) -> str:
    """Format a fraction with its standard error, in percent.

    Example:
        >>> share_error(0.923, 0.021), share_error(0.5, 0.0004), share_error(0.31, 0.0)
        ('92% ± 2%', '50.00% ± 0.04%', '31%')
    """
    if not np.isfinite([value, error]).all() or error <= 0:
        return share(value)
    decimals = min(max(-int(np.floor(np.log10(100 * error) + 1e-9)), 0), 3)
    text = f"{100 * abs(value):,.{decimals}f}% ± {max(100 * error, 1e-3):.{decimals}f}%"
    return f"−{text}" if value < 0 else text


def count(size: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> count(1, "step"), count(1200, "step")
        ('1 step', '1,200 steps')
    """
    return f"{size:,} {noun}" if size == 1 else f"{size:,} {noun}s"


def fixed(value: float) -> str:
    """Format a ratio or cosine with two decimals while it is small, and no minus before a zero.

    Example:
        >>> fixed(-0.951), fixed(-0.001), fixed(1.168), fixed(7481.2)
        ('−0.95', '0.00', '1.17', '7,481')
    """
    if abs(value) >= 100:
        return number(value)
    text = f"{abs(value):.2f}"
    return f"−{text}" if value < 0 and text != "0.00" else text


def seconds(value: float) -> str:
    """Format a duration.

    Example:
        >>> seconds(0.0123), seconds(12.3), seconds(754), seconds(9000)
        ('0.012 s', '12 s', '12 min 34 s', '2 h 30 min')
    """
    if value < 10:
        return f"{value:.2g} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
