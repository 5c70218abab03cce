"""The user's command, started once an alarm, without a shell; one at a time, and not for ever."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable
from prunekit.utils.process.child import end, find_program

_POLL = 0.1


def parse_command(text: str) -> list[str]:
    """The words of a command line. Raises PrunekitError where it can't be split, or its program is not there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise PrunekitError(f"--on-alarm can't be split into words ({error}); check its quotes.") from None
    if not words:
        raise PrunekitError("--on-alarm names no program; give a command such as 'sh re-prune.sh'.")
    found = find_program(words[0])
    if found is None:
        raise PrunekitError(
            f"--on-alarm: there is no program {printable(words[0])!r}; check its name or give its whole path. No shell "
            "reads the command; write 'sh -c \"…\"' where you need one."
        )
    return [found, *words[1:]]


class Command:
    """Runs ``words`` for one alarm after the other. What they print goes to the end of ``log``."""

    def __init__(self, words: list[str], log: Path, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._words, self._log, self._seconds, self._clock = words, log, seconds, clock
        self._process: subprocess.Popen[Any] | None = None
        self._since = 0.0

    @property
    def running(self) -> bool:
        """Whether one was started whose end :meth:`ended` has not told."""
        return self._process is not None

    def start(self, alarm: dict[str, Any]) -> str | None:
        """Start it with ``alarm`` as JSON on stdin. Returns why that was impossible, else None."""
        assert self._process is None
        try:
            # A file, since a pipe must be fed.
            with tempfile.TemporaryFile() as told, self._log.open("ab") as log:
                told.write(json.dumps(alarm).encode() + b"\n")
                told.seek(0)
                self._process = subprocess.Popen(
                    self._words, stdin=told, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            return f"it could not be started: {error.strerror or error}"
        self._since = self._clock()
        return None

    def ended(self) -> str | None:
        """How it ended, None while it runs. One that runs too long is ended."""
        process = self._process
        assert process is not None
        code = process.poll()
        if code is None and self._clock() - self._since < self._seconds:
            return None
        if code is None:
            self.stop()
            return f"it was ended after {self._seconds:g} seconds"
        self._process = None
        return f"exit code {code}" if code >= 0 else f"ended by signal {-code}"

    def wait(self) -> str:
        """How it ended, once it has."""
        while (how := self.ended()) is None:
            time.sleep(_POLL)
        return how

    def stop(self) -> None:
        """End it, where it runs, with all that it started."""
        if self._process is not None:
            end(self._process)
            self._process = None
