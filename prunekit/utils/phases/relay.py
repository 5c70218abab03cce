"""What a command in a child process tells of its phases, inside the phase that waits for it.

    with progress("pruned", 1) as advance, relayed() as variables:
        run_python(module="prunekit", arguments=arguments, variables=variables)

The child writes its last event to a small file, and whoever asks how the phase stands reads it there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.utils.files.leftovers import TemporaryFolder
from prunekit.utils.files.strict_json import read_regular
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.run import current
from prunekit.utils.phases.watcher import Watched

VARIABLE = "PRUNEKIT_RELAY"
_LONGEST = 4096
# A reader needs no more than one event a second.
_EVERY = 0.5

Heard = Callable[[], ProgressEvent | None]


class Relay:
    """Writes how a run stands to ``file``, which a process that waits reads."""

    def __init__(self, file: Path):
        self._file, self._last = file, float("-inf")
        self._run: Watched | None = None

    def begin(self, run: Watched) -> None:
        self._run = run

    def see(self, event: ProgressEvent) -> None:
        self._write(event, event.what != "step")

    def tick(self) -> None:
        assert self._run is not None
        event = self._run.now()
        if event is not None:
            self._write(event, False)

    def say(self, text: str) -> None:
        """The process that waits reads stderr."""

    def announce(self, text: str) -> None:
        """As above."""

    def end(self, failed: bool) -> None:
        """The process that waits sees the end."""

    def _write(self, event: ProgressEvent, now: bool) -> None:
        assert self._run is not None
        clock = self._run.clock()
        if not now and clock - self._last < _EVERY:
            return
        self._last = clock
        # Work is worth more than what is said of it, and that need not outlive a power cut.
        with suppress(OSError, ValueError):
            beside = self._file.with_name(f"{self._file.name}.new")
            beside.write_text(json.dumps(event.to_dict()), encoding="utf-8")
            beside.replace(self._file)


def relay() -> Relay | None:
    """Where a process that waits for this one has asked for it, and not for what this one starts."""
    file = os.environ.pop(VARIABLE, "")
    return Relay(Path(file)) if file and Path(file).parent.is_dir() else None


@contextmanager
def relayed() -> Iterator[Mapping[str, str]]:
    """Variables for a child whose phases are told as parts of the phase that is under way, while the block runs."""
    run = current.get()
    if run is None or not run.busy:
        yield {}
        return
    try:
        folder = TemporaryFolder("prunekit-relay")
    except PrunekitError:
        yield {}
        return
    file = folder.path / "event.json"
    try:
        with run.hearing(lambda: _read(file)):
            yield {VARIABLE: str(file)}
    finally:
        folder.remove()


def _read(file: Path) -> ProgressEvent | None:
    try:
        return ProgressEvent(**json.loads(read_regular(file, _LONGEST)))
    except (OSError, ValueError, TypeError):
        return None
