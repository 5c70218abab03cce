"""Runs whose time the test sets, and a watcher that keeps what it is told."""

from __future__ import annotations

from typing import Any

from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.run import Run
from prunekit.utils.phases.watcher import Watched


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    def begin(self, run: Watched) -> None: ...

    def see(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def tick(self) -> None: ...

    def say(self, text: str) -> None: ...

    def announce(self, text: str) -> None: ...

    def end(self, failed: bool) -> None: ...


def made(*watchers: Any, memory: int = 5_000_000_000) -> tuple[Run, Clock]:
    clock = Clock()
    return Run(watchers, clock, lambda: memory, ticking=False), clock
