"""Progress on a terminal: one line that changes, and one that stays for each phase that has ended."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.watcher import Watched
from prunekit.utils.phases.words import line

_A_SECOND = 4


class OnTerminal:
    """Shows a run on ``console``, a terminal."""

    def __init__(self, console: Any, verbose: bool = False):
        self._console, self._verbose = console, verbose
        self._live: Any = None
        self._run: Watched | None = None

    def begin(self, run: Watched) -> None:
        self._run = run

    def see(self, event: ProgressEvent) -> None:
        if event.what in ("ended", "unneeded"):
            self._stop()
            if event.phase:
                self._console.print(line(event, self._verbose), markup=False, emoji=False, highlight=False)
        elif self._live is None:
            self._start()

    def tick(self) -> None:
        """The line is drawn anew by a thread of its own."""

    def say(self, text: str) -> None:
        """Whoever says it shows it."""

    def announce(self, text: str) -> None:
        self._stop()
        self._console.print(text, markup=False, emoji=False, highlight=False)

    def end(self, failed: bool) -> None:
        self._stop()

    def _start(self) -> None:
        from rich.errors import LiveError
        from rich.live import Live

        live = Live(
            console=self._console,
            transient=True,
            refresh_per_second=_A_SECOND,
            get_renderable=self._line,
            # What is printed meanwhile comes above the line.
            redirect_stdout=False,
            redirect_stderr=True,
        )
        # Another program may show something of its own there.
        with suppress(LiveError):
            live.start()
            self._live = live

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _line(self) -> Any:
        from rich.text import Text

        event = None if self._run is None else self._run.now()
        text = "" if event is None else line(event, self._verbose)
        return Text(text, no_wrap=True, overflow="ellipsis")
