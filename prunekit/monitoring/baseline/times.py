"""When a log's requests came: how many a day, and on which days of the week, whatever single clocks say."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.monitoring.log.request import Request

_DAY = 86400
# Days without a request after which what follows is no part of the log, but of a broken clock.
_LONGEST_GAP = 7


@dataclass(frozen=True)
class Span:
    """The days that follow each other: ``first`` and ``last`` time in seconds since 1970, requests ``counted`` in them
    and those ``outside``, and ``weekdays``, 0 for Monday."""

    first: float | None
    last: float | None
    counted: int
    outside: int
    weekdays: frozenset[int]

    @property
    def per_day(self) -> float | None:
        """Requests a day, None where the times span less than a minute."""
        if self.first is None or self.last is None or self.last - self.first < 60:
            return None
        return self.counted / (self.last - self.first) * _DAY


class Times:
    """Requests by their day. Times are from 1990 to 2100, so there are at most 40,178 days."""

    def __init__(self) -> None:
        self._days: dict[int, tuple[int, float, float]] = {}

    def add(self, request: Request) -> None:
        """Count one request that tells its time."""
        if (ts := request.ts) is None or request.is_label:
            return
        day = int(ts // _DAY)
        count, first, last = self._days.get(day, (0, ts, ts))
        self._days[day] = (count + 1, min(first, ts), max(last, ts))

    def span(self) -> Span:
        """From the day of the median request both ways, as far as no gap is longer than a week."""
        days = sorted(self._days)
        total = sum(count for count, _, _ in self._days.values())
        if not total:
            return Span(None, None, 0, 0, frozenset())
        low = high = self._median(days, total)
        while low > 0 and days[low] - days[low - 1] <= _LONGEST_GAP:
            low -= 1
        while high + 1 < len(days) and days[high + 1] - days[high] <= _LONGEST_GAP:
            high += 1
        used = days[low : high + 1]
        counted = sum(self._days[day][0] for day in used)
        weekdays = frozenset((day + 3) % 7 for day in used)  # the first day of 1970 was a Thursday
        return Span(self._days[used[0]][1], self._days[used[-1]][2], counted, total - counted, weekdays)

    def _median(self, days: list[int], total: int) -> int:
        """The place of the day of the request in the middle."""
        before = 0
        for place, day in enumerate(days):
            before += self._days[day][0]
            if 2 * before >= total:
                return place
        return len(days) - 1
