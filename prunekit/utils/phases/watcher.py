"""Who is told of a run, and what it may ask of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prunekit.utils.phases.event import ProgressEvent


class Watched(Protocol):
    """A run: the ``clock`` it goes by, when it ``began`` by that, and how it stands."""

    clock: Callable[[], float]
    began: float

    def now(self) -> ProgressEvent | None:
        """How the phase that is under way stands; None between two."""


class Watcher(Protocol):
    """Is told of every event of a run, and every second, from another thread, that time has passed. ``say`` is for
    sentences that others show, ``announce`` for those that nobody else does."""

    def begin(self, run: Watched) -> None: ...

    def see(self, event: ProgressEvent) -> None: ...

    def tick(self) -> None: ...

    def say(self, text: str) -> None: ...

    def announce(self, text: str) -> None: ...

    def end(self, failed: bool) -> None: ...
