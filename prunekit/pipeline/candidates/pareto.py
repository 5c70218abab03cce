"""Which candidates are worth a look: those that no other one beats in size and quality at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunekit.pipeline.candidates.result import Row


def front(points: Sequence[tuple[float, float] | None]) -> list[bool]:
    """For (cost, loss) of each, less of both is better: whether no other point is at most as large in both and smaller
    in one. None, where one of the two is not known, is never on the front."""
    return [point is not None and not any(_beats(other, point) for other in points if other) for point in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def with_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, told whether they are on the front of file size and loss added."""
    points = [_point(row) for row in rows]
    return tuple(replace(row, pareto=told) for row, told in zip(rows, front(points), strict=True))


def _point(row: Row) -> tuple[float, float] | None:
    size, loss = row.figures["file_bytes"].value, row.figures["loss_added"].value
    return None if size is None or loss is None else (float(size), float(loss))
