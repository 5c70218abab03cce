"""The rates of rejected and reworked answers that must not be passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.evaluation.acceptance.statistics import share
from prunekit.monitoring.baseline.settings import WatchConfig

# Fewer outcomes say too little of a rate.
LEAST_OUTCOMES = 200
# Added to what the reference may be at most: a rise that is noticed and borne.
_MARGIN = 0.01
_LABELS = {"error": "answers rejected or escalated", "rework": "answers not accepted as they were"}


def bounds_of(outcomes: Sequence[int], config: WatchConfig) -> dict[str, dict[str, Any]]:
    """For "error" and "rework" the ``bound`` with where it comes from, or None with why. ``outcomes`` counts those of
    the reference: all, wrong, reworked."""
    given = {"error": config.max_error_rate, "rework": config.max_rework_rate}
    return {
        name: {"what": _LABELS[name], **_bound(outcomes[0], bad, given[name])}
        for name, bad in zip(("error", "rework"), outcomes[1:], strict=True)
    }


def _bound(count: int, bad: int, given: float | None) -> dict[str, Any]:
    rate = bad / count if count else None
    if given is not None:
        return {"bound": given, "reference": rate, "how": "as you said"}
    if count < LEAST_OUTCOMES:
        return {
            "bound": None,
            "reference": rate,
            "how": f"off: the reference tells {count} outcomes, fewer than {LEAST_OUTCOMES}; say a bound yourself",
        }
    highest = _upper(bad, count)
    if highest + _MARGIN >= 0.99:
        return {"bound": None, "reference": rate, "how": "off: nearly all outcomes of the reference are bad"}
    return {
        "bound": highest + _MARGIN,
        "reference": rate,
        "how": f"upper end of the reference's one-sided 95 % interval (Clopper and Pearson), plus {_MARGIN:g}",
    }


def _upper(bad: int, count: int) -> float:
    # The upper end of a two-sided interval of 90 %.
    return share(bad / count, count, 0.1).high
