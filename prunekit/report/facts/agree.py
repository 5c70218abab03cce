"""One figure of what several files say of the same thing, or that they contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunekit.report.facts.claims import (
    CONTRADICTORY,
    EXACT,
    NOT_MEASURED,
    STATUSES,
    Claim,
    Figure,
    missing,
)
from prunekit.report.facts.metrics import METRICS, QUALITY

# Of times and rates, which another run never gives again: the share by which they may differ where their intervals do
# not meet.
_TIMED = 0.05
# Of the same tokens and the same weights on another machine.
_COMPUTED = 2e-3
# What was counted, as files round it.
_COUNTED = 2e-6
# A file's header, and what lies beside it in its folder, are counted by some and not by others.
_ROUNDED = {"blocks_share": 1e-3, "file_bytes": 5e-3}


def resolved(claims: Sequence[Claim]) -> Figure:
    """The figure of ``claims``, which are of one model, form, metric and set-up: that which is best known.

    Where two that are equally well known differ by more than another run would, the figure is contradictory and has no
    value."""
    known = [each.figure for each in claims if each.figure.status != NOT_MEASURED]
    if not known:
        return claims[0].figure if claims else missing("no file says it")
    best = min(STATUSES.index(each.status) for each in known)
    same = [each for each in known if STATUSES.index(each.status) == best]
    # Where one of them is believed, that one.
    first = max(same, key=lambda each: each.believed)
    files = tuple(dict.fromkeys(file for each in same for file in each.files))
    name = claims[0].metric
    if all(_agree(name, first, each) for each in same):
        return replace(first, files=files)
    metric = METRICS[name]
    values = [f"{metric.write(each.value)} ({', '.join(each.files)})" for each in same if each.value is not None]
    said = " or ".join(dict.fromkeys(values))
    return Figure(None, CONTRADICTORY, how=f"{said} {metric.unit}".strip(), files=files)


def _agree(metric: str, first: Figure, second: Figure) -> bool:
    if first.value is None or second.value is None:
        return first.value == second.value
    a, b = first.value, second.value
    if first.status == EXACT:
        return abs(a - b) <= _ROUNDED.get(metric, _COUNTED) * max(abs(a), abs(b))
    if metric in QUALITY:
        return abs(a - b) <= _COMPUTED * max(abs(a), abs(b), 1.0)
    if abs(a - b) <= _TIMED * max(abs(a), abs(b)):
        return True
    bounds = (first.low, first.high, second.low, second.high)
    return None not in bounds and first.low <= second.high and second.low <= first.high  # type: ignore[operator]
