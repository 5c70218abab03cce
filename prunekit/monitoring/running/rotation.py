"""A log that was moved away and begun anew: which files are to be read, and from where."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.log.lines import head
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Place
from prunekit.utils.names import printable

# logrotate, newsyslog and Python's handlers: log.1, log.2.gz, log-20260102, log.2026-01-02_03-04-05
_SUFFIX = re.compile(r"[.-]\d[\dT:_-]{0,30}(\.gz)?")
_MOST_SIBLINGS = 1000


@dataclass(frozen=True)
class Mark:
    """How far a file was read, by its bytes as they are unpacked, and by what it is known again: SHA-256 of its first
    ``head_length`` bytes."""

    offset: int = 0
    skip: int = 0
    head: str = ""
    head_length: int = 0
    inode: int = 0

    @property
    def place(self) -> Place:
        """Where reading goes on."""
        return Place(self.offset, self.skip)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def mark(path: Path, place: Place) -> Mark:
    """The mark of a file that was read up to ``place``."""
    digest, length = head(path)
    return Mark(place.offset, place.skip, digest, length, path.stat().st_ino)


def is_same(path: Path, before: Mark) -> bool:
    """Whether ``path`` is the file that ``before`` is of, perhaps longer."""
    if not before.head_length:
        return True
    if head(path, before.head_length) != (before.head, before.head_length):
        return False
    # Two logs may begin alike, but one that is shorter than what was read was begun anew.
    return _is_packed(path) or path.stat().st_size >= before.offset


def to_read(path: Path, before: Mark, problems: Problems) -> list[tuple[Path, Place]]:
    """The files that hold what came after ``before``, in order, and where each begins: the log itself, and where it was
    rotated first the rest of the file it was, and those between. What can't be found is counted as lost."""
    if is_same(path, before):
        return [(path, before.place)]
    siblings = _siblings(path)
    old = next((at for at, each in enumerate(siblings) if _is_old(each, before)), None)
    if old is None:
        problems.add("lost", printable(path.name))
        return [(path, Place())]
    return [(siblings[old], before.place), *((each, Place()) for each in siblings[old + 1 :]), (path, Place())]


def found_again(path: Path, file: Path, begun: Mark) -> Path | None:
    """Where the ``file`` that ``begun`` is of is now: a rotation of the log ``path`` may have renamed it since."""
    if _is_old(file, begun):
        return file
    return next((each for each in _siblings(path) if _is_old(each, begun)), None)


def _is_old(path: Path, before: Mark) -> bool:
    try:
        return is_same(path, before)
    except (OSError, PrunekitError):  # removed meanwhile
        return False


def _siblings(path: Path) -> list[Path]:
    """What rotation made of the log, the oldest first."""
    found = []
    for each in path.parent.iterdir():
        if each.name.startswith(path.name) and _SUFFIX.fullmatch(each.name[len(path.name) :]) and each.is_file():
            found.append((each.stat().st_mtime_ns, each.name, each))
            if len(found) >= _MOST_SIBLINGS:
                break
    return [each for _, _, each in sorted(found)]


def _is_packed(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(2) == b"\x1f\x8b"
