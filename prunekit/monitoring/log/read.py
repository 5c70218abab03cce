"""Reading request logs: in order, streamed, each line a request or a counted problem."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from prunekit.monitoring.log.fields import request_of
from prunekit.monitoring.log.lines import CutShort, Line, lines
from prunekit.monitoring.log.otel import flat_rows, is_otlp
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.request import Request
from prunekit.utils.names import printable

# Clients that try again do so soon: so many ids before a line are remembered.
REMEMBERED = 4096
_BACK, _AHEAD = 3600.0, 7 * 86400.0


class Place(NamedTuple):
    """Where reading goes on: at the byte ``offset`` (unpacked) of a file, after ``skip`` requests of that line."""

    offset: int = 0
    skip: int = 0


class Seen:
    """The ids of the requests, and of the outcomes that came later, of the lines just before."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict.fromkeys(ids)

    def add(self, key: str) -> bool:
        """Whether ``key`` is new among those that are remembered."""
        key = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        if key in self._ids:
            return False
        self._ids[key] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        return True

    def to_list(self) -> list[str]:
        """What is remembered, the oldest first."""
        return list(self._ids)


def read_log(paths: Iterable[str | Path], problems: Problems) -> Iterator[Request]:
    """The requests of all files of a log, one file after the other, in bounded memory.

    JSONL, gzipped or not; names and aliases in docs/watch.md; OTLP-JSON too. Whatever is wrong with a line is counted
    in ``problems``. A second line with an id of before is left out, but one that only adds an ``outcome`` is given
    (:attr:`Request.is_label`). Raises PrunekitError where a file can't be read.
    """
    seen = Seen()
    for path in paths:
        for request, _ in read_from(Path(path), Place(), problems, seen):
            yield request


def read_from(
    path: Path,
    start: Place,
    problems: Problems,
    seen: Seen,
    *,
    only: str | None = None,
    growing: bool = False,
    reached: Callable[[Place], None] = lambda place: None,
) -> Iterator[tuple[Request, Place]]:
    """The requests of one file from ``start`` on, each with the place after it. A last line without an end that is no
    JSON yet is left for later where the file is ``growing``. ``reached`` is told the place after each line. Lines that
    name another model than ``only`` are left out; those that name none are taken."""
    name, number, last = printable(path.name), 0, None
    skip = start.skip
    try:
        for line in lines(path, start.offset):
            number += 1
            if line.data is not None and not line.data.strip():
                continue
            where = f"{name}:{number}" if not start.offset else f"{name}, byte {line.begin:,}"
            rows = _rows(line, where, problems, unfinished=growing and not line.whole)
            if rows is None:
                return
            problems.lines += 1
            used = False
            for place, row in enumerate(rows):
                after = Place(line.begin, place + 1) if place + 1 < len(rows) else Place(line.end)
                if place < skip:
                    used = True
                    continue
                request = request_of(row, line.data or b"", partial(problems.add, where=where))
                if request is None:
                    problems.add("not a request", where)
                    continue
                if _is_twice(request, row, seen):
                    problems.add("duplicate", where)
                    continue
                if only is not None and request.model not in (None, only):
                    problems.add("another model", where)
                    used = True
                    continue
                if request.ts is not None:
                    last = _check_clock(request.ts, last, where, problems)
                problems.requests += not request.is_label
                used = True
                yield request, after
            problems.empty += not used
            skip = 0
            reached(Place(line.end))
    except CutShort:
        problems.add("cut short", name)


def _rows(line: Line, where: str, problems: Problems, unfinished: bool) -> list[dict[str, Any]] | None:
    """The rows of a line: one, or those of a batch of OTLP-JSON; None for a line that is still being written."""
    if line.data is None:
        if unfinished:
            return None
        problems.add("too long", where)
        return []
    try:
        row = json.loads(line.data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        row = None
        if unfinished:
            return None
    if not isinstance(row, dict):
        problems.add("broken", where)
        return []
    return list(flat_rows(row)) if is_otlp(row) else [row]


def _is_twice(request: Request, row: dict[str, Any], seen: Seen) -> bool:
    # Two requests without ids may well be alike.
    if request.id.startswith("line-") and "id" not in row:
        return False
    if request.is_label:
        return not seen.add(f"outcome {request.id}")
    if not seen.add(request.id):
        return True
    if request.outcome is not None:  # a line that tells it again must not count it twice
        seen.add(f"outcome {request.id}")
    return False


def _check_clock(now: float, last: float | None, where: str, problems: Problems) -> float:
    if last is not None and now < last - _BACK:
        problems.add("clock back", where)
    elif last is not None and now > last + _AHEAD:
        problems.add("clock ahead", where)
    return now
