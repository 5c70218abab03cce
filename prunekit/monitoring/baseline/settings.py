"""What a watch is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunekit.errors import PrunekitError
from prunekit.monitoring.signals.plain import LEAST_VALUES

_MOST_WINDOW = 1_000_000


@dataclass(frozen=True)
class WatchConfig:
    """``window`` requests are judged together; all signals together may give ``false_alarms`` a year; the log holds
    ``requests_per_day`` (None: as its times tell). ``max_error_rate`` and ``max_rework_rate`` are the bounds of what
    people do with answers (None: from the reference), each wrongly passed with a chance of at most ``alpha``, ever. Of
    a log of several models, ``served_name`` is the one that is watched (None: all lines are of one)."""

    window: int = 200
    false_alarms: float = 1.0
    requests_per_day: float | None = None
    max_error_rate: float | None = None
    max_rework_rate: float | None = None
    alpha: float = 0.05
    served_name: str | None = None

    def __post_init__(self) -> None:
        if not LEAST_VALUES <= self.window <= _MOST_WINDOW:
            raise PrunekitError(f"A window holds from {LEAST_VALUES} to {_MOST_WINDOW:,} requests, got {self.window}.")
        if not (math.isfinite(self.false_alarms) and 0 < self.false_alarms <= 365):
            raise PrunekitError(f"False alarms a year must be above 0 and at most 365, got {self.false_alarms}.")
        rate = self.requests_per_day
        if rate is not None and not (math.isfinite(rate) and 0 < rate <= 1e12):
            raise PrunekitError(f"Requests a day must be above 0, got {rate}.")
        for name in ("max_error_rate", "max_rework_rate", "alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise PrunekitError(f"{name.replace('_', ' ').capitalize()} must be between 0 and 1, got {value}.")
