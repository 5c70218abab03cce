"""The Pareto front of models: those that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float] | None]) -> list[bool]:
    """For (cost, loss) of each, less of both is better: whether no other point is at most as large in both and smaller
    in one. None, where one of the two is not known, is never on the front."""
    return [point is not None and not any(_beats(other, point) for other in points if other) for point in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
