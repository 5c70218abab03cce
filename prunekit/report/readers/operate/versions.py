"""What readers of files that prunekit wrote in service have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import PurePath

from prunekit.errors import PrunekitError
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place

SIDES = ("baseline", "endpoint")
"""What a load test calls the dense model's server and the other one, in that order."""
_VERSION = 1
# The last second of the year 9999.
_LAST = 253_402_300_799.0


def check_version(data: Fields, command: str) -> None:
    """Raises PrunekitError where the file is of another version than this."""
    if data.count("version") != _VERSION:
        raise PrunekitError(
            f"{data.file} is of version {data.count('version')}, and this prunekit reads version {_VERSION}; run "
            f"`{command}` again, or use the prunekit that wrote it."
        )


def flag_lines(place: Place, sentences: Sequence[str]) -> Iterator[str]:
    """What a file says that a reader must know, each with the file's name."""
    for each in sentences:
        yield f"{place.name}: {each}"


def bare(name: str) -> str:
    """A model's name; of a path its last part alone."""
    return clipped(PurePath(name).name or name) if name.startswith(("/", ".", "~")) else name


def utc(said: Fields, name: str) -> str:
    """A time in seconds since 1970, as a date in UTC; nothing where there is none."""
    seconds = said.maybe(name, most=_LAST)
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
