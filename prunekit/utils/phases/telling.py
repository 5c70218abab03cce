"""Who is told of a run: a terminal, lines on stderr, a log file, a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.phases.event import Listener, ProgressEvent
from prunekit.utils.phases.lines import Log, on_stderr
from prunekit.utils.phases.relay import relay
from prunekit.utils.phases.run import Run, current, running
from prunekit.utils.phases.watcher import Watched, Watcher
from prunekit.utils.process.ranks import is_first


class _Heard:
    """Calls a function of the caller's. What it raises ends the run."""

    def __init__(self, listener: Listener):
        self._listener = listener

    def begin(self, run: Watched) -> None:
        """It is told of events alone."""

    def see(self, event: ProgressEvent) -> None:
        self._listener(event)

    def tick(self) -> None:
        """Called by the thread that works, and by no other."""

    def say(self, text: str) -> None:
        """Sentences are logged."""

    def announce(self, text: str) -> None:
        """Events hold what it says."""

    def end(self, failed: bool) -> None:
        """The last phase has told."""


@dataclass(frozen=True)
class _Asked:
    """``listener`` is told in place of everybody else; None: lines are shown wherever they go."""

    listener: Listener | None


_asked: ContextVar[_Asked | None] = ContextVar("prunekit_listener", default=None)


@contextmanager
def progress(listener: Listener | None = None) -> Iterator[None]:
    """Tell ``listener`` of everything that prunekit's functions do inside the block: of each phase's begin, steps and
    end, a :class:`~prunekit.utils.phases.event.ProgressEvent` each. Without one, progress is shown on stderr also where
    that is no terminal, in lines.

    The listener is called in the thread that works, and what it raises ends that work. Each thread has its own.

    >>> with progress(lambda event: print(event.title, event.left)):  # doctest: +SKIP
    ...     prune("smollm2-135m", "smaller", blocks=0.8)
    own text 94.2
    """
    token = _asked.set(_Asked(listener))
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def phases(*titles: str, more: bool = False) -> Iterator[Run | None]:
    """Say which phases the block has, by the titles that :func:`prunekit.utils.progress.progress` is given; what comes
    of them is told to whom it concerns. Inside a run they are phases of that, and inside a phase parts of it.

    ``more``: others will be named later. Those that do not come are told of as not needed. None where this is not the
    first of several ranks.
    """
    run = current.get()
    if (run is not None and run.busy) or not is_first():
        yield None
        return
    with nullcontext(run) if run is not None else running(Run(_watchers())) as made:
        owner = object()
        made.expect(titles, owner)
        before, made.more = made.more, made.more or more
        try:
            yield made
        finally:
            made.more = before
        made.drop(owner)


def unneeded(title: str, why: str = "") -> None:
    """The phase of that ``title``, if one is expected, does not come; ``why`` is shown in its line."""
    run = current.get()
    if run is not None:
        run.unneeded(title, why)


def foresee(seconds: Mapping[str, float]) -> None:
    """How long phases of the run of this thread will take, by their titles."""
    run = current.get()
    if run is not None:
        run.foresee(seconds)


def keeping(what: str, done: float, total: float) -> None:
    """So much of ``what`` lies where a later run finds it. Nothing: it is needed no more."""
    run = current.get()
    if run is not None:
        if done:
            run.kept[what] = (done, total)
        else:
            run.kept.pop(what, None)


def say(text: str) -> None:
    """Have a sentence logged."""
    run = current.get()
    if run is not None:
        run.say(text)


@contextmanager
def command_run(command: str, *, quiet: bool, verbose: bool, log: Path | None) -> Iterator[Run | None]:
    """The run of a whole command. Raises PrunekitError where the ``log`` can't be written."""
    if not is_first():
        yield None
        return
    told: list[Watcher] = [] if quiet else _shown(verbose, anyway=True)
    if (asked := relay()) is not None:
        told.append(asked)
    file = None if log is None else Log(log, command, verbose)
    try:
        with running(Run(told if file is None else [*told, file])) as run:
            try:
                yield run
            except PrunekitError as error:
                run.say(str(error))
                raise
    finally:
        if file is not None:
            file.close()


def _watchers() -> Sequence[Watcher]:
    asked = _asked.get()
    if asked is None:
        return _shown(False, anyway=_in_notebook())
    return _shown(False, anyway=True) if asked.listener is None else [_Heard(asked.listener)]


def _shown(verbose: bool, *, anyway: bool) -> list[Watcher]:
    """What shows progress on stderr: on a terminal always, elsewhere where it is wanted ``anyway``."""
    if _is_terminal():
        from prunekit.utils.phases.live import OnTerminal
        from prunekit.utils.terminal import SafeConsole

        return [OnTerminal(SafeConsole(stderr=True), verbose)]
    return [on_stderr(verbose)] if anyway else []


def _is_terminal() -> bool:
    if _in_notebook():
        return False
    try:
        from prunekit.utils.terminal import SafeConsole
    except ImportError:  # a bare GPU machine
        return False
    return SafeConsole(stderr=True).is_terminal


def _in_notebook() -> bool:
    """A notebook's stderr is no terminal, and what returns to the start of a line is broken there."""
    stream: Any = sys.stderr
    return type(stream).__module__.partition(".")[0] == "ipykernel"


__all__ = ["ProgressEvent", "command_run", "keeping", "phases", "progress", "say", "unneeded"]
