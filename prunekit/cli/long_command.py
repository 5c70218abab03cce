"""Commands that may take long: what they tell meanwhile, and the options that say how much of it."""

from __future__ import annotations

import inspect
import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from prunekit.cli.launch import quiet
from prunekit.errors import PrunekitError
from prunekit.utils.phases.telling import command_run

_PANEL = "Progress"
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no notes: errors alone.", rich_help_panel=_PANEL),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="More progress: tokens a second, what an earlier run has kept, and where.",
        rich_help_panel=_PANEL,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE",
        help="Progress to the end of this file too, with the time.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TELLING: dict[str, Any] = {"quiet": Quiet, "verbose": Verbose, "log": LogFile}
"""The options that every long command has, by their names."""

_before: dict[str, Any] = {}


def told_before(**values: Any) -> None:
    """What was said of the options before the command's name."""
    _before.clear()
    _before.update(values)


def long(command: Callable[..., None]) -> Callable[..., None]:
    """Mark a command as one that may take long: it gets the options --quiet, --verbose and --log, and what it does is
    told of as they say."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        asked = {name: arguments.pop(name, None) or _before.get(name) for name in TELLING}
        with _told(asked):
            command(**arguments)

    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    named = [each.replace(annotation=hints.get(each.name, each.annotation)) for each in own]
    for name, kind in TELLING.items():
        default = None if name == "log" else False
        named.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind))
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **TELLING}
    return run


@contextmanager
def _told(asked: dict[str, Any]) -> Any:
    if asked["quiet"] and asked["verbose"]:
        raise PrunekitError("--quiet and --verbose say opposite things; leave one out.")
    log = logging.getLogger("prunekit")
    level = log.level
    if asked["quiet"]:
        log.setLevel(logging.ERROR)
    how = {"quiet": bool(asked["quiet"]), "verbose": bool(asked["verbose"]), "log": asked["log"]}
    try:
        with quiet(how["quiet"]), command_run(shlex.join(sys.argv[1:]), **how):
            yield
    finally:
        log.setLevel(level)
