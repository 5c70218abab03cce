"""Telling a full disk from other failures: libraries in other languages answer it with exceptions of their own."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What writing beyond a disk, a quota or a limit on file sizes is answered with.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SIGNS = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|os error (?:28|122|27)\b|"
    r"PytorchStreamWriter failed writing|failed writing file|unexpected pos \d+ vs \d+|"
    r"basic_ios::clear: iostream error",
    re.IGNORECASE,
)
_ALMOST = 1 << 16


def no_room(error: BaseException, place: Path) -> str | None:
    """Why nothing more could be written to ``place``, where that is what ``error`` comes of; else None."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, OSError) and cause.errno in FULL:
            return os.strerror(cause.errno)
        if match := _SIGNS.search(str(cause)):
            found = match[0]
            return found if found[:2] in ("No", "Di", "Fi") else "the file could not be written whole"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, (RuntimeError, ValueError)) and free_bytes(place) < _ALMOST:
        return os.strerror(errno.ENOSPC)
    return None


def free_bytes(place: Path) -> int:
    """Bytes that a user may still write where ``place`` lies, or would lie."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        told = os.statvfs(place)
    except OSError:
        return 1 << 62
    return told.f_bavail * told.f_frsize


def has_room(place: Path, size: int) -> bool:
    """Whether a file of ``size`` bytes fits where ``place`` lies, as far as disk and limits on files tell now."""
    try:
        import resource
    except ImportError:  # Windows
        return free_bytes(place) > size
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return free_bytes(place) > size and (most == resource.RLIM_INFINITY or most > size)


@contextmanager
def patient_file(path: Path) -> Iterator[io.RawIOBase]:
    """A new file for writers in C++, which end the whole process where a write fails: here it fails when the block
    ends, with OSError, and what comes after the first failure is dropped."""
    with path.open("wb", buffering=0) as file:
        writer = _Patient(file)
        yield writer
    if writer.failed is not None:
        raise writer.failed


class _Patient(io.RawIOBase):
    """Writes to ``file`` until that fails, and keeps why."""

    def __init__(self, file: io.FileIO):
        self._file = file
        self.failed: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # PyTorch goes back to the start of what it wrote, for whoever reads it next.
        return offset

    def flush(self) -> None:
        return

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left and self.failed is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.failed = error
        return size
