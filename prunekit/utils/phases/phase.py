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

    def seen(self, now: float) -> tuple[float, float]:
        """The share of the phase that tells how long it takes, and the seconds for that: what was done so far, or the
        whole where the process that does the work says what is left."""
        heard = None if self.heard is None else self.heard()
        if heard is None or heard.left_in_all is None:
            return self.pace.share_done, self.pace.spent
        return 1.0, now - self.began + heard.left_in_all


@dataclass(frozen=True)
class Expected:
    """A phase that ``owner`` has said will come."""

    title: str
    owner: object
