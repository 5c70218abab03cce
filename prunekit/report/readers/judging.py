"""Verdicts in files, and intervals of what was measured by windows."""

from __future__ import annotations

from prunekit.evaluation.verdict import BROKEN, BROKEN_ABOVE, COSTS, FINE, FINE_UP_TO, LEAST_AGREEMENT
from prunekit.report.facts.fields import Fields

_WORDS = (FINE, COSTS, BROKEN)


def checked_word(said: Fields, name: str) -> str:
    """A verdict's word. Raises PrunekitError where it is none."""
    word = said.text(name)
    if word not in _WORDS:
        raise said.wrong(name, f"one of {', '.join(_WORDS)}")
    return word


def word_of(loss_added: float, agreement: float | None) -> str:
    """The verdict on a loss, in nats a token, and the share of first choices that are the dense model's."""
    if agreement is not None and agreement < LEAST_AGREEMENT:
        return BROKEN
    return FINE if loss_added <= FINE_UP_TO else COSTS if loss_added <= BROKEN_ABOVE else BROKEN


def worst(words: list[str]) -> str:
    return max(words, key=_WORDS.index)


def half_width(error: float | None, windows: int | None) -> float | None:
    """Half of the 95 % interval of a mean over ``windows`` with the standard ``error``: by Student's t; by the normal
    distribution where nobody says how many windows there were. None of a single window."""
    if error is None or (windows is not None and windows < 2):
        return None
    if windows is None:
        return 1.96 * error
    from scipy.special import stdtrit

    return float(stdtrit(windows - 1, 0.975)) * error
