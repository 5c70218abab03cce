"""A figure that says where it comes from: measured, predicted, exact, or not measured and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prunekit.utils.numerics.student import half_interval

Status = Literal["measured", "predicted", "exact", "not measured"]


@dataclass(frozen=True)
class Figure:
    """``value`` with its interval from ``low`` to ``high`` where it has one: of what is measured that of 95 %, of what
    is predicted the range in which earlier predictions came true. ``how`` says in a short sentence where it comes
    from, or why there is none."""

    value: float | int | None
    status: Status
    how: str
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what no float holds is null."""
        return {
            "value": _finite(self.value),
            "status": self.status,
            "low": _finite(self.low),
            "high": _finite(self.high),
            "how": self.how,
        }


def exact(value: float | int, how: str) -> Figure:
    return Figure(value, "exact", how)


def predicted(value: float, how: str, came: tuple[float, float] | None = None) -> Figure:
    """``came`` is how much of a predicted gain, 1 - ``value``, really came before, at least and at most."""
    if came is None:
        return Figure(value, "predicted", f"{how}; no interval, for no measurements were compared with it")
    ends = sorted(max(0.0, 1 - share * (1 - value)) for share in came)
    return Figure(value, "predicted", how, *ends)


def unknown(why: str) -> Figure:
    return Figure(None, "not measured", why)


def measured(
    value: float, error: float | None, count: int, how: str, *, least: float = -math.inf, most: float = math.inf
) -> Figure:
    """A mean over ``count`` windows with its standard ``error``: the interval is Student's with count - 1 degrees of
    freedom, cut at what can be (``least``, ``most``). None for ``error``: no interval."""
    if not math.isfinite(value):
        return unknown(f"too large for a number ({how})")
    if error is None or not math.isfinite(error):
        return Figure(value, "measured", how)
    reach = half_interval(error, count)
    # The value itself may lie outside what can be, by the last bit.
    low, high = min(value, max(least, value - reach)), max(value, min(most, value + reach))
    return Figure(value, "measured", how, low, high)


def mapped(figure: Figure, function: Any, how: str) -> Figure:
    """A rising ``function`` of a figure and of the ends of its interval."""
    value, low, high = (None if each is None else function(each) for each in (figure.value, figure.low, figure.high))
    if value is not None and not math.isfinite(value):
        return unknown(f"too large for a number ({how})")
    if high is not None and not math.isfinite(high):
        low = high = None
    return Figure(value, figure.status, how, low, high)


def _finite(value: float | int | None) -> float | int | None:
    return None if value is None or not math.isfinite(value) else value
