"""A phase that is under way, and one that is to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.pace import Pace


@dataclass(eq=False)
class Phase:
    """Number ``number`` of a run (0: none), which ``began`` at that second. It reads or writes so many ``tokens``, what
    it makes is kept in the folder ``place``, and ``foreseen`` says how many seconds it was to take. With ``parts`` its
    steps are phases inside it. Where another process does the work, ``heard`` is how that stands."""

    title: str
    number: int
    pace: Pace
    began: float
    tokens: int | None = None
    place: str | None = None
    parts: bool = False
    foreseen: float | None = None
    kept: float = 0.0
    note: str = ""
    inner: str = ""
    heard: Callable[[], ProgressEvent | None] | None = None


@dataclass(frozen=True)
class Expected:
    """A phase that ``owner`` has said will come."""

    title: str
    owner: object
