"""Verdicts in files, and intervals of what was measured by windows."""

from __future__ import annotations

import math

from prunekit.evaluation.verdict import WORDS
from prunekit.report.facts.fields import Fields
from prunekit.utils.numerics.student import half_interval


def checked_word(said: Fields, name: str) -> str:
    """A verdict's word. Raises PrunekitError where it is none."""
    word = said.text(name)
    if word not in WORDS:
        raise said.wrong(name, f"one of {', '.join(WORDS)}")
    return word


def bounds(
    value: float | None, half: float | None, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float] | None:
    """The interval of ``value``, cut at what can be; None where there is none."""
    if value is None or half is None:
        return None
    # The value itself may lie outside what can be, by the last bit.
    return min(value, max(least, value - half)), max(value, min(most, value + half))


def half_width(error: float | None, windows: int | None) -> float | None:
    """Half of the 95 % interval of a mean over ``windows`` with the standard ``error``: by Student's t; by the normal
    distribution where nobody says how many windows there were. None of a single window."""
    if error is None or (windows is not None and windows < 2):
        return None
    return 1.96 * error if windows is None else half_interval(error, windows)
