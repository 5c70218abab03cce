"""Intervals of means by Student's distribution."""

from __future__ import annotations


def half_interval(error: float, count: int) -> float:
    """Half of the 95 % interval of a mean over ``count`` values with the standard ``error``."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * error
