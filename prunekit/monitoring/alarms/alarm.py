"""An alarm as others get it, and which alarms are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from prunekit.monitoring.verdicts.rule import SEVERITY


@dataclass(frozen=True)
class Alarm:
    """A verdict that calls for action. ``id`` stays the same until it ends; times are seconds since 1970."""

    id: str
    verdict: str
    reasons: tuple[str, ...]
    do: str
    window: int
    requests: int
    began: float
    ended: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what a command reads on stdin."""
        return {
            "format": "prunekit-watch-alarm",
            "version": 1,
            "status": "firing" if self.ended is None else "resolved",
            **asdict(self),
            "began": iso(self.began),
            "ended": None if self.ended is None else iso(self.ended),
        }


def alarm_of(data: dict[str, Any]) -> Alarm:
    """An alarm from its fields as JSON keeps them."""
    return Alarm(**{**data, "reasons": tuple(data["reasons"])})


def iso(seconds: float) -> str:
    """A time as RFC 3339 writes it, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_due(verdict: str, told: dict[str, float], now: float, cool_down: float) -> bool:
    """Whether an alarm is to be told: none as severe was, in the last ``cool_down`` seconds. ``told`` holds when each
    verdict was told last."""
    return not any(
        SEVERITY.get(other, 0) >= SEVERITY[verdict] and 0 <= now - at < cool_down for other, at in told.items()
    )
