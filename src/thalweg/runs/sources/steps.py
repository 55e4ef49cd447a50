"""Step numbers from the names of checkpoints, and the steps that a regular sequence lacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from thalweg.errors import InvalidInput, explain

StepRule: TypeAlias = "str | re.Pattern[str] | Callable[[str], int | None]"

_NUMBER = r"[-_=.]?(\d+)([km]?)(?![a-z0-9])"
RULES = (
    ("the number after 'step'", re.compile(r"(?<![a-z])(?:global)?[-_]?steps?" + _NUMBER, re.IGNORECASE)),
    ("the number after 'iteration'", re.compile(r"(?<![a-z])iter(?:ation)?s?" + _NUMBER, re.IGNORECASE)),
    ("the number after 'checkpoint'", re.compile(r"(?<![a-z])(?:checkpoint|ckpt|ck|cp)" + _NUMBER, re.IGNORECASE)),
    ("the number after 'epoch'", re.compile(r"(?<![a-z])ep(?:och)?s?" + _NUMBER, re.IGNORECASE)),
    ("the last number", re.compile(r"(\d+)()(?!.*\d)")),
)
"""Tried in this order; the first that finds a number in any of the names is used for all of them."""

_SHARD = re.compile(r"[-_.]\d+-of-\d+$")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Numbered:
    """Steps read from names.

    Attributes:
        rule: The rule in words.
        steps: Per name its step, or None where the rule finds none.
    """

    rule: str
    steps: tuple[int | None, ...]


def stem(name: str) -> str:
    """Drop the suffix of a file of weights, and the number of a shard.

    Example:
        >>> stem("model-00001-of-00002.safetensors")
        'model'
    """
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return _SHARD.sub("", name.removesuffix(suffix))
    return name


def number(names: Sequence[str], rule: StepRule | None = None) -> Numbered:
    r"""Read the step of each checkpoint from its name.

    Args:
        names: Names of folders, files or revisions. In a path, the last part with a number counts.
        rule: A regular expression whose group ``step``, or else first group, is the number; a function from a name
            to a number or None; or None for the first of ``RULES`` that finds a number in any name. After a number,
            k and m mean thousands and millions.

    Raises:
        InvalidInput: The rule cannot be used.

    Example:
        >>> number(["step512", "step1000-tokens4B", "main"])
        Numbered(rule="the number after 'step'", steps=(512, 1000, None))
        >>> number(["a/run3/weights_7.pt", "a/run3/weights_8.pt"]).steps
        (7, 8)
        >>> number(["stage1-step10", "stage2-step10"], r"stage1-step(\d+)").steps
        (10, None)
    """
    if rule is None:
        for words, pattern in RULES:
            steps = tuple(_search(pattern, name) for name in names)
            if any(step is not None for step in steps):
                return Numbered(words, steps)
        return Numbered("no number in any name", (None,) * len(names))
    if callable(rule):
        found = tuple(rule(name) for name in names)
        if not all(step is None or (isinstance(step, int) and not isinstance(step, bool)) for step in found):
            raise _bad_rule(f"The step rule returned {next(s for s in found if not isinstance(s, int | None))!r}")
        return Numbered("the rule given", found)
    try:
        given = re.compile(rule)
    except re.error as error:
        raise _bad_rule(f"The step rule {rule!r} is no regular expression: {error}") from error
    if not given.groups:
        raise _bad_rule(f"The step rule {given.pattern!r} has no group")
    try:
        return Numbered(f"the group of {given.pattern!r}", tuple(_group(given, name) for name in names))
    except ValueError as error:
        raise _bad_rule(f"The step rule {given.pattern!r} finds no whole number: {error}") from error


def _search(pattern: re.Pattern[str], name: str) -> int | None:
    for part in reversed([stem(part) for part in name.split("/")]):
        match = pattern.search(part)
        if match:
            return int(match[1]) * {"k": 1000, "m": 1_000_000}.get(match[2].lower(), 1)
    return None


def _group(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.search(name)
    if match is None:
        return None
    return int(match["step"] if "step" in pattern.groupindex else match[1])


def _bad_rule(found: str) -> InvalidInput:
    return InvalidInput(
        explain(
            found,
            "it must give a whole number for each name, or None to leave a checkpoint out",
            r"Pass for example steps=r'step(\d+)', or a function from a name to a number",
        )
    )


def lacking(steps: Sequence[int]) -> list[tuple[int, int, list[int]]]:
    """Find steps that a regular sequence lacks.

    The usual spacing is the most frequent one, of three intervals or more. An interval of a whole multiple of it is a
    gap where the usual spacing comes before and after it. Where more steps would be missing than there are, the
    sequence is no regular one (bursts of consecutive steps, say), and nothing is said.

    Args:
        steps: In rising order.

    Returns:
        Per gap the steps around it and those that are missing.

    Example:
        >>> lacking([0, 1, 2, 4, 1000, 2000, 3000, 5000, 6000])
        [(3000, 5000, [4000])]
    """
    spacings = [b - a for a, b in pairwise(steps)]
    if not spacings:
        return []
    usual, count = Counter(spacings).most_common(1)[0]
    if count < 3:
        return []
    first = spacings.index(usual)
    last = len(spacings) - 1 - spacings[::-1].index(usual)
    gaps = [
        (a, b, list(range(a + usual, b, usual)))
        for place, (a, b) in enumerate(pairwise(steps))
        if first < place < last and b - a > usual and (b - a) % usual == 0
    ]
    return gaps if sum(len(gone) for _, _, gone in gaps) <= count else []
