"""The lines of a log as bytes, with where each begins: plain or gzipped, from any place on, of bounded length."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable

# A request with a prompt of 128,000 tokens takes about 1 MiB.
LONGEST = 8 << 20
_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"
# By so many first bytes a file is known again.
HEAD = 1024


class Line(NamedTuple):
    """``data`` is None where the line is longer than LONGEST, ``whole`` tells whether a line end was there.
    ``begin`` and ``end`` count unpacked bytes."""

    data: bytes | None
    begin: int
    end: int
    whole: bool


class CutShort(Exception):
    """A packed file ends before its end marker."""


def lines(path: Path, start: int = 0) -> Iterator[Line]:
    """The lines of ``path`` from the byte ``start`` on. Raises PrunekitError where it can't be read, CutShort where a
    packed file ends early."""
    with opened(path) as data:
        _skip(data, start)
        held, begin, dropped = b"", start, 0
        while block := _read(path, data):
            *whole, tail = block.split(b"\n")
            for part in whole:
                size = dropped + len(held) + len(part) + 1
                yield Line(None if dropped or size > LONGEST else held + part, begin, begin + size, True)
                begin, held, dropped = begin + size, b"", 0
            # A line that is too long is counted, not kept.
            if dropped or len(held) + len(tail) > LONGEST:
                dropped, held = dropped + len(held) + len(tail), b""
            else:
                held += tail
        if held or dropped:
            yield Line(None if dropped else held, begin, begin + dropped + len(held), False)


def head(path: Path, most: int = HEAD) -> tuple[str, int]:
    """SHA-256 of the first bytes (unpacked), and of how many."""
    with opened(path) as data:
        try:
            first = data.read(most)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            first = b""
    return hashlib.sha256(first).hexdigest(), len(first)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a regular file. Raises PrunekitError in one sentence where there are none."""
    shown = printable(str(path))
    try:
        # A pipe that nobody writes to must not stop this for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise PrunekitError(f"The log {shown} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise PrunekitError(f"The log {shown} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        what = "a folder; give the files inside it" if stat.S_ISDIR(kind) else "a pipe or a device; write it to a file"
        raise PrunekitError(f"The log {shown} is {what}.")
    with os.fdopen(descriptor, "rb", buffering=0) as raw:
        packed = os.pread(descriptor, 2, 0) == _GZIP
        data: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        yield data


def _read(path: Path, data: IO[bytes]) -> bytes:
    try:
        return data.read(_PIECE)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CutShort(str(error)) from None
    except OSError as error:
        raise PrunekitError(f"The log {printable(str(path))} can't be read: {error.strerror or error}.") from None


def _skip(data: IO[bytes], start: int) -> None:
    if not start:
        return
    try:
        data.seek(start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CutShort(str(error)) from None
