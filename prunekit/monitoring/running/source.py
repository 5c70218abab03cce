"""The requests of logs from where a watch stood: once to their ends, or as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.monitoring.log.lines import opened
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Place, Seen, read_from
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.rotation import Mark, found_again, mark, to_read
from prunekit.utils.names import printable

Marks = dict[str, Mark]
# A request of later than this in seconds from now has a broken clock.
_AHEAD = 3600.0


class Source:
    """Reads ``paths`` on from ``marks``, of several models' requests ``only`` one's (None: all). After each request
    :attr:`places` says how far each log was read, and ``newest`` holds the time of the newest request, in seconds since
    1970."""

    def __init__(
        self, paths: Sequence[Path], marks: Marks, problems: Problems, seen: Seen, only: str | None = None
    ) -> None:
        self.paths, self.problems, self.seen, self._only = list(paths), problems, seen, only
        # How far each log was read: a place in the file that it is, or was, known by the mark of its beginning.
        self._places: dict[str, tuple[Path, Place, Mark]] = {}
        self._marks = dict(marks)
        self.newest: float | None = None
        for path in self.paths:
            with opened(path):  # so that a wrong name is told before anything is read
                pass

    def requests(self, idle: Callable[[], bool] | None = None) -> Iterator[tuple[Request, None]]:
        """All requests that are there; with ``idle`` also those that come, for as long as it returns True. It is called
        whenever all was read."""
        while True:
            for path in self.paths:
                yield from self._of(path)
            if idle is None or not idle():
                return
            self._marks = self.marks()

    def _of(self, path: Path) -> Iterator[tuple[Request, None]]:
        try:
            chain = to_read(path, self._marks.get(str(path), Mark()), self.problems)
            known = [mark(file, start) for file, start in chain]
        except (OSError, PrunekitError):  # between the old file and the new one there may be none
            return
        for (named, start), begun in zip(chain, known, strict=True):
            # A backlog takes its time: meanwhile files may have been renamed, or removed.
            file = found_again(path, named, begun)
            if file is None:
                self.problems.add("lost", printable(named.name))
                continue

            def reached(place: Place, file: Path = file, begun: Mark = begun) -> None:
                self._places[str(path)] = (file, place, begun)

            growing = file == path
            try:
                for request, place in read_from(
                    file, start, self.problems, self.seen, only=self._only, growing=growing, reached=reached
                ):
                    reached(place)
                    self._note_time(request)
                    yield request, None
            except PrunekitError:
                if file.exists():
                    raise
                self.problems.add("lost", printable(named.name))

    def _note_time(self, request: Request) -> None:
        """An outcome may come days later: it does not tell that there are requests."""
        if request.ts is not None and not request.is_label and request.ts <= time.time() + _AHEAD:
            self.newest = request.ts if self.newest is None else max(self.newest, request.ts)

    def read(self) -> int:
        """Bytes of all logs that were read up to now (of packed ones, unpacked)."""
        return sum(place.offset for _, place, _ in self._places.values())

    def marks(self) -> Marks:
        """How far each log was read, for another Source to go on from."""
        made = dict(self._marks)
        for name, (file, place, begun) in self._places.items():
            if not begun.head_length:  # it was empty when it was opened
                try:
                    begun = mark(file, place)
                except (OSError, PrunekitError):  # rotated away
                    continue
            made[name] = replace(begun, offset=place.offset, skip=place.skip)
        return made
