"""Progress as lines: on stderr where there is no terminal, and in a log file."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.watcher import Watched
from prunekit.utils.phases.words import duration, line

# Seconds between two lines of one phase; in detail; and how long a run is silent, for most are over by then.
_EVERY, _EVERY_IN_DETAIL, _SILENT = 60.0, 10.0, 20.0
# What a log file begins with: only such a one is written to.
_OWN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d prunekit")
_STAMP = "%Y-%m-%d %H:%M:%S"


class Lines:
    """Gives ``write`` a line for each phase that has ended, and one a minute (``verbose``: every ten seconds, and one
    where a phase begins). A run of less than ``silent`` seconds gives none."""

    def __init__(self, write: Callable[[str], None], verbose: bool = False, silent: float = 0.0):
        self._write, self._verbose = write, verbose
        self._every = _EVERY_IN_DETAIL if verbose else _EVERY
        self._silent = 0.0 if verbose else silent
        self._held: list[str] | None = []
        self._run: Watched | None = None
        self._last = 0.0
        # Steps are told of by the thread that works, and ticks by another.
        self._lock = threading.RLock()

    def begin(self, run: Watched) -> None:
        self._run, self._last = run, run.began

    def see(self, event: ProgressEvent) -> None:
        with self._lock:
            # Of loading and the like, that it takes long is all there is to tell.
            if event.what in ("ended", "unneeded"):
                if event.phase:
                    self._put(line(event, self._verbose))
            elif event.what == "begun" and self._verbose:
                self._put(line(event, True))
            else:
                self._now_and_then(event)

    def tick(self) -> None:
        assert self._run is not None
        # Before the lock: a step takes that of the run first.
        event = self._run.now() if self._run.clock() - self._last >= self._every else None
        with self._lock:
            self._let_out()
            if event is not None:
                self._now_and_then(event)

    def say(self, text: str) -> None:
        """Whoever says it shows it on stderr."""

    def announce(self, text: str) -> None:
        with self._lock:
            self._write(text)

    def end(self, failed: bool) -> None:
        with self._lock:
            self._let_out()

    def _now_and_then(self, event: ProgressEvent) -> None:
        assert self._run is not None
        now = self._run.clock()
        if now - self._last >= self._every:
            self._put(line(event, self._verbose))

    def _put(self, text: str) -> None:
        assert self._run is not None
        self._last = self._run.clock()
        if self._held is None or not self._silent:
            self._write(text)
        else:
            self._held.append(text)
            self._let_out()

    def _let_out(self) -> None:
        """What was held back, once the run has taken long enough."""
        assert self._run is not None
        if self._held is not None and self._run.clock() - self._run.began >= self._silent:
            held, self._held = self._held, None
            for text in held:
                self._write(text)


def on_stderr(verbose: bool) -> Lines:
    """Lines for whoever reads stderr, as it is when they are written."""

    def write(text: str) -> None:
        # Hours of work are worth more than what is said of them: the reader may be gone.
        with suppress(OSError, ValueError):
            print(f"prunekit: {text}", file=sys.stderr, flush=True)  # noqa: T201

    return Lines(write, verbose, _SILENT)


class Log(Lines):
    """Lines with the time of the clock, at the end of ``file``. Raises PrunekitError where that can't be."""

    def __init__(self, file: Path, command: str, verbose: bool = False):
        super().__init__(self._stamped, verbose)
        self._command, self._broken = command, False
        self._handle: TextIO | None = _opened(file)

    def begin(self, run: Watched) -> None:
        super().begin(run)
        self._stamped(f"prunekit {printable(self._command)}".rstrip())

    def say(self, text: str) -> None:
        self._stamped(printable(text))

    def end(self, failed: bool) -> None:
        super().end(failed)
        if self._run is not None:
            took = duration(self._run.clock() - self._run.began)
            self._stamped(f"{'stopped' if failed else 'finished'} after {took}")

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(OSError):
                handle.close()

    def _stamped(self, text: str) -> None:
        if self._handle is None:
            return
        try:
            self._handle.write(f"{time.strftime(_STAMP)} {text}\n")
            self._handle.flush()
        except (OSError, ValueError) as error:
            # Hours of work are worth more than their log.
            self.close()
            with suppress(OSError, ValueError):
                print(f"prunekit: the log ends here: {error}", file=sys.stderr)  # noqa: T201


def _opened(file: Path) -> TextIO:
    """``file``, to be added to. Raises PrunekitError where it is no log of prunekit's, or can't be written to."""
    try:
        handle = os.open(
            file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0), 0o666
        )
    except OSError as error:
        raise PrunekitError(
            f"The log {file} can't be written: {error.strerror or error}. Name another file with --log."
        ) from None
    regular = stat.S_ISREG(os.fstat(handle).st_mode)
    # A pipe has no end to go to, and nothing to read.
    made = os.fdopen(handle, "a+" if regular else "w", encoding="utf-8", errors="backslashreplace")
    if regular and os.fstat(handle).st_size:
        made.seek(0)
        try:
            begin = made.read(40)
        except ValueError:
            begin = ""
        if not _OWN.match(begin):
            made.close()
            raise PrunekitError(f"{file} is no log that prunekit wrote, so nothing is added to it; name another --log.")
    return made
