"""Signals that end a run: Ctrl-C, SIGTERM, SIGHUP. Clean-up is never cut short, and a signal is never lost.

The first signal raises :class:`Stopped`, so that ``with`` and ``finally`` clean up. Python drops exceptions that are
raised in a destructor, a weakref's callback or a C callback; that is noticed, and the process ends there and then. It
also does while a module is imported: libraries in C++ abort where their initialisation is interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

# A run that was told to stop and still works after so many seconds, outside any clean-up, is told again; and ended
# where it still does after so many tries.
_PATIENCE, _TRIES = 5.0, 4
# So many signals during clean-up end it.
_INSISTENCE = 3
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(BaseException):
    """A signal ended the run. ``number`` is the signal's, ``code`` what a shell answers for it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        return 128 + self.number


class Interrupted(Stopped, KeyboardInterrupt):
    """Ctrl-C."""


def _say_nothing_left(number: int) -> None:
    print("prunekit: stopped; nothing half-written was left behind.", file=sys.stderr, flush=True)  # noqa: T201


class _State:
    """Of this process; only the main thread changes it, but for ``told``."""

    def __init__(self) -> None:
        self.active = False
        self.depth = 0
        self.pending: int | None = None
        self.raised: int | None = None
        self.count = 0
        self.again = False
        self.done = threading.Event()
        self.at_once: Callable[[int], None] = _say_nothing_left
        self.base: CodeType | None = None


_state = _State()


def _stopped(number: int) -> Stopped:
    return Interrupted(number) if number == signal.SIGINT else Stopped(number)


def _handle(number: int, frame: FrameType | None) -> None:
    state = _state
    state.count += 1
    if state.depth or (state.raised is not None and not state.again):
        state.pending = state.pending or number
        if state.count > _INSISTENCE:
            _end(state.raised or number)
        return
    if _is_importing(frame, state.base):
        _end(state.raised or number)
    _raise(state.raised or number)


def _is_importing(frame: FrameType | None, base: CodeType | None) -> bool:
    """Whether a module is being imported in ``frame``, or in what called it up to the code ``base``."""
    while frame is not None and frame.f_code is not base:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _raise(number: int) -> None:
    first = _state.raised is None
    _state.raised, _state.pending, _state.again = number, None, False
    if first:
        threading.Thread(target=_watch, args=(_state,), daemon=True).start()
    raise _stopped(number)


def _watch(state: _State) -> None:
    """Tell a run again that went on: a library caught the exception and dropped it."""
    for _ in range(_TRIES):
        if state.done.wait(_PATIENCE):
            return
        while state.depth:
            if state.done.wait(0.1):
                return
        state.again = True
        state.count = 0
        if state.raised is not None and state.active:
            os.kill(os.getpid(), state.raised)
    if not state.done.wait(_PATIENCE) and state.active:
        _end(state.raised or signal.SIGTERM)


def _end(number: int) -> None:
    """End the process now, with what clean-up can be had."""
    state = _state
    state.done.set()
    state.depth += 1
    try:
        state.at_once(number)
    finally:
        os._exit(128 + number)


def stop_quietly() -> None:
    """For a command that is not yet imported: Ctrl-C ends the process with a sentence rather than a traceback."""
    if threading.current_thread() is threading.main_thread():
        _replace(signal.SIGINT, _leave_early)


def _leave_early(number: int, frame: FrameType | None) -> None:
    _end(number)


def _replace(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Install ``handler`` where nobody else has told what the signal does."""
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _leave_early):
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """It was told already, and all is cleaned up."""
    os._exit(128 + (_state.raised or number))


@contextmanager
def stoppable(at_once: Callable[[int], None]) -> Iterator[None]:
    """Signals that end a run raise :class:`Stopped` in the block. Signals that were ignored stay so (``nohup``).

    ``at_once`` is called with the signal's number where no exception can end the block, before the process ends: it
    cleans up and says so. In another thread than the main one nothing is changed.
    """
    global _state
    if threading.current_thread() is not threading.main_thread() or _state.active:
        yield
        return
    _state = _State()
    _state.at_once, _state.active = at_once, True
    _state.base = sys._getframe(2).f_code  # the block's: contextlib lies between
    before: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _handle)
    hook = sys.unraisablehook

    def notice(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Stopped) or dropped.exc_type in (Stopped, Interrupted):
            _end(_state.raised or signal.SIGTERM)
        hook(dropped)

    sys.unraisablehook = notice
    try:
        yield
    finally:
        _state.done.set()
        _state.depth += 1
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
            if _state.raised is not None:
                _replace(number, _leave)
        _state.active = False


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait until the block ends: it cleans up, or does what must not be done by halves. Python handles signals
    in the main thread; in another one nothing can cut the block short, and the main one is not kept from stopping."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        if not _state.depth and _state.pending is not None and _state.raised is None and _state.active:
            _raise(_state.pending)
