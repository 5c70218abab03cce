"""A block that is given up at a time that may be put off."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Watchdog:
    """Ends the ``async with`` block at the second :attr:`deadline` of the event loop's clock, which the block may set
    anew; :attr:`expired` tells so afterwards. The block must not catch CancelledError."""

    def __init__(self, seconds: float):
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + seconds
        self.expired = False
        self._task: asyncio.Task[object] | None = None
        self._handle: asyncio.TimerHandle | None = None

    def allow(self, seconds: float) -> None:
        """So many seconds from now on."""
        self.deadline = self._loop.time() + seconds
        # Earlier than it was set to look.
        if self._handle is not None and self._handle.when() > self.deadline:
            self._handle.cancel()
            self._look()

    def _look(self) -> None:
        if self._loop.time() < self.deadline:
            self._handle = self._loop.call_at(self.deadline, self._look)
        elif self._task is not None:
            self.expired = True
            self._task.cancel()

    async def __aenter__(self) -> Watchdog:
        self._task = asyncio.current_task()
        self._handle = self._loop.call_at(self.deadline, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._handle is not None:
            self._handle.cancel()
        if not self.expired:
            return False
        # Python counts requests to cancel from 3.11 on.
        uncancel = getattr(self._task, "uncancel", None)
        left = uncancel() if uncancel is not None else 0
        return kind is not None and issubclass(kind, asyncio.CancelledError) and not left
