"""Percentiles with intervals that hold whatever the distribution, where failed requests count as infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95
# A drift is told above this share, and where it is less probable than this without one.
MOST_DRIFT, SURE = 0.05, 0.01
HOW = "order statistics; each bound holds with 95 %"


@dataclass(frozen=True)
class Quantile:
    """The ``share`` quantile of ``count`` values (nearest rank) with a lower and an upper bound, each of which holds
    with 95 %. A bound is None where so few values have none, a value None where there are no values; infinity is a
    request that failed. ``high`` is None below 59 values for p95, and below 299 for p99."""

    share: float
    value: float | None
    low: float | None
    high: float | None
    count: int

    @property
    def status(self) -> str:
        if self.value is None:
            return "not measured"
        return "too few" if self.high is None else "measured"

    def to_dict(self) -> dict[str, Any]:
        """JSON values: infinite ones are None, and ``failed`` says so."""
        values = {name: getattr(self, name) for name in ("value", "low", "high")}
        finite = {name: each if each is not None and math.isfinite(each) else None for name, each in values.items()}
        failed = [name for name, each in values.items() if each is not None and math.isinf(each)]
        return {"share": self.share, **finite, "count": self.count, "failed": failed, "status": self.status, "how": HOW}


def quantile(values: Sequence[float], share: float, level: float = LEVEL) -> Quantile:
    """The quantile of independent ``values``, in any order.

    The upper bound is the k-th smallest value with the least k for which P(Binomial(n, share) < k) ≥ ``level``, the
    lower bound the k-th smallest with the greatest k for which P(Binomial(n, share) ≥ k) ≥ ``level``.
    """
    count = len(values)
    if not count:
        return Quantile(share, None, None, None, 0)
    ordered = sorted(values)
    low, high = ranks(count, share, level)
    value = ordered[max(0, math.ceil(share * count - 1e-9) - 1)]
    return Quantile(
        share,
        value,
        None if low is None else ordered[low - 1],
        None if high is None else ordered[high - 1],
        count,
    )


def ranks(count: int, share: float, level: float = LEVEL) -> tuple[int | None, int | None]:
    """Which of ``count`` ordered values (from 1 on) bound the quantile from below and above; None: no one does."""
    from scipy.stats import binom

    # The least k with P(B ≤ k - 1) ≥ level.
    high = int(binom.ppf(level, count, share)) + 1
    # P(B ≥ k) ≥ level is P(B ≤ k - 1) ≤ 1 - level.
    low = int(binom.ppf(1 - level, count, share))
    while low + 1 <= count and binom.cdf(low, count, share) <= 1 - level:
        low += 1
    while low > 0 and binom.cdf(low - 1, count, share) > 1 - level:
        low -= 1
    return (low or None), (high if high <= count else None)


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of the ratios of ``count`` blocks, endpoint over baseline, with its 95 % interval by Student's
    distribution on their logarithms (None of fewer than two). ``failed`` blocks have no such figure, and then there is
    no ratio."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    failed: int = 0
    how: str = "geometric mean over blocks, 95 % interval by Student's t on logarithms"

    @property
    def status(self) -> str:
        if self.value is None:
            return "not measured"
        return "measured" if self.low is not None else "too few"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "status": self.status}


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio second/first of ``pairs``, one a block. There is none where a figure of any block is not positive and
    finite: without the blocks that failed it would speak of the good ones alone."""
    from prunekit.utils.numerics.student import half_interval

    count = len(pairs)
    failed = sum(not (0 < before < math.inf and 0 < after < math.inf) for before, after in pairs)
    if failed:
        how = f"none: in {failed} of {count} blocks requests of an endpoint failed, or were not counted"
        return Ratio(None, count=count, failed=failed, how=how)
    if not count:
        return Ratio(None)
    logs = [math.log(after / before) for before, after in pairs]
    mean = sum(logs) / count
    if count < 2:
        return Ratio(math.exp(mean), count=count)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in logs) / (count - 1))
    half = min(half_interval(deviation / math.sqrt(count), count), 300.0)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count)


@dataclass(frozen=True)
class Trend:
    """How ``blocks`` of one or more courses changed from their first to their last on average, as a share (None: too
    few to tell), and how probable so large a change is where there is none."""

    change: float | None = None
    p: float | None = None
    blocks: int = 0

    @property
    def is_shown(self) -> bool:
        """Whether it is large enough to matter, and hardly chance."""
        return self.change is not None and self.p is not None and self.p < SURE and abs(self.change) > MOST_DRIFT

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "shown": self.is_shown, "how": "least squares over blocks, a level for each course"}


def trend(courses: Sequence[Sequence[tuple[float, float]]]) -> Trend:
    """The common slope of ``courses``, each (place from 0 to 1, logarithm of a time) by block, by least squares with a
    level for each course, and Student's test of it. Blocks are compared, not requests: those of one block are slow
    together."""
    from scipy.special import stdtr

    places, values = [], []
    for course in courses:
        if len(course) > 1:
            middle = [sum(each[part] for each in course) / len(course) for part in (0, 1)]
            places += [place - middle[0] for place, _ in course]
            values += [value - middle[1] for _, value in course]
    count, spread = len(values), sum(each**2 for each in places)
    freedom = count - sum(len(course) > 1 for course in courses) - 1
    if freedom < 2 or not spread:
        return Trend(blocks=count)
    slope = sum(place * value for place, value in zip(places, values, strict=True)) / spread
    left = sum((value - slope * place) ** 2 for place, value in zip(places, values, strict=True))
    error = math.sqrt(left / freedom / spread)
    p = 2 * float(stdtr(freedom, -abs(slope) / error)) if error else float(slope == 0)
    return Trend(math.expm1(slope), p, count)
