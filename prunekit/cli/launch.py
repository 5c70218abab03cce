"""A command that a launcher started several times: whether it shares its work, who talks to the user, how all end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import typer

from prunekit.utils.process import ranks
from prunekit.utils.process.launcher import launched
from prunekit.utils.process.stopping import undisturbed

_sharing: set[str] = set()
_silenced = False


def on_all_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """Mark a command, which takes ``device``, as one whose work ranks share out: they join before it and leave after.
    It has to write files on rank 0 alone; what it prints on the others is not seen."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        ranks.join(arguments["device"])
        command(**arguments)
        ranks.leave()

    _sharing.add(command.__name__)
    return run


def begin(command: str | None, note: Callable[[str], None]) -> None:
    """Where a launcher started ``command`` several times, the first process goes on; the others too where it shares
    out its work, without a word, and end else."""
    told = launched()
    if told is None:
        return
    rank, size = told
    if command not in _sharing:
        if rank:
            raise typer.Exit
        note(f"`prunekit {command}` is the work of one process, so {size - 1} of the {size} that were started end.")
    elif rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for the whole run)


def is_quiet() -> bool:
    """Whether it is not for this process to tell the user of anything."""
    return not ranks.is_first()


@contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Where ``wanted``, the user is told of errors alone while the block runs."""
    global _silenced
    before, _silenced = _silenced, wanted
    try:
        yield
    finally:
        _silenced = before


def is_silenced() -> bool:
    """Whether the user wants to be told of errors alone."""
    return _silenced


def end_all(code: int, message: str, tell: Callable[[], None] = lambda: None) -> None:
    """Let all ranks end because of ``message``, which one of them has to ``tell``. Where there are others, this process
    ends here with the exit ``code``: it may be waiting for what never comes."""
    # The launcher ends all processes when the first one has gone.
    with undisturbed():
        together = ranks.size() > 1
        ranks.fail(message, tell)
        if together:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
