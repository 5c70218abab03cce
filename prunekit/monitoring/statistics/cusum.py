"""One-sided CUSUM: its limit from a promised rate of false alarms, and how late it finds a shift.

S ← max(0, S + z − k), an alarm where S > h, for z of mean 0 and standard deviation 1 while nothing has changed. Mean
windows until an alarm by Siegmund's approximation (Sequential Analysis, 1985, §2.6) with b = h + 1.166.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

K = 0.5
# Beyond, a figure is as bad as can be, and one window must not decide alone for ever after.
_MOST_Z = 8.0
_OVERSHOOT = 1.166
# A higher limit would find nothing in time.
HIGHEST = 60.0
# An alarm that is over ends after at most 2 (h + 4) windows on average.
_CAP, _MOST_ABOVE = 1.5, 4.0


def run_length(h: float, shift: float = 0.0, *, k: float = K, scale: float = 1.0) -> float:
    """Mean windows until an alarm where z has the mean ``shift`` and the standard deviation ``scale``; with neither it
    is ARL₀ = 2(e^b − b − 1) for k = ½."""
    drift = (shift - k) / scale
    b = h / scale + _OVERSHOOT
    if abs(drift * b) < 1e-4:
        return b * b
    if -2 * drift * b > 700:
        return math.inf
    return (math.exp(-2 * drift * b) + 2 * drift * b - 1) / (2 * drift * drift)


@cache
def limit(windows: float, reference: int) -> float:
    """h for one false alarm in so many ``windows`` on average, where mean and standard deviation of z come from
    ``reference`` windows: the rate is averaged over what these may be wrong by, so that few windows cost a
    higher limit. At most HIGHEST: what it gives then, :func:`false_rate` tells."""
    low, high = 0.0, HIGHEST
    if false_rate(high, reference) > 1 / windows:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if false_rate(middle, reference) > 1 / windows else (low, middle)
    return high


def false_rate(h: float, reference: int) -> float:
    """False alarms a window of the limit ``h``, where z comes from ``reference`` windows."""
    errors, chances = _estimates(reference)
    return float(sum(p / run_length(h, d, scale=s) for (d, s), p in zip(errors, chances, strict=True)))


@cache
def _estimates(reference: int) -> tuple[list[tuple[float, float]], list[float]]:
    """What z of a healthy log may have for mean and standard deviation, each with its chance."""
    from scipy.special import chdtri

    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    weights = weights / weights.sum()
    free = max(reference - 1, 1)
    places = (np.arange(15) + 0.5) / 15
    scales = [math.sqrt(free / chdtri(free, 1 - place)) for place in places]
    pairs = [(float(node) / math.sqrt(reference) * scale, scale) for scale in scales for node in nodes]
    return pairs, [float(weight) / len(scales) for _ in scales for weight in weights]


def detectable(h: float, windows: int = 10) -> float:
    """The sustained shift, in standard deviations, that is found after so many windows on average."""
    low, high = 0.0, _MOST_Z
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if run_length(h, middle) > windows else (low, middle)
    return high


@dataclass(frozen=True)
class Cusum:
    """A running sum ``s`` and whether its alarm is ``active``: from where it passes the limit until it is back at 0."""

    s: float = 0.0
    active: bool = False

    def after(self, z: float, h: float, k: float = K) -> Cusum:
        """With one more window. The sum is held at 1.5 h, and at h + 4 where that is less, so that an alarm ends some
        windows after its cause."""
        s = max(0.0, self.s + max(-_MOST_Z, min(_MOST_Z, z)) - k)
        return Cusum(min(s, _CAP * h, h + _MOST_ABOVE), s > h or (self.active and s > 0))
